"""Rewards are proven before a GPU is used: on the recipe's own problems, through its own template.

A reward that asks for `answer` has to score 1 for every gold answer, about 0 for another problem's, and 0 for every
well-formed hack of r1lite/hacks.py. Every reward has to take what TRL gives it and to return one number, or None, a
completion.
"""

import inspect
import json
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from r1lite import models, rubric
from r1lite.hacks import HACKS, filled
from r1lite.plugins import load_function
from r1lite.pool import Lost, Pool
from r1lite.problems import is_here, load_problems
from r1lite.prompts import opening, parse, prompt_text, render
from r1lite.records import Problem
from r1lite.rubric import GIVEN, SET, Asked, load_reward
from r1lite.stages.config import Reward, StageConfig, problem_sets, rewards_of

Resolve = Callable[[str], Path | None]
Scorer = Callable[[list[Problem], list[str]], list[float | None]]
MOST_PROBLEMS = 256  # that a preflight looks at; a stage proves all of its golds when it loads them
MOST_TIMED = 64
SECONDS = 120.0
MEMORY = 64 << 30  # bytes; a reward may bring a model
WHOLE_NUMBER = re.compile(r"-?[1-9]\d*", re.ASCII)
SHUFFLED_LIMIT = 0.05


@dataclass(frozen=True)
class Proof:
    """What a reward did: mean scores of golds and of shuffled golds, hacks above 0, milliseconds a completion.

    `path` is where the recipe names it, such as stages.zero.rewards.0.
    """

    path: str
    reward: str
    golds: float | None = None
    shuffled: float | None = None
    hacked: int | None = None
    p50: float | None = None
    p99: float | None = None
    judged: bool = False
    skipped: str = ""
    faults: list[str] = field(default_factory=list)


def prove(stages: dict[str, StageConfig], names: list[str]) -> Iterator[Proof]:
    """A proof of each reward of the named stages of a recipe."""
    for name in names:
        for path, reward in rewards_of(stages[name]):
            yield Proof(f"stages.{name}.{path}", reward.use, **prove_reward(reward, stages[name], stages))


def prove_reward(reward: Reward, config: StageConfig, stages: dict[str, StageConfig]) -> dict[str, Any]:
    """A Proof's fields."""
    sources = [name for name in problem_sets(config) if reward.meant_for(name)]
    if not sources:
        return {"skipped": "proven on the rollouts' golds when they are read"}
    reward = reward.model_copy(update={"about": None})
    missing = [source for source in sources if source.startswith("$") or not is_here(source)]
    if not reward.preflight:
        return {"skipped": "preflight: off"}
    if missing or (reward.model or "").startswith("$"):
        return {"skipped": f"{missing[0] if missing else reward.model} is not here yet"}
    problems = [problem for source in sources for problem in load_problems(source, MOST_PROBLEMS)]
    pool = Pool(f"{__name__}:measure", SECONDS, size=1, memory=MEMORY)
    rows = json.loads(json.dumps([asdict(problem) for problem in problems], default=str))
    (found,) = pool.map([[reward.model_dump(), rows, config.prompt, prefill_of(config, stages, problems[0])]])
    pool.close()
    if isinstance(found, Lost):
        how = f"took more than {SECONDS:.0f} s" if found is Lost.TIMEOUT else "ended its process"
        return {"faults": [f"the reward {reward.use} {how} for {len(problems)} gold completions"]}
    return dict(found)


def prefill_of(config: StageConfig, stages: dict[str, StageConfig], problem: Problem) -> str:
    """What the prompt of a stage has already written of the completion; a chat template is the model's own."""
    prompt = render(config.prompt, problem.problem)
    if isinstance(prompt, str):
        return opening(prompt)
    model = "$" + next(name for name, other in stages.items() if other is config)
    while model.startswith("$"):
        earlier: Any = stages[model[1:]]
        model = earlier.models[0] if hasattr(earlier, "models") else getattr(earlier, "model", None) or ""
    if not model:
        return ""  # it is served elsewhere
    path = models.locate(model)
    return opening(prompt_text(models.load_tokenizer(path), prompt)) if path else ""


def measure(reward: dict[str, Any], rows: list[dict[str, Any]], template: str, prefill: str) -> dict[str, Any]:
    """A Proof's fields. Runs in a process of the pool, since nothing is known about the function yet."""
    config, problems = Reward(**reward), [Problem(**row) for row in rows]
    faults = signature_faults(config, set(problems[0].columns))
    if faults:
        return {"faults": faults}
    try:
        return {"judged": is_judged(config), **measured(config, problems, template, prefill)}
    except Exception as error:  # whatever a stranger's function raises
        if str(error).startswith(f"the reward {config.use} "):
            return {"faults": [str(error)]}
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
        remedy = "; set `messages: true` if it takes completions as lists of messages" if is_about_text(error) else ""
        return {"faults": [f"the reward {config.use} raises {what}{remedy}"]}


def measured(config: Reward, problems: list[Problem], template: str, prefill: str) -> dict[str, Any]:
    score = scorer(config, models.locate, template, prefill)
    golds = score(problems, [gold_completion(problem.answer) for problem in problems])
    others = [other_answer(problems, index) for index in range(len(problems))]
    pairs = [(problem, other) for problem, other in zip(problems, others, strict=True) if other is not None]
    shuffled = score([p for p, _ in pairs], [gold_completion(other) for _, other in pairs]) if pairs else []
    hacked = falls_for(score, problems)
    times = []
    for problem in problems[:MOST_TIMED]:
        start = time.perf_counter()
        score([problem], [gold_completion(problem.answer)])
        times.append(1000 * (time.perf_counter() - start))
    percentiles = quantiles(times, n=100) if len(times) > 1 else times * 99
    found = {
        "golds": mean(golds),
        "shuffled": mean(shuffled),
        "hacked": None if hacked is None else len(hacked),
        "p50": percentiles[49],
        "p99": percentiles[98],
    }
    return {**found, "faults": gold_faults(config, problems, golds, mean(shuffled), hacked)}


def falls_for(score: Scorer, problems: list[Problem]) -> list[str] | None:
    """The well-formed hacks that a reward pays for; None where there is no gold to try them with.

    They are wrong for whole numbers but 0; another gold may well be what one of them says.
    """
    problem = next((problem for problem in problems if WHOLE_NUMBER.fullmatch(problem.answer)), None)
    if problem is None:
        return None
    hacks = [filled(hack, problem.problem, problem.answer) for hack, _ in HACKS]
    return [hack for hack, got in zip(hacks, score([problem] * len(hacks), hacks), strict=True) if got and parse(hack)]


def gold_faults(
    config: Reward, problems: list[Problem], golds: list[float | None], shuffled: float | None, hacked: list[str] | None
) -> list[str]:
    if not is_judged(config):
        return []
    faults = []
    if wrong := [(problem, gold) for problem, gold in zip(problems, golds, strict=True) if gold != 1]:
        problem, got = wrong[0]
        faults.append(
            f"the reward {config.use} scores {len(wrong)} of {len(golds)} gold answers other than 1, first {got} for "
            f"{problem.answer!r} of {problem.problem[:60]!r}; mend these golds or the reward"
        )
    if shuffled is not None and shuffled > SHUFFLED_LIMIT:
        faults.append(f"the reward {config.use} scores other problems' answers {shuffled:.2f} on average, not about 0")
    if hacked:
        faults.append(f"the reward {config.use} falls for {len(hacked)} hacks, such as {hacked[0][:80]!r}")
    return [fault + "; `preflight: off` if this is meant" for fault in faults]


def scorer(config: Reward, resolve: Resolve, template: str, prefill: str) -> Scorer:
    """score(problems, completions): the reward called as the trainer calls it; token ids are stood in for by bytes."""
    reward = load_reward(config, resolve)

    def score(problems: list[Problem], texts: list[str]) -> list[float | None]:
        texts = [text.removeprefix(prefill) for text in texts]
        asked = [Asked(problem, render(template, problem.problem), prefill) for problem in problems]
        scores, _ = rubric.score(reward, asked, texts, [list(text.encode(errors="replace")) for text in texts])
        return scores

    return score


def prove_golds(
    reward: Reward, resolve: Resolve, template: str, tokenizer: Any, problems: list[Problem], source: str
) -> None:
    """Raise ValueError where a gold answer of `source` does not score 1, as one that the grader cannot read."""
    problems = [each for each in problems if reward.about is None or reward.meant_for(each.columns[SET])]
    if not (problems and reward.preflight and is_judged(reward)):
        return
    prompt = render(template, problems[0].problem)
    # The chat template of a model that is served elsewhere is not known here.
    prefill = "" if tokenizer is None and not isinstance(prompt, str) else opening(prompt_text(tokenizer, prompt))
    golds = scorer(reward, resolve, template, prefill)(
        problems, [gold_completion(problem.answer) for problem in problems]
    )
    wrong = [problem for problem, gold in zip(problems, golds, strict=True) if gold != 1]
    if wrong:
        shown = "; ".join(f"{problem.answer[:60]!r} ({problem.id}, {problem.problem[:40]!r})" for problem in wrong[:3])
        raise ValueError(
            f"{source}: {len(wrong)} of {len(problems)} gold answers do not score 1 by {reward.use}, such as {shown}; "
            "mend or drop these rows, or set `preflight: off` on the reward if this is meant"
        )


def is_judged(reward: Reward) -> bool:
    """Whether a reward is about the right answer: it asks for `answer`, under this name or another."""
    return "answer" in signature(reward).parameters or "answer" in reward.columns.values()


def signature_faults(reward: Reward, columns: set[str]) -> list[str]:
    """What a call by TRL would raise TypeError for."""
    there = {*GIVEN, "completion_ids", "answer", "prefill", *columns}
    known = ", ".join(sorted(there))
    faults = [
        f"the reward {reward.use} has no column {column!r} to rename; there are: {known}"
        for column in reward.columns.values()
        if column not in there
    ]
    faults += [
        f"the reward {reward.use} asks for {name!r}, which is no column of these problems; there are: {known}; "
        f"give it under `args:`, or rename a column, such as `columns: {{{name}: answer}}`"
        for name in required(reward)
        if name not in there
    ]
    kinds = {parameter.kind for parameter in signature(reward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        faults.append(
            f"the reward {reward.use} must take the columns that it does not use; end its parameters with **_"
        )
    return faults


def signature(reward: Reward) -> inspect.Signature:
    """Of what is called with the completions; for a class that is its instances."""
    function = load_function(reward.use)
    if not inspect.isclass(function):
        return inspect.signature(function)
    whole = inspect.signature(function.__call__)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def required(reward: Reward) -> list[str]:
    """The columns that a reward cannot do without, but for those that the recipe itself gives or renames."""
    given = {*reward.args, *reward.columns, *(["model"] if reward.model else [])}
    return [
        name
        for name, parameter in signature(reward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in given
    ]


def is_about_text(error: Exception) -> bool:
    return isinstance(error, TypeError | AttributeError) and "string indices" in str(error)


def gold_completion(answer: str) -> str:
    return f"<think>so</think> <answer>{answer}</answer>"


def other_answer(problems: list[Problem], index: int) -> str | None:
    """The next problem's answer that reads otherwise."""
    answer = problems[index].answer
    rest = problems[index + 1 :] + problems[:index]
    return next((problem.answer for problem in rest if problem.answer != answer), None)


def mean(scores: list[float | None]) -> float | None:
    given = [score for score in scores if score is not None]
    return fmean(given) if given else None
