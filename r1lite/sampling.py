"""Many completions of many problems, kept a part at a time, so that an interruption costs only what was in flight."""

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from r1lite.endpoint import Endpoint, EndpointEngine
from r1lite.engines import Request, Sampling
from r1lite.fleet import open_engine
from r1lite.observe import Progress, say
from r1lite.prompts import encode, opening, prompt_text, render
from r1lite.ranks import is_main, join, rank, wait_for_all, world_size
from r1lite.records import Problem, read_rows, seed_from, write_parquet
from r1lite.rubric import Asked

if TYPE_CHECKING:
    from r1lite.engines import Finished

Row = dict[str, Any]


class Decoding(Protocol):
    """What a stage's config says about how to sample."""

    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...


@dataclass(frozen=True)
class Task:
    """A problem of a named set as it is put to a model, and how many completions of it are wanted.

    `ids` are the prompt's tokens; none are known of a model that is served elsewhere.
    """

    source: str
    asked: Asked
    ids: list[int]
    samples: int

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.asked.problem.id


# From all tasks and the rows that are there already to the missing ones as they come.
Source = Callable[[list[Task], list[Row]], Generator[list[Row]]]


def put(prompt: str, tokenizer: Any, source: str, problem: Problem, samples: int) -> Task:
    rendered = render(prompt, problem.problem)
    asked = Asked(problem, rendered, opening(prompt_text(tokenizer, rendered)))
    return Task(source, asked, encode(tokenizer, rendered), samples)


def put_elsewhere(prompt: str, source: str, problem: Problem, samples: int) -> Task:
    """For a model that is served elsewhere, whose chat template is not known here."""
    rendered = render(prompt, problem.problem)
    return Task(source, Asked(problem, rendered, opening(rendered) if isinstance(rendered, str) else ""), [], samples)


def sample_missing(
    name: str,
    folder: Path,
    tasks: list[Task],
    source: Source,
    grade: Callable[[list[Row]], None],
    is_right: Callable[[Row], bool],
) -> list[Row]:
    """All graded samples of the tasks: those that an interrupted run has left in `folder`, and the missing ones.

    What the source hands over is written before it is graded, a part file at a time, so a crash costs little. Of
    several processes each makes its share of the tasks' samples; the main one gets the rows of all, the others none.
    """
    join()
    there = sorted(folder.glob("part_*.parquet"))
    rows = [row for part in there for row in read_rows(part)]
    wait_for_all()  # until none would see what another makes
    own = tasks[rank() :: world_size()]
    keys = {task.key for task in own}
    left = [row for row in rows if (row["problems"], row["id"]) in keys]
    progress = Progress(sum(task.samples for task in own), len(left))
    among = f" by each of {world_size()} processes" if world_size() > 1 else ""
    say(f"  {name}: {progress.total - progress.done} samples to make{among}, {progress.done} are there")
    if is_main():
        grade(rows)
    start, tokens = time.monotonic(), 0
    with closing(make_missing(source, own, left, folder, len(there))) as parts:
        for fresh in parts:
            if not is_main():
                continue
            grade(fresh)
            rows += fresh
            tokens += sum(row["tokens"] or 0 for row in fresh)
            progress.advance(len(fresh))
            right = sum(map(is_right, rows)) / len(rows)
            speed = f"{tokens / (time.monotonic() - start):,.0f} tokens/s"
            say(f"  {progress.done}/{progress.total} samples  right {right:.3f}  {speed}  ETA {progress.eta()}")
    wait_for_all()
    if not is_main():
        return []
    others = [part for part in sorted(folder.glob("part_*.parquet")) if part not in there and not is_own(part)]
    of_others = [row for part in others for row in read_rows(part)]
    grade(of_others)
    return rows + of_others


def make_missing(source: Source, tasks: list[Task], rows: list[Row], folder: Path, first: int) -> Generator[list[Row]]:
    """Have the samples made that `rows` lack, and write each part as it comes; `first` is the number of the first."""
    if len(rows) == sum(task.samples for task in tasks):
        return
    with closing(source(tasks, rows)) as parts:
        for number, fresh in enumerate(parts, first):
            write_parquet(folder / f"part_{rank():03d}_{number:06d}.parquet", fresh)
            yield fresh


def is_own(part: Path) -> bool:
    return part.name.startswith(f"part_{rank():03d}_")


def from_engine(config: Decoding, engine_name: str, path: Path, tokenizer: Any) -> Source:
    """Samples of the model in a directory, by vLLM or transformers."""

    def make(tasks: list[Task], rows: list[Row]) -> Generator[list[Row]]:
        taken = Counter((row["problems"], row["id"]) for row in rows)
        missing = [task for task in tasks if taken[task.key] < task.samples]
        # vLLM's stream of random numbers would repeat itself for the samples that an interrupted run has left.
        seed = seed_from(f"{config.seed}/{len(rows)}" + (f"/{rank()}" if rank() else ""))
        longest = max(len(task.ids) for task in missing) + config.max_tokens
        requests = [Request(task.ids, task.samples - taken[task.key]) for task in missing]
        sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=config.seed)
        with closing(open_engine(engine_name, path, tokenizer, longest, seed)) as engine:
            for finished in engine.stream(requests, sampling):
                yield to_rows(finished, missing, taken, tokenizer)

    return make


def to_rows(finished: list["Finished"], tasks: list[Task], taken: Counter, tokenizer: Any) -> list[Row]:
    """Samples as they are kept; each gets the next number of its problem."""
    rows = []
    for each in finished:
        task = tasks[each.index]
        texts = tokenizer.batch_decode([c.token_ids for c in each.completions], skip_special_tokens=True)
        for completion, text in zip(each.completions, texts, strict=True):
            reason = "length" if completion.truncated else "stop"
            known = {"token_ids": completion.token_ids, "tokens": len(completion.token_ids), "finish_reason": reason}
            rows.append(to_row(task, taken[task.key], each.seed, text) | known)
            taken[task.key] += 1
    return rows


def from_endpoint(config: Decoding, endpoint: Endpoint) -> Source:
    """Samples of a model that is served elsewhere; their tokens are counted there, and their ids are not known."""

    def make(tasks: list[Task], rows: list[Row]) -> Generator[list[Row]]:
        there = {(row["problems"], row["id"], row["sample"]) for row in rows}
        wanted = [
            (task.asked.prompt, [number for number in range(task.samples) if (*task.key, number) not in there])
            for task in tasks
        ]
        sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=config.seed)
        with closing(EndpointEngine(endpoint)) as engine:
            for served in engine.stream(wanted, sampling):
                if engine.retries:
                    say(f"  asked again: {', '.join(f'{kind} {n}' for kind, n in engine.retries.items())}")
                yield [
                    to_row(tasks[each.index], each.number, each.seed, each.text)
                    | {"token_ids": None, "tokens": each.tokens, "finish_reason": each.finish_reason}
                    for each in served
                ]

    return make


def to_row(task: Task, number: int, seed: int, completion: str) -> Row:
    problem = task.asked.problem
    return {
        "problems": task.source,
        "id": problem.id,
        "problem": problem.problem,
        "prefill": task.asked.prefill,
        "sample": number,
        "seed": seed,
        "completion": completion,
        "answer": problem.answer,
    }
