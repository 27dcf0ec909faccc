"""Evaluation: k samples a problem, pass@1 as their mean (DeepSeek-R1, arXiv 2501.12948v2, D.1)."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import protocol
from r1lite.judging import ACCURACY, CHOICE, SECOND, Judge, Row, is_right
from r1lite.preflight import prove_golds
from r1lite.problems import card_of
from r1lite.ranks import is_main
from r1lite.records import Problem, digest, write_parquet
from r1lite.rubric import Asked
from r1lite.sampling import Task, from_engine, put, sample_missing
from r1lite.stages.config import EngineName, ModelReference, ProblemsReference, Reward, StageConfig
from r1lite.summary import summarize, write_report

if TYPE_CHECKING:
    from r1lite.worker import Stage


class Config(StageConfig):
    """The decoding defaults are the paper's: temperature 0.6, top-p 0.95."""

    PRODUCES: ClassVar[tuple[str, ...]] = ("report",)

    kind: Literal["eval"]
    models: list[ModelReference] = Field(min_length=1, description="what to evaluate: $stage, a directory or a hub id")
    problems: list[ProblemsReference] = Field(min_length=1, description="on what: card.yaml#split, .jsonl or .parquet")
    limit: int | None = Field(None, gt=0)
    samples: int | None = Field(None, gt=0, description="completions per problem; the card's own where it is not said")
    max_tokens: int = Field(gt=0, description="the longest completion, in tokens")
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    reward: Reward | None = Field(
        None, description="what is right; by default, and where it is not `about`, choice or accuracy as the card needs"
    )
    measures: list[Reward] = Field([], description="more rewards, whose means over the samples are told")
    engine: EngineName = "auto"

    def faults(self) -> Iterator[str]:
        for path, values in (("models", self.models), ("problems", self.problems)):
            for value in sorted({value for value in values if values.count(value) > 1}):
                yield f"{path}: {value} is there twice"
        for name in self.named_alike():
            yield f"measures: {name!r} is the name of two, or of a grader, and scores go by name; rename one function"
        for name in self.problems:
            with suppress(ValueError):  # of a wrong reference, which is told for itself
                if self.samples is None and (name.startswith("$") or card_of(name).samples is None):
                    yield f"samples: {name} does not say how many a problem are usual; state `samples` (--samples)"

    def named_alike(self) -> list[str]:
        """Measures that share their name with what else scores the same problems."""
        alike = set()
        for problems in self.problems:
            measures = [measure.name for measure in self.measures if measure.meant_for(problems)]
            own = self.reward is not None and self.reward.meant_for(problems)
            graders = {SECOND.name, *([self.reward.name] if self.reward and own else [ACCURACY.name, CHOICE.name])}
            alike |= {name for name in measures if name in graders or measures.count(name) > 1}
        return sorted(alike)


@dataclass(frozen=True)
class ProblemSet:
    """A data card's problems, how often each is sampled, and by what its completions are graded and measured."""

    name: str
    problems: list[Problem]
    samples: int
    grader: Reward
    measures: list[Reward]

    @property
    def has_golds(self) -> bool:
        return any(problem.answer for problem in self.problems)


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """report.json: {"protocol": {...}, "results": [one object for each model and set of problems]}."""
    sets = [load_set(config, stage, name) for name in config.problems]
    how = stated_protocol(config, sets, {model: stage.resolve(model) for model in config.models})
    results = [result for model in config.models for result in evaluate_model(config, stage, model, sets)]
    if not is_main():
        return {}
    summary = write_report(stage.path, how, results)
    shutil.rmtree(stage.path / "parts")  # all of it is in samples/ by now
    return summary


def load_set(config: Config, stage: "Stage", name: str) -> ProblemSet:
    card = None if name.startswith("$") else card_of(name)
    samples = config.samples or (card.samples if card else None)
    assert samples is not None, "a fault of the config"
    is_choice = card is not None and card.answers is not None and card.answers.kind == "choice"
    default = CHOICE if is_choice else ACCURACY
    grader = config.reward if config.reward and config.reward.meant_for(name) else default
    measures = [measure for measure in config.measures if measure.meant_for(name)]
    return ProblemSet(name, stage.problems(name, config.limit), samples, grader, measures)


def stated_protocol(config: Config, sets: list[ProblemSet], models: dict[str, Path]) -> dict[str, Any]:
    from r1lite.engines import engine_version, pick_engine

    return {
        **config.model_dump(include={"prompt", "temperature", "top_p", "max_tokens", "seed", "limit"}),
        "template": protocol.template_hash(config.prompt),
        "engine": engine_version(pick_engine(config.engine)),
        "versions": protocol.grading_versions(),
        "problems": {
            each.name: {"key": protocol.problems_key(each.problems), "graders": protocol.graders([each.grader])}
            for each in sets
        },
        "models": {model: protocol.model_facts(path, config.prompt) for model, path in models.items()},
    }


def evaluate_model(config: Config, stage: "Stage", model: str, sets: list[ProblemSet]) -> list[dict[str, Any]]:
    from r1lite.models import load_tokenizer

    tokenizer = load_tokenizer(stage.resolve(model))
    tasks = [
        put(config.prompt, tokenizer, source.name, problem, source.samples)
        for source in sets
        for problem in source.problems
    ]
    judges = {source.name: Judge(source.grader, stage.resolve, source.has_golds, source.measures) for source in sets}
    for source in sets:
        prove_golds(source.grader, stage.resolve, config.prompt, tokenizer, source.problems, source.name)
    by_key = {task.key: task for task in tasks}
    rows = sample_missing(
        model,
        stage.path / "parts" / slug(model),
        tasks,
        from_engine(config, config.engine, stage.resolve(model), tokenizer),
        lambda rows: judge_rows(rows, by_key, judges),
        lambda row: is_right(row, judges[row["problems"]].reward.name),
    )
    if not is_main():
        return []
    results = []
    for source in sets:
        judge, asked = judges[source.name], {task.key[1]: task.asked for task in tasks if task.source == source.name}
        mine: dict[str, list[Row]] = {name: [] for name in asked}
        for row in rows:
            if row["problems"] == source.name:
                mine[row["id"]].append(row)
        summary = summarize(mine, judge.names, [measure.name for measure in source.measures])
        summary["graders"] |= judge.counts
        budgets = by_budget(judge, asked, mine, tokenizer, config.max_tokens)
        results.append({"model": model, "problems": source.name, **summary, "pass@1_by_budget": budgets})
        kept = (row for each in mine.values() for row in each)
        write_parquet(stage.path / "samples" / f"{slug(model, source.name)}.parquet", kept)
    return results


def judge_rows(rows: list[Row], tasks: dict[tuple[str, str], Task], judges: dict[str, Judge]) -> None:
    """Add to each row what the graders say."""
    for name, judge in judges.items():
        mine = [row for row in rows if row["problems"] == name]
        if mine:
            asked = [tasks[name, row["id"]].asked for row in mine]
            verdicts = judge(asked, [row["completion"] for row in mine], [row["token_ids"] for row in mine])
            for row, verdict in zip(mine, verdicts, strict=True):
                row |= verdict


def by_budget(
    judge: Judge, asked: dict[str, Asked], problems: dict[str, list[Row]], tokenizer: Any, max_tokens: int
) -> dict[str, float]:
    """pass@1 had the same samples been cut off at fewer tokens: at powers of two, and at max_tokens as they are."""
    rows = [row for mine in problems.values() for row in mine]
    budgets = [2**power for power in range(max_tokens.bit_length()) if max_tokens <= 2**power * 32 < max_tokens * 32]
    shares = {}
    for budget in budgets:
        cut = [row for row in rows if row["tokens"] > budget]
        ids = [row["token_ids"][:budget] for row in cut]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = judge.scores(judge.reward.name, [asked[row["id"]] for row in cut], texts, ids) if cut else []
        whole = sum(is_right(row, judge.reward.name) for row in rows if row["tokens"] <= budget)
        shares[str(budget)] = (whole + sum(score >= 1 for score in scores)) / len(rows)
    shares[str(max_tokens)] = sum(is_right(row, judge.reward.name) for row in rows) / len(rows)
    return shares


def slug(*names: str) -> str:
    """A file name that says what is in it."""
    readable = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.") for name in names)
    return f"{readable[-80:]}-{digest(' '.join(names))[:6]}"
