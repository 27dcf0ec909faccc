r"""Is the answer right?"""

from collections.abc import Callable
from typing import Any

from r1lite.pool import Lost, pool
from r1lite.prompts import final_answer, texts_of
from rewards.answers import LONGEST, clean, same_at_once

verdicts: dict[tuple[str, str], bool | Lost] = {}  # a group's equal answers, and later steps', are compared once
MOST_VERDICTS = 100_000


def accuracy(
    completions: list,
    answer: list[str],
    prefill: list[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    r"""1 where the final answer equals the gold one, else 0; in {0, 1} (R1 §2.2, accuracy reward).

    The final answer is what stands in the last `<answer>` or `\boxed{}` after the reasoning. Numbers are equal by their
    exact value ("042" = "42.0" = "\$42", "1/2" = "\frac12" = "0.5"), names letter by letter, and the rest by
    math-verify in processes that are killed after 5 s, which scores 0 and is counted as `accuracy/timeouts`. A gold
    that cannot be read is never equal to anything.
    """
    found = [final_answer(text) for text in texts_of(completions, prefill)]
    pairs = [
        (clean(gold), clean(given)) if given is not None and len(given) <= LONGEST else None
        for gold, given in zip(answer, found, strict=True)
    ]
    results = compare([pair for pair in dict.fromkeys(pairs) if pair])
    scores = [results[pair] if pair else False for pair in pairs]
    if log_metric:
        log_metric("accuracy/timeouts", float(scores.count(Lost.TIMEOUT)))
        log_metric("accuracy/crashes", float(scores.count(Lost.CRASH)))
    return [float(score is True) for score in scores]


def compare(pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool | Lost]:
    """For each cleaned (gold, answer) whether they are equal: at once where text is enough, else by the pool."""
    results = {pair: verdict for pair in pairs if (verdict := same_at_once(*pair)) is not None}
    slow = [pair for pair in pairs if pair not in results]
    new = [pair for pair in slow if pair not in verdicts]
    if len(verdicts) + len(new) > MOST_VERDICTS:
        verdicts.clear()
        new = slow
    if new:
        from rewards.equality import equal  # with sympy, so not at the top

        verdicts.update(zip(new, pool(equal).map([list(pair) for pair in new]), strict=True))
    return results | {pair: verdicts[pair] for pair in slow}
