"""What a stage tells while it runs: rows in metrics.jsonl, and one line a step for the person who watches."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from r1lite.records import write_text

stream: TextIO | None = sys.__stdout__  # where `say` speaks; a command whose stdout is data sets it to stderr


def say(line: str) -> None:
    """A line for the person; libraries' chatter goes to stderr and the log instead."""
    print(line, file=stream, flush=True)


class MetricsFile:
    """metrics.jsonl: one JSON object a step, appended and flushed, with `step` and `time` (seconds since the epoch)."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Rows past `resume_step` are dropped: they belong to steps that are about to be taken again."""
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line.endswith("}")]


class Progress:
    """Counts work done and tells how long the rest will take."""

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.first = total, done, done
        self.clock, self.start = clock, clock()

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def eta(self) -> str:
        fresh = self.done - self.first
        if not fresh:
            return "?"
        return duration((self.total - self.done) * (self.clock() - self.start) / fresh)


def duration(seconds: float) -> str:
    """Example: duration(75) == "1m15s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
