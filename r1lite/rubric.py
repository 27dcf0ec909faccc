"""Named rewards become functions whose scores can be relied on."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from r1lite.engines import Completion
from r1lite.plugins import load_function
from r1lite.prompts import render
from r1lite.records import Problem
from r1lite.stages.config import Reward

RewardFunction = Callable[..., list[float | None]]


def load_reward(reward: Reward) -> RewardFunction:
    """The function of a reward with its `args` bound, for TRL and for evaluation alike; coroutines are awaited.

    It raises ValueError, naming the reward, when that returns anything but one finite number or None a completion.
    """
    function = load_function(reward.use)

    @functools.wraps(function)
    def scored(completions: list, **columns: Any) -> list[float | None]:
        scores = function(completions=completions, **columns, **reward.args)
        return checked(reward.use, asyncio.run(scores) if inspect.iscoroutine(scores) else scores, len(completions))

    scored.__name__ = reward.name  # what TRL calls it in its metrics
    return scored


def grade(
    reward: RewardFunction, tokenizer: Any, template: str, problems: list[Problem], groups: list[list[Completion]]
) -> tuple[list[str], list[float | None]]:
    """Texts and scores of each problem's completions, flat (P * n); the reward is called as GRPOTrainer calls it."""
    owners = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
    ids = [completion.token_ids for group in groups for completion in group]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts = [render(template, owner.problem) for owner in owners]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    columns = {key: [owner.columns.get(key) for owner in owners] for key in problems[0].columns}
    answers = [owner.answer for owner in owners]
    return texts, reward(prompts=prompts, completions=completions, completion_ids=ids, answer=answers, **columns)


def checked(name: str, scores: Any, count: int) -> list[float | None]:
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(
            f"the reward {name} must return a list of {count} scores, one a completion; got {brief(scores)}"
        )
    for score in scores:
        if score is not None and (isinstance(score, str) or not math.isfinite(score)):
            raise ValueError(f"the reward {name} must score with finite numbers or None; got {brief(score)}")
    return scores


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
