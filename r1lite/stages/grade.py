"""Grading of completions that someone else made: the metrics and the report of an evaluation, without its sampling."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import protocol
from r1lite.judging import ACCURACY, Judge, Row
from r1lite.preflight import prove_golds
from r1lite.prompts import text_of
from r1lite.records import Problem, read_rows, write_json, write_parquet
from r1lite.rubric import Asked
from r1lite.stages.config import Reward, RolloutsReference, StageConfig
from r1lite.summary import summarize

if TYPE_CHECKING:
    from r1lite.worker import Stage

OURS = ("problem", "id", "answer", "completion", "completions", "tokens", "finish_reason")


class Config(StageConfig):
    PRODUCES: ClassVar[str] = "report"

    kind: Literal["grade"]
    rollouts: list[RolloutsReference] = Field(
        min_length=1, description=".jsonl or .parquet with problem or id, answer, and completion or completions"
    )
    reward: Reward = ACCURACY


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """report.json as an evaluation's; what is not known about foreign samples, such as their temperature, is null."""
    from r1lite.curves import draw_evaluation

    judge = Judge(config.reward, stage.resolve)
    results, sets = [], {}
    for number, name in enumerate(config.rollouts):
        problems, rows = read_rollouts(Path(name))
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
    report = {"protocol": how, "results": results}
    for result in results:
        result["fingerprint"] = protocol.short(protocol.facts(report, result))
    write_json(stage.path / "report.json", report)
    draw_evaluation(stage.path, results)
    return {"results": [{key: result[key] for key in ("model", "pass@1")} for result in results]}


def judge_rollouts(judge: Judge, problems: dict[str, Problem], rows: dict[str, list[Row]]) -> None:
    flat = [row for mine in rows.values() for row in mine]
    asked = [Asked(problems[row["id"]], problems[row["id"]].problem) for row in flat]
    for row, verdict in zip(flat, judge(asked, [row["completion"] for row in flat]), strict=True):
        row |= verdict


def read_rollouts(path: Path) -> tuple[dict[str, Problem], dict[str, list[Row]]]:
    """Problems and samples by problem id. Raises ValueError naming the row that is not right."""
    problems: dict[str, Problem] = {}
    rows: dict[str, list[Row]] = {}
    for number, raw in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        problem = to_problem(raw, where)
        name = problem.id if raw.get("problem") else problem.problem
        if problems.setdefault(name, problem).answer != problem.answer:
            raise ValueError(f"{where}: {name} has two answers, {problems[name].answer!r} and {problem.answer!r}")
        mine = rows.setdefault(name, [])
        for completion in completions_of(raw, where):
            mine.append(
                {
                    "id": name,
                    "sample": len(mine),
                    "completion": completion,
                    "tokens": raw.get("tokens"),
                    "finish_reason": raw.get("finish_reason"),
                    "answer": problem.answer,
                }
            )
    if not rows:
        raise ValueError(f"{path} has no rows")
    counts = {name: len(mine) for name, mine in rows.items()}
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most]:
        raise ValueError(
            f"{path}: every problem needs as many completions as the others, but {fewest} has {counts[fewest]} and "
            f"{most} has {counts[most]}; drop or add some"
        )
    return problems, rows


def to_problem(row: dict[str, Any], where: str) -> Problem:
    """With an `id` alone the problem's text is the id."""
    text, answer = row.get("problem") or row.get("id"), row.get("answer")
    if not isinstance(text, str | int) or isinstance(text, bool):
        raise ValueError(f"{where} has neither a `problem` nor an `id`; it has: {', '.join(row)}")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
        raise ValueError(f"{where}: the answer is {answer!r}, not a text or number")
    others = {key: value for key, value in row.items() if key not in OURS}
    return Problem(str(text).strip(), str(answer).strip(), others)


def completions_of(row: dict[str, Any], where: str) -> list[str]:
    """The texts of `completion` or `completions`, each a text or the messages of a chat."""
    given = row["completions"] if row.get("completions") is not None else [row.get("completion")]
    for each in given if isinstance(given, list) else [None]:
        is_chat = isinstance(each, list) and each and isinstance(each[-1], dict) and "content" in each[-1]
        if not isinstance(each, str) and not is_chat:
            raise ValueError(
                f"{where}: `completion` must be a text or messages, `completions` a list of them; got {each!r}"
            )
    return [text_of(each) for each in given]
