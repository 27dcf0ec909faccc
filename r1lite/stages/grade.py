"""Grading of completions that someone else made: the metrics and the report of an evaluation, without its sampling."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import protocol
from r1lite.judging import ACCURACY, Judge, Row
from r1lite.preflight import prove_golds
from r1lite.prompts import text_of
from r1lite.records import Problem, read_rows, write_json, write_parquet
from r1lite.rubric import GIVEN, Asked
from r1lite.stages.config import Reward, RolloutsReference, StageConfig
from r1lite.summary import summarize

if TYPE_CHECKING:
    from r1lite.worker import Stage

# What is read here, and what rewards get anyway; all other columns go to the reward.
OURS = {"problem", "id", "answer", "completion", "completions", "tokens", "finish_reason", "prefill", *GIVEN}


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

    results, sets = [], {}
    for number, name in enumerate(config.rollouts):
        judge = Judge(config.reward, stage.resolve)
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
    asked = [Asked(problems[row["id"]], problems[row["id"]].problem, row["prefill"]) for row in flat]
    for row, verdict in zip(flat, judge(asked, [row["completion"] for row in flat]), strict=True):
        row |= verdict


def read_rollouts(path: Path) -> tuple[dict[str, Problem], dict[str, list[Row]]]:
    """Problems and samples by problem id. Raises ValueError naming the row that is not right."""
    problems: dict[str, Problem] = {}
    rows: dict[str, list[Row]] = {}
    for number, raw in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        problem = to_problem(raw, where)
        name = str(raw.get("problem") or raw["id"]).strip()
        if problems.setdefault(name, problem).answer != problem.answer:
            answers = f"{problems[name].answer!r} and {problem.answer!r}"
            raise ValueError(f"{where}: the problem {name[:60]!r} has two answers, {answers}")
        mine = rows.setdefault(name, [])
        mine += [{"id": name, "sample": len(mine) + place, **row} for place, row in enumerate(samples_of(raw, where))]
    if not rows:
        raise ValueError(f"{path} has no rows")
    fewest, most = (pick(rows, key=lambda name: len(rows[name])) for pick in (min, max))
    if len(rows[fewest]) != len(rows[most]):
        raise ValueError(
            f"{path}: every problem needs as many completions as the others, but {fewest[:60]!r} has "
            f"{len(rows[fewest])} and {most[:60]!r} has {len(rows[most])}; drop or add some"
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


def samples_of(row: dict[str, Any], where: str) -> list[Row]:
    """The samples of a row: its `completion`, or each of its `completions`, a text or the messages of a chat.

    `tokens` and `finish_reason` are known of a single completion only.
    """
    many = row.get("completions")
    given = [row.get("completion")] if many is None else many
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: `completions` must be a list of texts or messages; got {given!r}")
    for each in given:
        last = each[-1] if isinstance(each, list) and each else None
        if not isinstance(last["content"] if isinstance(last, dict) and "content" in last else each, str):
            raise ValueError(f"{where}: a completion must be a text, or messages whose content is one; got {each!r}")
    tokens, reason = (None, None) if many is not None else (row.get("tokens"), row.get("finish_reason"))
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool)):
        raise ValueError(f"{where}: `tokens` must be how many the completion has; got {tokens!r}")
    facts = {
        "tokens": tokens,
        "finish_reason": reason,
        "prefill": row.get("prefill") or "",
        "answer": str(row["answer"]),
    }
    # A lone surrogate, half of a character, cannot be written as UTF-8.
    return [{"completion": text_of(each).encode("utf-8", "replace").decode(), **facts} for each in given]
