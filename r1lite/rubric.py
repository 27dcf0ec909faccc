"""Named rewards become functions, and functions scores."""

import functools
import math
from collections.abc import Callable
from typing import Any

from r1lite.plugins import load_function
from r1lite.stages.config import Reward

RewardFunction = Callable[..., list[float | None]]


def load_reward(reward: Reward) -> RewardFunction:
    """The function of a reward with its `args` bound, under the name that metrics use for it."""
    function = load_function(reward.use)
    bound = functools.partial(function, **reward.args)
    functools.update_wrapper(bound, function)
    bound.__name__ = reward.name  # type: ignore[attr-defined]
    return bound


def score(reward: RewardFunction, completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
    """One score a completion. Raises ValueError when the reward returns anything but one number or None for each."""
    name = reward.__name__  # type: ignore[attr-defined]
    scores = reward(completions=completions, **columns)
    if not isinstance(scores, list) or len(scores) != len(completions):
        raise ValueError(f"the reward {name} must return a list of {len(completions)} scores; got {str(scores)[:80]}")
    for value in scores:
        if value is not None and (isinstance(value, str) or not math.isfinite(value)):
            raise ValueError(f"the reward {name} must return finite numbers or None; got {value!r}")
    return scores
