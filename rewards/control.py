"""Controls: rewards that say nothing about the answer, to show what training gains without one."""

import random
from typing import Any


def coin(completions: list, prompts: list, trainer_state: Any = None, seed: int = 0, **_: Any) -> list[float]:
    """0 or 1 by the toss of a coin, whatever the completion says.

    A toss follows from `seed`, the training step, the prompt and the place in the batch, so a resumed run is the
    uninterrupted one. A base model may gain even from this where clipping amplifies what it does already (arXiv
    2506.10947), which is why a gain has to be held against it.
    """
    step = trainer_state.global_step if trainer_state else 0
    return [
        float(random.Random(f"{seed}/{step}/{place}/{prompt}").random() < 0.5) for place, prompt in enumerate(prompts)
    ]
