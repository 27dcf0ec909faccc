"""The rows that stages hand to one another, and how they are kept on disk."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer; `columns` holds whatever else rewards may ask for.

    Example: Problem("8*?-9*3=5", "3").id == "p-" + 16 hex digits that depend on problem and answer alone.
    """

    problem: str
    answer: str
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return content_id("p", self.problem, self.answer)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion as it was sampled, graded and used. `length` counts tokens, the end token included.

    `rewards` are unweighted and by name; `advantage` is what the gradient was weighted with, None outside training.
    `seed` is the sampling seed of the whole request batch that this completion was part of.
    """

    problem_id: str
    sample: int
    completion: str
    length: int
    truncated: bool
    rewards: dict[str, float | None]
    seed: int
    advantage: float | None = None

    def row(self) -> dict[str, Any]:
        """Flat, one column a reward: `reward/accuracy`."""
        row = asdict(self)
        rewards = row.pop("rewards")
        return {**row, **{f"reward/{name}": value for name, value in rewards.items()}}


def content_id(prefix: str, *parts: str) -> str:
    return f"{prefix}-{digest(json.dumps(parts))[:16]}"


def digest(content: str | bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def seed_from(text: str) -> int:
    """A sampling seed, 32 bits, that follows from a text alone."""
    return int(digest(text)[:8], 16)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A table with every column that some row has; where a row lacks one it is null there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = list(rows)
    columns = dict.fromkeys(name for row in kept for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist([{**dict.fromkeys(columns), **row} for row in kept]), partial)
    partial.replace(path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a jsonl or parquet file. Raises ValueError naming the file and line that is not a JSON object."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(path).to_pylist()
        except OSError as error:  # pyarrow's own errors are OSErrors and ValueErrors
            raise ValueError(f"{path} is not a readable parquet file: {error}") from None
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error.msg}); write one object a line") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is a {type(row).__name__}, not an object with columns")
            yield row
