"""Is the completion no longer than it need be? Lengths are in tokens."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rewards.math import accuracy


def cosine(
    completions: list,
    completion_ids: list[list[int]],
    answer: list[str],
    max_tokens: int,
    right: Sequence[float] = (1.0, 0.5),
    wrong: Sequence[float] = (-1.0, -0.5),
    exceeded: float = -1.0,
    prefill: list[str] | None = None,
    **_: Any,
) -> list[float]:
    """From `right[0]` at no length to `right[1]` at max_tokens along half a cosine; likewise `wrong`; else `exceeded`.

    end + (start - end) * (1 + cos(pi * length / max_tokens)) / 2, and `exceeded` for max_tokens or more, right or not
    (arXiv 2502.03373, §4.2 and its appendix on the cosine reward). A right answer is worth more when short, a wrong one
    when long: think on while it is not solved. In [-1, 1] with the defaults, which are of the size of the other
    rewards; the paper trains PPO with right [2, 1], wrong [-10, 0] and exceeded -10.
    """
    verdicts = accuracy(completions=completions, answer=answer, prefill=prefill)
    return [
        half_cosine(len(ids) / max_tokens, *(right if verdict else wrong)) if len(ids) < max_tokens else exceeded
        for ids, verdict in zip(completion_ids, verdicts, strict=True)
    ]


def half_cosine(progress: float, start: float, end: float) -> float:
    """`start` at 0, `end` at 1, flat at both."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def overlong(completion_ids: list[list[int]], max_tokens: int, buffer: int, **_: Any) -> list[float]:
    """0 up to max_tokens - buffer, from there down to -1 at max_tokens in a line, and -1 beyond; in [-1, 0].

    The soft overlong punishment of DAPO (arXiv 2503.14476 eq. 13). Buffer 0 punishes only what is beyond max_tokens.
    """
    return [overlong_score(len(ids), max_tokens, buffer) for ids in completion_ids]


def overlong_score(length: int, max_tokens: int, buffer: int) -> float:
    if length > max_tokens:
        return -1.0
    over = length - (max_tokens - buffer)
    return -over / buffer if over > 0 else 0.0


def kimi(
    completions: list,
    completion_ids: list[list[int]],
    answer: list[str],
    prompts: list,
    prefill: list[str] | None = None,
    **_: Any,
) -> list[float]:
    """0.5 - (length - min) / (max - min) where right, at most 0 where wrong; in [-0.5, 0.5] (arXiv 2501.12599 §2.3.3).

    Min and max are over the completions of the same prompt in this call; where they are equal, all score 0. Each
    process has its own call, so let its batch hold whole groups.
    """
    groups = defaultdict(list)
    for prompt, ids in zip(prompts, completion_ids, strict=True):
        groups[repr(prompt)].append(len(ids))
    verdicts = accuracy(completions=completions, answer=answer, prefill=prefill)
    return [
        kimi_score(len(ids), groups[repr(prompt)], bool(verdict))
        for prompt, ids, verdict in zip(prompts, completion_ids, verdicts, strict=True)
    ]


def kimi_score(length: int, group: list[int], right: bool) -> float:
    shortest, longest = min(group), max(group)
    if shortest == longest:
        return 0.0
    score = 0.5 - (length - shortest) / (longest - shortest)
    return score if right else min(0.0, score)
