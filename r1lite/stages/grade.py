"""Grading of completions that someone else made: the metrics and the report of an evaluation, without its sampling."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import protocol
from r1lite.judging import ACCURACY, Judge, Row
from r1lite.preflight import prove_golds
from r1lite.prompts import text_of
from r1lite.records import Problem, read_rows, write_parquet
from r1lite.rubric import Asked
from r1lite.stages.config import Reward, RolloutsReference, StageConfig
from r1lite.summary import summarize, write_report

if TYPE_CHECKING:
    from r1lite.worker import Stage

OURS = ("problem", "id", "answer", "completion", "completions", "tokens", "finish_reason", "prefill")


class Config(StageConfig):
    PRODUCES: ClassVar[tuple[str, ...]] = ("report",)

    kind: Literal["grade"]
    rollouts: list[RolloutsReference] = Field(
        min_length=1, description=".jsonl or .parquet with problem or id, answer, and completion or completions"
    )
    reward: Reward = ACCURACY


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """report.json as an evaluation's; what is not known about foreign samples, such as their temperature, is null."""
    results, sets = [], {}
    for number, name in enumerate(config.rollouts):
        judge = Judge(config.reward, stage.resolve)
        problems, rows = read_rollouts(stage.table(name, "rollouts"))
        prove_golds(config.reward, stage.resolve, "plain", None, list(problems.values()), name)
        judge_rollouts(judge, problems, rows)
        results.append({"model": name, "problems": name, **summarize(rows, judge.names)})
        results[-1]["graders"] |= judge.counts
        sets[name] = {
            "key": protocol.problems_key(list(problems.values())),
            "graders": protocol.graders([config.reward]),
        }
        write_parquet(stage.path / "samples" / f"{number}.parquet", (row for mine in rows.values() for row in mine))
    how = {"versions": protocol.grading_versions(), "problems": sets, "models": {}}
    return write_report(stage.path, how, results)


def judge_rollouts(judge: Judge, problems: dict[str, Problem], rows: dict[str, list[Row]]) -> None:
    flat = [row for mine in rows.values() for row in mine]
    asked = [Asked(problems[row["id"]], problems[row["id"]].problem, row["prefill"]) for row in flat]
    for row, verdict in zip(flat, judge(asked, [row["completion"] for row in flat]), strict=True):
        row |= verdict


def read_rollouts(path: Path) -> tuple[dict[str, Problem], dict[str, list[Row]]]:
    """Problems and samples by problem id. Raises ValueError naming the row that is not right."""
    problems: dict[str, Problem] = {}
    rows: dict[str, list[Row]] = {}
    answers: dict[str, str] = {}
    for number, raw in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        raw = {name: well_formed(value) for name, value in raw.items()}
        problem = to_problem(raw, where)
        if (other := answers.setdefault(problem.problem, problem.answer)) != problem.answer:
            pair = f"{other!r} and {problem.answer!r}"
            raise ValueError(f"{where}: the problem {problem.problem[:60]!r} has two answers, {pair}")
        name = problem.id if raw.get("problem") else problem.problem
        problems.setdefault(name, problem)
        mine = rows.setdefault(name, [])
        mine += [{"id": name, "sample": len(mine) + place, **row} for place, row in enumerate(samples_of(raw, where))]
    if not rows:
        raise ValueError(f"{path} has no rows")
    fewest, most = (pick(rows, key=lambda name: len(rows[name])) for pick in (min, max))
    if len(rows[fewest]) != len(rows[most]):
        some, others = (f"{problems[name].problem[:60]!r} has {len(rows[name])}" for name in (fewest, most))
        raise ValueError(
            f"{path}: every problem needs as many completions as the others, but {some} and {others}; drop or add some"
        )
    return problems, rows


def well_formed(value: Any) -> Any:
    """A text without lone surrogates, halves of characters, which cannot be written as UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def to_problem(row: dict[str, Any], where: str) -> Problem:
    """With an `id` alone the problem's text is the id."""
    text, answer = row.get("problem"), row.get("answer")
    text = row.get("id") if text is None else text
    if text is None:
        raise ValueError(f"{where} has neither a `problem` nor an `id`; it has: {', '.join(row)}")
    if not isinstance(text, str | int) or isinstance(text, bool) or not str(text).strip():
        raise ValueError(f"{where}: the problem is {text!r}, not a text")
    if not is_text_or_number(answer):
        raise ValueError(f"{where}: the answer is {answer!r}, not a text or number")
    others = {key: value for key, value in row.items() if key not in OURS}
    return Problem(str(text).strip(), str(answer).strip(), others)


def is_text_or_number(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())


def samples_of(row: dict[str, Any], where: str) -> list[Row]:
    """The samples of a row: its `completion`, or each of its `completions`, a text or the messages of a chat.

    `tokens` and `finish_reason` are known of a single completion only.
    """
    one, many = row.get("completion"), row.get("completions")
    if (one is None) == (many is None):
        raise ValueError(f"{where} needs one of `completion` and `completions`; it has: {', '.join(row)}")
    given = [one] if many is None else many
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: `completions` must be a list of texts or messages; got {given!r}")
    for each in given:
        if not isinstance(each, str) and not is_chat(each):
            raise ValueError(f"{where}: a completion must be a text, or messages whose content is one; got {each!r}")
    reason, prefill = row.get("finish_reason") if many is None else None, row.get("prefill")
    for name, value in (("finish_reason", reason), ("prefill", prefill)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: `{name}` must be a text; got {value!r}")
    facts = {
        "tokens": token_count(row.get("tokens"), where) if many is None else None,
        "finish_reason": reason,
        "prefill": prefill or "",
        "answer": str(row["answer"]),
    }
    return [{"completion": well_formed(text_of(each)), **facts} for each in given]


def is_chat(completion: Any) -> bool:
    last = completion[-1] if isinstance(completion, list) and completion else None
    return isinstance(last, dict) and isinstance(last.get("content", 0), str | None)


def token_count(tokens: Any, where: str) -> int | None:
    """A whole number; pandas writes it as 3.0, and NaN where there is none."""
    if tokens is None or tokens != tokens:
        return None
    if not isinstance(tokens, int | float) or isinstance(tokens, bool) or tokens % 1 or not 0 <= tokens < 2**31:
        raise ValueError(f"{where}: `tokens` must be how many the completion has; got {tokens!r}")
    return int(tokens)
