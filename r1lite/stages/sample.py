"""Rejection sampling's first half: N completions a problem, graded (arXiv 2501.12948v2, B.3.2 and B.3.3).

What is kept of them is another stage's business (`select`), so that a filter can be changed without generating again.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite.endpoint import Endpoint, reachable
from r1lite.metrics import mean_or_none
from r1lite.observe import say
from r1lite.preflight import prove_golds
from r1lite.ranks import is_main
from r1lite.records import Problem, content_id, write_parquet
from r1lite.rubric import SET, load_reward, score
from r1lite.sampling import Row, Task, from_endpoint, from_engine, put, put_elsewhere, sample_missing
from r1lite.stages.config import EngineName, ModelReference, ProblemsReference, Reward, StageConfig

if TYPE_CHECKING:
    from r1lite.worker import Stage

Grader = tuple[str, Any]  # a reward's name and its function


class Config(StageConfig):
    """Samples of `model`, or of a model that is served elsewhere: one of `model` and `endpoint`."""

    PRODUCES: ClassVar[tuple[str, ...]] = ("rollouts", "problems")
    OUTSIDE_KEY: ClassVar[dict[str, Any]] = {"endpoint": {"concurrent", "requests_per_minute", "timeout", "key"}}

    kind: Literal["sample"]
    model: ModelReference | None = None
    endpoint: Endpoint | None = None
    problems: list[ProblemsReference] = Field(min_length=1, description="on what: card.yaml#split, .jsonl or .parquet")
    limit: int | None = Field(None, gt=0, description="only the first problems of each set")
    samples: int = Field(gt=0, description="completions per problem")
    max_tokens: int = Field(gt=0, description="the longest completion, in tokens")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    rewards: list[Reward] = Field(min_length=1, description="what grades; by the first a completion is right or not")
    engine: EngineName = "auto"

    def faults(self) -> Iterator[str]:
        if (self.model is None) == (self.endpoint is None):
            yield "model: state one of model and endpoint, which says who samples"
        names = [reward.name for reward in self.rewards]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"rewards: two are named {name!r}, and scores go by name; rename one function"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """rollouts.parquet, a row a completion with a column `reward/NAME` each; problems.parquet with their pass rates."""
    sets = {name: stage.problems(name, config.limit) for name in config.problems}
    refuse_repeated(sets)
    graders = [(reward.name, load_reward(reward, stage.resolve)) for reward in config.rewards]
    right_by = f"reward/{config.rewards[0].name}"
    if config.endpoint is not None:
        reachable(config.endpoint)
        tokenizer, source, name = None, from_endpoint(config, config.endpoint), config.endpoint.model
        tasks = [put_elsewhere(config.prompt, each, p, config.samples) for each, mine in sets.items() for p in mine]
    else:
        from r1lite.models import load_tokenizer

        assert config.model is not None, "a fault of the config"
        path, name = stage.resolve(config.model), config.model
        tokenizer = load_tokenizer(path)
        source = from_engine(config, config.engine, path, tokenizer)
        tasks = [put(config.prompt, tokenizer, each, p, config.samples) for each, mine in sets.items() for p in mine]
    problems = [problem for mine in sets.values() for problem in mine]
    for reward in config.rewards:
        prove_golds(reward, stage.resolve, config.prompt, tokenizer, problems, ", ".join(sets))
    by_key, counts = {task.key: task for task in tasks}, Counter[str]()
    rows = sample_missing(
        name,
        stage.path / "parts",
        tasks,
        source,
        lambda rows: counts.update(grade_rows(rows, by_key, graders)),
        lambda row: (row[right_by] or 0.0) >= 1,
    )
    if not is_main():
        return {}
    rows.sort(key=lambda row: (config.problems.index(row["problems"]), row["id"], row["sample"]))
    write_parquet(stage.path / "rollouts.parquet", map(to_rollout, rows))
    write_parquet(stage.path / "problems.parquet", rated(tasks, rows, right_by))
    shutil.rmtree(stage.path / "parts")  # all of it is in rollouts.parquet by now
    return told(rows, [name for name, _ in graders], counts)


def refuse_repeated(sets: dict[str, list[Problem]]) -> None:
    """Raise ValueError where two sets share a problem: it would be sampled, kept and learned twice as often."""
    homes: dict[str, str] = {}
    for name, mine in sets.items():
        for problem in mine:
            if (other := homes.setdefault(problem.id, name)) != name:
                raise ValueError(f"{name} and {other} share the problem {problem.problem[:60]!r}; take one of them out")


def grade_rows(rows: list[Row], tasks: dict[tuple[str, str], Task], graders: list[Grader]) -> Counter[str]:
    """Add to each row what the rewards say, and return what they have logged, such as timeouts.

    Of a model that is served elsewhere they get no `completion_ids`.
    """
    counts = Counter[str]()
    if not rows:
        return counts
    asked = [tasks[row["problems"], row["id"]].asked for row in rows]
    texts, ids = [row["completion"] for row in rows], [row["token_ids"] for row in rows]
    for name, grader in graders:
        scores, logged = score(grader, asked, texts, None if None in ids else ids)
        counts.update(logged)
        for row, value in zip(rows, scores, strict=True):
            row[f"reward/{name}"] = value
    return counts


def to_rollout(row: Row) -> Row:
    kept = {name: value for name, value in row.items() if name not in ("id", "token_ids")}
    name = content_id("s", row["id"], str(row["sample"]), str(row["seed"]), row["completion"])
    return {"id": name, "problem_id": row["id"], **kept}


def rated(tasks: list[Task], rows: list[Row], right_by: str) -> Iterator[Row]:
    """Problems with all of their columns and the share of their completions that are right; null where the first reward
    is not about them."""
    right: dict[tuple[str, str], list[float]] = {task.key: [] for task in tasks}
    for row in rows:
        if row[right_by] is not None:
            right[row["problems"], row["id"]].append(row[right_by] >= 1)
    for task in tasks:
        problem = task.asked.problem
        others = {name: value for name, value in problem.columns.items() if name != SET}
        own = {"id": problem.id, "problem": problem.problem, "answer": problem.answer}
        yield {**others, **own, "pass_rate": mean_or_none(right[task.key])}


def told(rows: list[Row], names: list[str], counts: Counter[str]) -> dict[str, Any]:
    means = {}
    for name in names:
        given = [row[f"reward/{name}"] for row in rows if row[f"reward/{name}"] is not None]
        means[name] = fmean(given) if given else None
    tokens = [row["tokens"] for row in rows if row["tokens"] is not None]
    shown = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
    logged = "".join(f", {name} {count:g}" for name, count in counts.items() if count)
    say(f"  {len(rows):,} rollouts, {sum(tokens):,} tokens: {shown}{logged}")
    return {"rollouts": len(rows), "tokens_sampled": sum(tokens), "rewards": means, "logged": dict(counts)}
