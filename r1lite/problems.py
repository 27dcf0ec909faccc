"""A data card, or a plain file, becomes problems.

A card is a YAML file that says where a data set comes from (a generator function, a local jsonl or parquet file, or a
hub data set at a pinned revision) and which of its columns are the problem and the answer. `data/chain.yaml#train` is
the split `train` of that card; `my.jsonl` is a file with the columns `problem` and `answer`.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r1lite.models import hub_reachable
from r1lite.plugins import load_function, source_hashes
from r1lite.records import Problem, digest, read_rows
from r1lite.strict_yaml import explain, load_yaml


class Columns(BaseModel):
    """Which columns of the source are what. `answer_after`: the answer is what follows its last occurrence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str = "problem"
    answer: str = "answer"
    answer_after: str | None = None


class Hub(BaseModel):
    """A data set of the Hugging Face hub; the revision is a commit, so that the card means the same tomorrow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    split: str
    config: str | None = None


class Source(BaseModel):
    """One split: exactly one of `generator` (called with `args`), `file` and `hub`; `limit` keeps the first rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generator: str | None = None
    args: dict[str, Any] = {}
    file: str | None = None
    hub: Hub | None = None
    limit: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def one_source(self) -> "Source":
        if sum(source is not None for source in (self.generator, self.file, self.hub)) != 1:
            raise ValueError("needs exactly one of generator, file, hub")
        return self


class Card(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    license: str
    columns: Columns = Columns()
    splits: dict[str, Source]


def load_problems(reference: str, limit: int | None = None) -> list[Problem]:
    """The problems behind a reference, at most `limit`. Raises ValueError for anything that is not right about them."""
    problems: dict[str, Problem] = {}
    for problem in iterate(reference):
        problems.setdefault(problem.id, problem)
        if len(problems) == limit:
            break
    if not problems:
        raise ValueError(f"{reference} holds no problems")
    return list(problems.values())


def look_at(reference: str) -> None:
    """Raise ValueError when a reference cannot give problems: its first row is read, but nothing is downloaded."""
    source, _ = resolve(reference)
    if source.hub is None:
        load_problems(reference, limit=1)
    elif not cached(source.hub) and not hub_reachable():
        raise ValueError(
            f"{reference}: the data set {source.hub.id} is not in the hub's cache, and the hub cannot be reached; "
            "download it where there is network, or name a local jsonl or parquet file instead"
        )


def is_here(reference: str) -> bool:
    """Whether the problems can be loaded without a download."""
    source, _ = resolve(reference)
    return source.hub is None or cached(source.hub)


def cached(hub: Hub) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return (Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / hub.id.replace("/", "___")).is_dir()


def iterate(reference: str) -> Iterator[Problem]:
    source, columns = resolve(reference)
    for number, row in enumerate(rows_of(source, reference), 1):
        if number - 1 == source.limit:
            return
        yield to_problem(row, columns, f"{reference}, row {number}")


def to_problem(row: dict[str, Any], columns: Columns, where: str) -> Problem:
    for column in (columns.problem, columns.answer):
        if column not in row:
            raise ValueError(f"{where} has no column {column!r}; it has: {', '.join(row)} (map them under `columns`)")
    problem, answer = row[columns.problem], row[columns.answer]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{where}: the problem is {problem!r}, not a text")
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{where}: the answer is {answer!r}, not a text or number")
    if columns.answer_after is not None:
        _, marker, answer = answer.rpartition(columns.answer_after)
        if not marker or not answer.strip():
            raise ValueError(f"{where}: the answer has nothing after {columns.answer_after!r}")
    others = {key: value for key, value in row.items() if key not in (columns.problem, columns.answer)}
    return Problem(problem.strip(), answer.strip(), others)


def rows_of(source: Source, reference: str) -> Iterable[dict[str, Any]]:
    if source.generator is not None:
        rows: Iterable[dict[str, Any]] = load_function(source.generator)(**source.args)
        return rows
    if source.file is not None:
        return read_rows(existing(source.file))
    assert source.hub is not None
    return hub_rows(source.hub, reference)


def hub_rows(hub: Hub, reference: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        rows: Iterable[dict[str, Any]] = load_dataset(hub.id, hub.config, revision=hub.revision, split=hub.split)
        return rows
    except Exception as error:  # datasets raises a dozen kinds for one cause
        raise ValueError(
            f"{reference}: cannot load the data set {hub.id} from the hub "
            f"({type(error).__name__}: {str(error)[:200]}); "
            "download it where there is network, or name a local jsonl or parquet file instead"
        ) from error


def resolve(reference: str) -> tuple[Source, Columns]:
    path, _, split = reference.partition("#")
    if not path.endswith((".yaml", ".yml")):
        if split or not path.endswith((".jsonl", ".parquet")):
            raise ValueError(f"{reference!r} is not a data card (.yaml#split), a .jsonl or a .parquet file")
        return Source(file=path), Columns()
    try:
        card = Card.model_validate(load_yaml(existing(path)))
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(explain(error, Card))) from None
    if split not in card.splits:
        raise ValueError(f"{path} has no split {split!r}; write {path}#SPLIT with one of: {', '.join(card.splits)}")
    return card.splits[split], card.columns


def fingerprint(reference: str) -> dict[str, str]:
    """Hashes of everything that decides what these problems are: card, generator source, file content."""
    source, _ = resolve(reference)
    path = reference.partition("#")[0]
    hashes = {path: digest(Path(path).read_bytes())}
    if source.generator is not None:
        hashes |= source_hashes(source.generator)
    if source.file is not None:
        hashes[source.file] = digest(existing(source.file).read_bytes())
    return hashes


def existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})")
    return Path(path)
