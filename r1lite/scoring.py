"""`r1lite score`: rewards on completions that someone else made, and where two graders of the answer disagree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r1lite.engines import chunks
from r1lite.judging import ACCURACY, SECOND
from r1lite.preflight import required
from r1lite.prompts import messages_of
from r1lite.records import read_rows
from r1lite.rubric import GIVEN, load_reward, scores_of
from r1lite.stages.config import Reward
from r1lite.strict_yaml import explain, parse_value

BATCH = 1024


@dataclass(frozen=True)
class Scores:
    """Scores by reward for each row; sums of what rewards have logged; the rows on which the two graders disagree."""

    rows: list[dict[str, float | None]]
    logged: dict[str, float]
    disagreements: list[int]
    completions: list[dict[str, Any]]


def score_file(path: Path, rewards: list[Reward]) -> Scores:
    """Score a jsonl or parquet file with `completion` (a text or the messages of a chat) and what the rewards ask for.

    `prompt`, or else `problem`, is the prompt. Where every row has an `answer`, both graders are asked besides. Raises
    ValueError naming the row and column that is not right.
    """
    rows = read_completions(path)
    names = [reward.name for reward in rewards]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two rewards are named {', '.join(repeated)}, and scores go by name; score them one by one")
    for reward in rewards:
        check_columns(path, rows, reward)
    logged: dict[str, float] = {}
    scores = {reward.name: score_rows(reward, rows, logged) for reward in rewards}
    disagreements: list[int] = []
    if all(isinstance(row.get("answer"), str) for row in rows):
        one, other = (score_rows(grader, rows, {}) for grader in (ACCURACY, SECOND))
        disagreements = [number for number in range(len(rows)) if one[number] != other[number]]
    by_row = [dict(zip(scores, each, strict=True)) for each in zip(*scores.values(), strict=True)]
    return Scores(by_row, logged, disagreements, rows)


def score_rows(reward: Reward, rows: list[dict[str, Any]], logged: dict[str, float]) -> list[float | None]:
    function, scores = load_reward(reward), []

    def log_metric(name: str, value: float) -> None:
        logged[name] = logged.get(name, 0.0) + value

    for batch in chunks(rows, BATCH):
        columns = {key: [row.get(key) for row in batch] for key in rows[0] if key not in ("completion", "prompt")}
        scores += scores_of(
            function,
            completions=[row["completion"] for row in batch],
            prompts=[row.get("prompt", row.get("problem", "")) for row in batch],
            log_metric=log_metric,
            **columns,
        )
    return scores


def read_completions(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})")
    rows = list(read_rows(path))
    for number, row in enumerate(rows):
        completion = row.get("completion")
        messages = messages_of(completion) if isinstance(completion, str | list) else []
        if not messages or not all(isinstance(each, dict) and "content" in each for each in messages):
            raise ValueError(f"{path}, row {number}: `completion` must be a text or messages; got {completion!r}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def check_columns(path: Path, rows: list[dict[str, Any]], reward: Reward) -> None:
    wanted = {*required(reward), *reward.columns.values()} - GIVEN
    for name in sorted(wanted):
        for number, row in enumerate(rows):
            if row.get(name) is None:
                there = ", ".join(key for key, value in row.items() if value is not None)
                raise ValueError(f"{path}, row {number} has no {name!r}, which {reward.use} asks for; it has: {there}")


def to_reward(text: str) -> Reward:
    """A reward as it is named on the command line: `module:function`, or a mapping as in a recipe."""
    try:
        return Reward.model_validate(parse_value(text) if text.startswith("{") else {"use": text})
    except ValidationError as error:
        raise ValueError(f"--reward {text}: " + "; ".join(explain(error, Reward))) from None
