"""Rejection sampling's second half: rollouts become examples to train on, by filters (arXiv 2501.12948v2, B.3.3).

Nothing is generated here, so that a filter can be changed without generating again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite.curves import draw_funnel
from r1lite.filters import (
    Filter,
    Row,
    competing,
    failing,
    goes_round,
    in_language,
    longest_paragraph,
    most_diverse,
    sift,
    whole,
    without_duplicates,
    without_near_duplicates,
)
from r1lite.observe import say
from r1lite.records import content_id, read_rows, write_json, write_parquet
from r1lite.stages.config import RolloutsReference, StageConfig, Strict
from rewards.language import LANGUAGES, thought

if TYPE_CHECKING:
    from r1lite.worker import Stage

NEEDED = {"id": str, "problem_id": str, "problem": str, "answer": str, "sample": int, "completion": str}
KNOWN_OR_NOT = ("prefill", "tokens", "finish_reason", "seed")
REWARD = "reward/"


class Keep(Strict):
    """What a rollout has to be to become an example; what is absent is not asked for.

    `least` is the lowest score by reward, and no score is too low. `finished`: not cut off at the length limit.
    `tokens` is a band, both ends in it. About the reasoning, or the whole text where it has no tags: `code: false`
    allows no code block, `longest_paragraph` is in characters, `loops` is how often up to 50 words may not come in a
    row, and `language` is that of each word. Of equal texts for a problem one stays; `near_duplicates` is the
    similarity, of sets of 5 words in a row, from which on they count as equal. `per_problem` is how many stay at most.

    `prefer` says which ones stay of equals, and of too many: the first by sample number, the shorter by tokens, or
    `diverse`: the shortest, and then in turn the one least similar to those that stay already.
    """

    finished: bool = True
    least: dict[str, float] = {}
    tokens: tuple[int, int] | None = None
    code: bool = True
    longest_paragraph: int | None = Field(default=None, gt=0)
    loops: int | None = Field(default=None, gt=1)
    language: Literal[*LANGUAGES] | None = None  # type: ignore[valid-type]
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    per_problem: int | None = Field(default=None, gt=0)
    prefer: Literal["first", "shorter", "diverse"] = "first"


class Config(StageConfig):
    """`pass_rate` keeps the problems whose share of right rollouts lies within; `right_by` is the reward that is at
    least 1 where a rollout is right, the first one where it is absent."""

    PRODUCES: ClassVar[tuple[str, ...]] = ("examples", "problems")

    kind: Literal["select"]
    rollouts: RolloutsReference
    keep: Keep = Keep()
    pass_rate: tuple[float, float] | None = None
    right_by: str | None = None

    def faults(self) -> Iterator[str]:
        if self.keep.tokens and not 0 <= self.keep.tokens[0] <= self.keep.tokens[1]:
            yield f"keep.tokens: must be [LOW, HIGH] with 0 <= LOW <= HIGH; got {list(self.keep.tokens)}"
        if self.pass_rate and not 0 <= self.pass_rate[0] <= self.pass_rate[1] <= 1:
            yield f"pass_rate: must be [LOW, HIGH] with 0 <= LOW <= HIGH <= 1; got {list(self.pass_rate)}"
        if self.keep.prefer != "first" and self.keep.per_problem is None:
            yield f"keep.prefer: {self.keep.prefer} says which ones stay of too many; state keep.per_problem too"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """examples, dropped (each with its `reason`) and problems as .parquet, report.json and curves.png.

    Raises ValueError where the rollouts lack what a filter needs, or where no rollout passes.
    """
    path = stage.table(config.rollouts, "rollouts")
    rows = read_rollouts(path)
    check_asked(config, rows, path)
    rates = pass_rates(config, rows, path)
    problems = read_problems(path, rows)
    kept, reasons, funnel = sift(rows, filters(config, rates))
    write_dropped(stage.path / "dropped.parquet", rows, reasons)
    report = {
        "rows": len(rows),
        "problems": len(problems),
        "funnel": funnel,
        "kept": len(kept),
        "problems_kept": len({row["problem_id"] for row in kept}),
        "tokens": sum(row["tokens"] for row in kept) if all(row["tokens"] is not None for row in kept) else None,
        "pass_rates": in_tenths(list(rates.values())),
    }
    if not kept:
        most = max(funnel, key=lambda line: line["dropped"])["reason"]
        field = most if most == "pass_rate" else f"keep.{most}"
        steps = "\n".join(funnel_lines(report))
        raise ValueError(
            f"no rollout of {path} passes all filters; loosen {field}, which dropped most "
            f"({stage.path / 'dropped.parquet'} has each with its reason):\n{steps}"
        )
    for line in funnel_lines(report):
        say(line)
    write_parquet(stage.path / "examples.parquet", (to_example(row, config.rollouts) for row in kept))
    low, high = config.pass_rate or (0, 1)
    rated = ({**problem, "pass_rate": rates.get(problem["id"])} for problem in problems)
    in_band = (row for row in rated if row["pass_rate"] is None or low <= row["pass_rate"] <= high)
    write_parquet(stage.path / "problems.parquet", in_band)
    write_json(stage.path / "report.json", report)
    draw_funnel(stage.path, report)
    return {name: report[name] for name in ("rows", "kept", "problems_kept", "tokens")}


def filters(config: Config, rates: dict[str, float]) -> dict[str, Filter]:
    """Those that are on, by reason, in the order in which they apply: first what costs nothing to tell, last what
    depends on which others are left."""
    keep = config.keep
    stated: dict[str, Filter] = {}
    if config.pass_rate is not None:
        lowest, highest = config.pass_rate
        stated["pass_rate"] = failing(lambda row: lowest <= rates.get(row["problem_id"], lowest) <= highest)
    if keep.finished:
        stated["finished"] = failing(lambda row: row["finish_reason"] != "length")
    for name, score in keep.least.items():
        stated[f"least.{name}"] = failing(scores_at_least(name, score))
    if keep.tokens is not None:
        low, high = keep.tokens
        stated["tokens"] = failing(lambda row: low <= row["tokens"] <= high)
    if not keep.code:
        stated["code"] = failing(lambda row: "```" not in reasoning_of(row))
    if (longest := keep.longest_paragraph) is not None:
        stated["longest_paragraph"] = failing(lambda row: longest_paragraph(reasoning_of(row)) <= longest)
    if (times := keep.loops) is not None:
        stated["loops"] = failing(lambda row: not goes_round(reasoning_of(row), times))
    if (language := keep.language) is not None:
        stated["language"] = failing(lambda row: in_language(reasoning_of(row), language))
    order = by_sample if keep.prefer == "first" else by_tokens
    stated["duplicates"] = competing(without_duplicates, order)
    if (alike := keep.near_duplicates) is not None:
        stated["near_duplicates"] = competing(lambda rows: without_near_duplicates(rows, alike), order)
    if (count := keep.per_problem) is not None:
        pick = most_diverse if keep.prefer == "diverse" else first_ones
        stated["per_problem"] = competing(lambda rows: pick(rows, count), order)
    return stated


def scores_at_least(name: str, least: float) -> Callable[[Row], bool]:
    return lambda row: row[REWARD + name] is not None and row[REWARD + name] >= least


def reasoning_of(row: Row) -> str:
    return thought(whole(row))


def by_sample(row: Row) -> Any:
    return row["sample"], row["id"]


def by_tokens(row: Row) -> Any:
    return row["tokens"], *by_sample(row)


def first_ones(rows: list[Row], count: int) -> list[Row]:
    return rows[:count]


def read_rollouts(path: Path) -> list[Row]:
    """Rows that all have the same columns, `KNOWN_OR_NOT` among them. Raises ValueError for what is not right."""
    raw = list(read_rows(path))
    if not raw:
        raise ValueError(f"{path} has no rows")
    columns = list(dict.fromkeys([*(name for row in raw for name in row), *KNOWN_OR_NOT]))
    check_columns(path, columns, list(NEEDED))
    rows = [{name: row.get(name) for name in columns} for row in raw]
    for number, row in enumerate(rows, 1):
        for name, kind in NEEDED.items():
            if not isinstance(row[name], kind):
                wanted = "a whole number" if kind is int else "a text"
                raise ValueError(f"{path}, row {number}: `{name}` must be {wanted}; got {row[name]!r:.80}")
        row["prefill"] = row["prefill"] or ""
    if len(twice := {row["id"]: row for row in rows}) != len(rows):
        again = next(row["id"] for row in rows if twice[row["id"]] is not row)
        raise ValueError(f"{path}: two rollouts have the id {again!r}, and an example names the one it came from")
    return rows


def check_columns(path: Path, columns: list[str], needed: list[str]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}, which rollouts need; it has: {', '.join(columns)}")


def check_asked(config: Config, rows: list[Row], path: Path) -> None:
    """Raise ValueError where the config asks for what the rollouts do not have."""
    names = reward_names(rows)
    asked = {f"keep.least.{name}": name for name in config.keep.least}
    asked |= {"right_by": config.right_by} if config.right_by is not None else {}
    for field, name in asked.items():
        if name not in names:
            raise ValueError(f"{field}: {path} has no reward {name!r}; it has: {', '.join(names) or 'none'}")
    counted = {"keep.tokens": config.keep.tokens is not None, "keep.prefer": config.keep.prefer != "first"}
    for field in (field for field, on in counted.items() if on):
        for row in rows:
            if row["tokens"] is None:
                raise ValueError(
                    f"{field}: {path} does not say how many `tokens` the rollout {row['id']} has; "
                    f"add them, or leave {field} out"
                )


def reward_names(rows: list[Row]) -> list[str]:
    return [column.removeprefix(REWARD) for column in rows[0] if column.startswith(REWARD)]


def pass_rates(config: Config, rows: list[Row], path: Path) -> dict[str, float]:
    """The share of right rollouts by problem; of a problem whose rollouts have no score there is none."""
    right_by = config.right_by or next(iter(reward_names(rows)), None)
    if right_by is None and config.pass_rate is not None:
        raise ValueError(f"pass_rate: {path} has no reward/NAME column that says what is right; grade the rollouts")
    if right_by is None:
        return {}
    verdicts = defaultdict(list)
    for row in rows:
        if (score := row[REWARD + right_by]) is not None:
            verdicts[row["problem_id"]].append(score >= 1)
    return {name: sum(mine) / len(mine) for name, mine in verdicts.items()}


def read_problems(path: Path, rows: list[Row]) -> list[Row]:
    """The problems that have rollouts, with all columns that the stage that sampled has written beside the rollouts;
    of rollouts that lie alone what they say themselves."""
    own = {row["problem_id"]: {"id": row["problem_id"], **part(row, "problem", "answer")} for row in rows}
    beside = path.with_name("problems.parquet")
    if not beside.exists():
        return list(own.values())
    listed = list(read_rows(beside))
    known = {row.get("id"): row for row in listed}
    if missing := [name for name in own if name not in known]:
        raise ValueError(
            f"{beside} has no problem with the id {missing[0]!r}, of which {path} has rollouts; "
            "where it is of something else, move the rollouts away from it"
        )
    return [row for row in known.values() if row.get("id") in own]


def part(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def to_example(row: Row, source: str) -> Row:
    completion = whole(row)
    return {
        "id": content_id("e", row["problem"], completion),
        **part(row, "problem_id", "problem", "answer"),
        "completion": completion,
        **part(row, "tokens", "sample", "seed"),
        "rollout": row["id"],
        "rollouts": source,
        **{REWARD + name: row[REWARD + name] for name in reward_names([row])},
    }


def write_dropped(path: Path, rows: list[Row], reasons: dict[str, str]) -> None:
    """The rows that have a reason; where none has, all rows still say what the columns are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    explained = [{**row, "reason": reasons.get(row["id"], "")} for row in rows]
    schema = pa.Table.from_pylist(explained).schema
    pq.write_table(pa.Table.from_pylist([row for row in explained if row["reason"]], schema=schema), path)


def in_tenths(rates: list[float]) -> dict[str, int]:
    """How many problems have a pass rate of at least so much, and less than a tenth more; none where none is known."""
    tenths = [int(rate * 10) for rate in rates]
    return {f"{tenth / 10:.1f}": tenths.count(tenth) for tenth in range(11)} if rates else {}


def funnel_lines(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['rows']:,} rollouts of {report['problems']:,} problems"]
    lines += [f"  {each['reason']}: {each['dropped']:,} dropped, {each['left']:,} left" for each in report["funnel"]]
    tokens = "" if report["tokens"] is None else f", {report['tokens']:,} tokens"
    return [*lines, f"{report['kept']:,} examples of {report['problems_kept']:,} problems{tokens}"]
