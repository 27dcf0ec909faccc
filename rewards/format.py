"""Is the completion shaped as asked?"""

from typing import Any

from r1lite.prompts import parse, text_of


def think_answer(completions: list, **_: Any) -> list[float]:
    """1 where a completion is exactly `<think>...</think><answer>...</answer>`, else 0 (R1 §2.2, format reward)."""
    return [float(parse(text_of(completion)) is not None) for completion in completions]
