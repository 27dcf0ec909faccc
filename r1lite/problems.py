"""A data card, or a plain file, becomes problems.

A card is a YAML file that says where a data set comes from (a generator function, a local jsonl or parquet file, or a
hub data set at a pinned revision) and which of its columns are the problem and the answer. `data/chain.yaml#train` is
the split `train` of that card; `my.jsonl` is a file with the columns `problem` and `answer`. Where the hub is out of
reach, `data/aime24.yaml#test@my.jsonl` lets a file stand in for it, and what the card says is checked all the same.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r1lite.models import hub_reachable
from r1lite.plugins import load_function, source_hashes
from r1lite.records import Problem, digest, read_rows
from r1lite.strict_yaml import explain, load_yaml

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)


class Columns(BaseModel):
    """Which columns of the source are what. `answer_after`: the answer is what follows its last occurrence.

    Prompts without a right answer have `answer: null`. `completion` is what a model is to learn to say, as a text or as
    messages of a chat, for those who train on it.

    `wrong` names the columns of a multiple choice's other options. All are put in an order that follows from `seed` and
    their text, and listed below the problem as A), B), ...; the answer becomes a letter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str = "problem"
    answer: str | None = "answer"
    completion: str = "completion"
    answer_after: str | None = None
    wrong: list[str] = Field(default=[], max_length=9)
    seed: int = 0


class Answers(BaseModel):
    """What every answer has to be; `least` and `most` bound integers. Problems are left out whose answer is in `drop`:
    known to be wrong, or such that no grader can read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["integer", "number", "math", "choice"]
    least: int | None = None
    most: int | None = None
    drop: list[str] = []

    def fault(self, answer: str) -> str | None:
        """Why an answer is not of this kind; `math` is whatever the grader can read, which is proven elsewhere."""
        if self.kind == "choice" and not re.fullmatch("[A-J]", answer):
            return "is no letter from A to J"
        if self.kind not in ("integer", "number"):
            return None
        if not NUMBER.fullmatch(answer):
            return "is no plain number"
        value = Fraction(answer.replace(",", ""))
        if self.kind == "integer" and value.denominator != 1:
            return "is no integer"
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            return f"is not within {self.least} and {self.most}"
        return None


class Hub(BaseModel):
    """A data set of the Hugging Face hub; the revision is a commit, so that the card means the same tomorrow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    split: str
    config: str | None = None


class Source(BaseModel):
    """One split: exactly one of `generator` (called with `args`), `file` and `hub`.

    `limit` keeps the first rows; `rows` is how many there have to be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    generator: str | None = None
    args: dict[str, Any] = {}
    file: str | None = None
    hub: Hub | None = None
    limit: int | None = Field(default=None, gt=0)
    rows: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def one_source(self) -> "Source":
        if sum(source is not None for source in (self.generator, self.file, self.hub)) != 1:
            raise ValueError("needs exactly one of generator, file, hub")
        return self


class Card(BaseModel):
    """`answers` is checked on load; `samples` is how many completions a problem its users take by convention."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    license: str
    columns: Columns = Columns()
    answers: Answers | None = None
    samples: int | None = Field(default=None, gt=0)
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


def look_at(reference: str, read: Callable[[str], Iterator[Problem]] | None = None) -> None:
    """Raise ValueError when a reference cannot give problems, or what `read` reads: its first row is read, but nothing
    is downloaded."""
    read = read or iterate
    source, _ = resolve(reference)
    if source.hub is None:
        if next(read(reference), None) is None:
            raise ValueError(f"{reference} holds no problems")
    elif not cached(source.hub) and not hub_reachable():
        raise ValueError(
            f"{reference}: the data set {source.hub.id} is not in the hub's cache, and the hub cannot be reached; "
            f"{remedy(reference)}"
        )


def remedy(reference: str) -> str:
    columns = card_of(reference).columns
    names = ", ".join(["problem", *(["answer"] if columns.answer else []), *columns.wrong])
    marked = f" (with {columns.answer_after} before the answer)" if columns.answer_after else ""
    return f"download it where there is network, or let a file with {names}{marked} stand in: {reference}@FILE.jsonl"


def is_here(reference: str) -> bool:
    """Whether the problems can be loaded without a download."""
    source, _ = resolve(reference)
    return source.hub is None or cached(source.hub)


def cached(hub: Hub) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return (Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / hub.id.replace("/", "___")).is_dir()


def iterate(reference: str) -> Iterator[Problem]:
    source, card = resolve(reference)
    number = 0
    for number, row in enumerate(rows_of(source, reference), 1):
        if number - 1 == source.limit:
            return
        problem = to_problem(row, card.columns, f"{reference}, row {number}")
        if card.answers and problem.answer in card.answers.drop:
            continue
        if card.answers and (fault := card.answers.fault(problem.answer)):
            raise ValueError(f"{reference}, row {number}: the answer {problem.answer!r} {fault}")
        yield problem
    if source.rows is not None and number != source.rows:
        raise ValueError(
            f"{reference} has {number} rows, but its card says {source.rows}: it is not the set that it names"
        )


def iterate_examples(reference: str) -> Iterator[Problem]:
    """What a card, or a file, has to learn, each with the column `completion`; one problem may have several.

    A file's answers are not looked at: what is learned needs none.
    """
    if reference.endswith((".jsonl", ".parquet")) and "#" not in reference:
        rows = enumerate(read_rows(existing(reference)), 1)
        problems: Iterator[Problem] = (
            to_problem(row, Columns(answer=None), f"{reference}, row {number}") for number, row in rows
        )
    else:
        problems = iterate(reference)
    for number, problem in enumerate(problems, 1):
        if not problem.columns.get("completion", "").strip():
            raise ValueError(
                f"{reference}, example {number} has no completion to learn; give every row a text in the column "
                "`completion` (a card maps it under `columns`), or leave it out"
            )
        yield problem


def to_problem(row: dict[str, Any], columns: Columns, where: str) -> Problem:
    for column in (columns.problem, columns.answer):
        if column is not None and column not in row:
            raise ValueError(f"{where} has no column {column!r}; it has: {', '.join(row)} (map them under `columns`)")
    problem, answer = row[columns.problem], row[columns.answer] if columns.answer is not None else ""
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{where}: the problem is {problem!r}, not a text")
    if not isinstance(answer, str) or (columns.answer is not None and not answer.strip()):
        raise ValueError(f"{where}: the answer is {answer!r}, not a text or number")
    if columns.answer_after is not None:
        _, marker, answer = answer.rpartition(columns.answer_after)
        if not marker or not answer.strip():
            raise ValueError(f"{where}: the answer has nothing after {columns.answer_after!r}")
    others = {key: value for key, value in row.items() if key not in (columns.problem, columns.answer)}
    if columns.completion in others:
        others["completion"] = completion_of(others.pop(columns.completion), where)
    if columns.wrong:
        problem, answer = with_options(problem.strip(), answer.strip(), row, columns, where)
        others = {key: value for key, value in others.items() if key not in columns.wrong}
    return Problem(problem.strip(), answer.strip(), others)


def completion_of(value: Any, where: str) -> str:
    """A completion's text; of a chat, the last message."""
    is_chat = isinstance(value, list) and value and isinstance(value[-1], dict)
    text = value[-1].get("content") if is_chat else value
    if not isinstance(text, str):
        raise ValueError(f"{where}: the completion must be a text or messages whose last has one; got {value!r:.80}")
    return text


def with_options(problem: str, answer: str, row: dict[str, Any], columns: Columns, where: str) -> tuple[str, str]:
    """The problem with its options below, and the letter of the right one."""
    wrong = ["" if row.get(column) is None else str(row[column]).strip() for column in columns.wrong]
    if answer in wrong or "" in wrong:
        named = ", ".join(columns.wrong)
        raise ValueError(f"{where}: a wrong option ({named}) is missing or the right one: {[answer, *wrong]}")
    # Two rows of GPQA diamond have a wrong option twice; it is listed once.
    options = sorted({answer, *wrong}, key=lambda option: digest(f"{columns.seed}/{problem}/{option}"))
    lines = [f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([problem, "", *lines]), ascii_uppercase[options.index(answer)]


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
            f"({type(error).__name__}: {str(error)[:200]}); {remedy(reference)}"
        ) from error


def resolve(reference: str) -> tuple[Source, Card]:
    """Where the problems come from, and what their card says; a plain file has a card that says nothing."""
    path, _, rest = reference.partition("#")
    split, _, stand_in = rest.partition("@")
    if not path.endswith((".yaml", ".yml")):
        if rest or not reference.endswith((".jsonl", ".parquet")):
            raise ValueError(f"{reference!r} is not a data card (.yaml#split), a .jsonl or a .parquet file")
        return Source(file=reference), Card(description="", license="", splits={})
    try:
        card = Card.model_validate(load_yaml(existing(path)))
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(explain(error, Card))) from None
    if split not in card.splits:
        raise ValueError(f"{path} has no split {split!r}; write {path}#SPLIT with one of: {', '.join(card.splits)}")
    if not stand_in:
        return card.splits[split], card
    answer = "answer" if card.columns.answer else None
    columns = card.columns.model_copy(update={"problem": "problem", "answer": answer, "completion": "completion"})
    source = Source(file=stand_in, rows=card.splits[split].rows, limit=card.splits[split].limit)
    return source, card.model_copy(update={"columns": columns})


def card_of(reference: str) -> Card:
    """What the card of a reference says."""
    return resolve(reference)[1]


def fingerprint(reference: str) -> dict[str, str]:
    """Hashes of everything that decides what these problems are: card, generator source, file content."""
    source, _ = resolve(reference)
    hashes = {}
    if (path := reference.partition("#")[0]) != reference:
        hashes[path] = digest(Path(path).read_bytes())
    if source.generator is not None:
        hashes |= source_hashes(source.generator)
    if source.file is not None:
        hashes[source.file] = digest(existing(source.file).read_bytes())
    return hashes


def existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})")
    return Path(path)
