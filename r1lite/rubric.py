"""Named rewards become functions whose scores can be relied on."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1lite.engines import Completion
from r1lite.models import locate
from r1lite.plugins import load_function
from r1lite.prompts import messages_of, opening, prompt_text, render
from r1lite.records import Problem
from r1lite.stages.config import Reward

RewardFunction = Callable[..., Any]  # a list of scores, or a coroutine of one
SET = "problem_set"  # the column that says which of a stage's problem sets a completion is about
GIVEN = {"prompts", "completions", "trainer_state", "log_extra", "log_metric"}  # to every reward, besides the columns


def load_reward(reward: Reward, resolve: Callable[[str], Path | None] = locate) -> RewardFunction:
    """A reward's function with its `args`, `columns` and `model` bound, for TRL and for evaluation alike.

    A coroutine function stays one, so that TRL awaits several at once; a class is made an instance with its `args`. The
    function raises ValueError, naming the reward, when it returns anything but one number or None a completion. NaN is
    None, as in TRL: no score, which neither the total nor the mean counts. That is also what completions get that are
    about other problems than those that the reward is `about`; the function does not see them.
    """
    function: Any = load_function(reward.use)
    arguments = dict(reward.args)
    if reward.model is not None:
        arguments["model"] = str(resolve(reward.model) or reward.model)
    if inspect.isclass(function):
        function, arguments = function(**arguments), {}

    def meant(completions: list, columns: dict[str, Any]) -> list[int]:
        if reward.about is None:
            return list(range(len(completions)))
        if SET not in columns:
            raise ValueError(f"the reward {reward.use} is `about` some sets of problems, and here none are named")
        return [place for place, name in enumerate(columns[SET]) if reward.meant_for(name)]

    def call(completions: list, columns: dict[str, Any], places: list[int]) -> Any:
        if len(places) < len(completions):
            per_row = {"completions": completions, **columns}
            columns = {
                name: [value[place] for place in places] if isinstance(value, list) else value
                for name, value in per_row.items()
            }
            completions = columns.pop("completions")
        renamed = {name: columns[column] for name, column in reward.columns.items()}
        if reward.messages:
            completions = [messages_of(completion) for completion in completions]
        return function(completions=completions, **{**columns, **renamed, **arguments})

    @functools.wraps(function, updated=())
    def scored(completions: list, **columns: Any) -> list[float | None]:
        places = meant(completions, columns)
        return spread(call(completions, columns, places) if places else [], places, len(completions))

    @functools.wraps(function, updated=())
    async def scored_later(completions: list, **columns: Any) -> list[float | None]:
        places = meant(completions, columns)
        return spread(await call(completions, columns, places) if places else [], places, len(completions))

    def spread(scores: Any, places: list[int], count: int) -> list[float | None]:
        by_place = dict(zip(places, checked(reward.use, scores, len(places)), strict=True))
        return [by_place.get(place) for place in range(count)]

    wrapped = scored_later if is_async(function) else scored
    wrapped.__name__ = reward.name  # what TRL calls it in its metrics
    return wrapped


def is_async(function: Callable) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def scores_of(
    reward: RewardFunction, /, log_metric: Callable[[str, float], None] = lambda *_: None, **columns: Any
) -> list[float | None]:
    """The scores of a reward, called as GRPOTrainer calls it; awaited where they come later."""
    scores = reward(log_metric=log_metric, log_extra=lambda *_: None, trainer_state=None, **columns)
    return asyncio.run(scores) if inspect.iscoroutine(scores) else scores


def all_scores(
    rewards: list[RewardFunction], loop: asyncio.AbstractEventLoop | None, **columns: Any
) -> list[list[float | None]]:
    """The scores of several rewards, (rewards, completions), as GRPOTrainer gets them: coroutines run together, always
    in the same `loop` of another thread, to which what they keep between calls may be bound."""
    found = [reward(**columns) for reward in rewards]

    async def together() -> Any:
        return await asyncio.gather(*[scores for scores in found if inspect.iscoroutine(scores)])

    later = iter(asyncio.run_coroutine_threadsafe(together(), loop).result() if loop else [])
    return [next(later) if inspect.iscoroutine(scores) else scores for scores in found]


def grade(
    reward: RewardFunction, tokenizer: Any, template: str, problems: list[Problem], groups: list[list[Completion]]
) -> tuple[list[str], list[float | None], dict[str, float]]:
    """Texts and scores of each problem's completions, flat (P * n), and what the reward has logged."""
    prompts = [render(template, problem.problem) for problem in problems]
    prefill = [opening(prompt_text(tokenizer, prompt)) for prompt in prompts]
    owners = [index for index, group in enumerate(groups) for _ in group]
    ids = [completion.token_ids for group in groups for completion in group]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    asked = [Asked(problems[owner], prompts[owner], prefill[owner]) for owner in owners]
    scores, metrics = score(reward, asked, texts, ids)
    return texts, scores, metrics


@dataclass(frozen=True)
class Asked:
    """A problem as it was put to the model: its prompt, and what that had already written of the completion."""

    problem: Problem
    prompt: Any
    prefill: str = ""


def score(
    reward: RewardFunction, asked: list[Asked], texts: list[str], ids: list[list[int]] | None = None
) -> tuple[list[float | None], dict[str, float]]:
    """Scores of completions, one to each of `asked`, and what the reward has logged; `ids` are their tokens."""
    metrics: dict[str, float] = {}
    prompts = [each.prompt for each in asked]
    tokens = {} if ids is None else {"completion_ids": ids}
    scores = scores_of(
        reward,
        prompts=prompts,
        completions=as_prompted(prompts, texts),
        log_metric=metrics.__setitem__,
        **tokens,
        **columns_of([each.problem for each in asked], [each.prefill for each in asked]),
    )
    return scores, metrics


def as_prompted(prompts: list, texts: list[str]) -> list:
    """Completions as TRL hands them over: texts after texts, messages after messages."""
    return [text if isinstance(prompt, str) else messages_of(text) for prompt, text in zip(prompts, texts, strict=True)]


def columns_of(problems: list[Problem], prefill: list[str]) -> dict[str, Any]:
    """What rewards get of their problems besides prompts and completions: lists with an entry a completion."""
    named = dict.fromkeys(name for problem in problems for name in problem.columns)
    names = [name for name in named if name not in GIVEN | {"completion_ids"}]
    columns = {name: [problem.columns.get(name) for problem in problems] for name in names}
    return {**columns, "answer": [problem.answer for problem in problems], "prefill": prefill}


def checked(name: str, scores: Any, count: int) -> list[float | None]:
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(
            f"the reward {name} must return a list of {count} scores, one a completion; got {brief(scores)}"
        )
    return [checked_score(name, score) for score in scores]


def checked_score(name: str, score: Any) -> float | None:
    try:
        value = None if score is None or isinstance(score, str) else float(score)
    except (TypeError, ValueError):
        value = math.inf
    if isinstance(score, str) or (value is not None and math.isinf(value)):
        raise ValueError(f"the reward {name} must score with finite numbers or None; got {brief(score)}")
    return None if value is None or math.isnan(value) else value


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
