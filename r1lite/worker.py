"""One stage: `python -m r1lite.worker STAGE_DIRECTORY`, started by the pipeline, in one process or in several at once.

stdout is for the person (progress, one-line errors); everything that libraries print goes to stderr, which is the log.
Of several processes the main one speaks and writes what is kept, and each has a log of its own.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from r1lite import __version__, models, observe
from r1lite.artifacts import STOP, Artifact, Spec, Stopped
from r1lite.launch import RANK_LOGS, SIGNALS, TRAINS
from r1lite.observe import say
from r1lite.pool import end_with_parent
from r1lite.problems import load_problems
from r1lite.ranks import is_loss, is_main, rank, timeout, wait_for_all, world_size
from r1lite.recipe import KINDS
from r1lite.records import Problem, read_rows
from r1lite.rubric import SET
from r1lite.stages import base, distill, evaluate, grade, grpo, reward_model, sample, select, sft

RUN: dict[str, Callable[..., dict[str, Any]]] = {
    "base": base.run,
    "sft": sft.run,
    "grpo": grpo.run,
    "sample": sample.run,
    "select": select.run,
    "reward_model": reward_model.run,
    "distill": distill.run,
    "eval": evaluate.run,
    "grade": grade.run,
}
SECONDS = 5.0  # that the other processes wait with their failure: the main one's may be the same, and is told better
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class Stage:
    """What a stage's `run` gets besides its config: where to write, and how to find what the config refers to."""

    path: Path
    spec: Spec

    def resolve(self, reference: str) -> Path:
        """The directory of a model, be it an earlier stage's (`$name`), a directory or a hub id."""
        if reference.startswith("$"):
            return Artifact(self.path).parent(reference[1:]).model
        path = models.locate(reference, download=True)
        assert path is not None
        return path

    def table(self, reference: str, kind: str) -> Path:
        """The file of an earlier stage's "problems", "examples" or "rollouts"; another reference as it is."""
        if reference.startswith("$"):
            return Artifact(self.path).parent(reference[1:]).path / f"{kind}.parquet"
        return Path(reference)

    def problems(self, reference: str, limit: int | None = None) -> list[Problem]:
        """The problems behind a reference; each says in its column `problem_set` where it is from."""
        if reference.startswith("$"):
            rows = list(read_rows(self.table(reference, "problems")))[:limit]
            problems = [Problem(row.pop("problem"), row.pop("answer"), row) for row in rows]
        else:
            problems = load_problems(reference, limit)
        return [replace(problem, columns={**problem.columns, SET: reference}) for problem in problems]


def main(path: Path) -> int:
    end_with_parent()
    if logs := os.environ.get(RANK_LOGS):
        os.dup2(os.open(Path(logs) / f"rank_{rank()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    sys.stdout = sys.stderr
    if not is_main():
        observe.stream = sys.stderr
    artifact = Artifact(path)
    if not logs and artifact.spec.kind in TRAINS:  # several are ended by torchrun where one of them has failed
        for number in SIGNALS:
            signal.signal(number, lambda *_: (path / STOP).touch())
    try:
        with artifact.lock() if is_main() else nullcontext():
            if not artifact.done:
                work(artifact)
    except Stopped as stopped:
        say(f"  {stopped}")
        return 0
    except ValueError as error:
        fail()
        say(f"error: {error}")
        return 1
    except Exception as error:
        fail()
        if "No space left on device" in str(error):  # from Python, safetensors and arrow alike
            say(f"error: the disk is full while writing {path}; free some space or set --runs elsewhere, and run again")
        elif is_loss(error):
            say(
                f"error: another process cannot be reached by rank {rank()} any more, or has not answered for "
                f"{timeout().total_seconds():g} s, which is launch.timeout; the log says more"
            )
        else:
            say(f"error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
        return 1
    return 0


def fail() -> None:
    traceback.print_exc()
    if not is_main():
        time.sleep(SECONDS)


def work(artifact: Artifact) -> None:
    spec = artifact.spec
    start = time.time()
    result = RUN[spec.kind](KINDS[spec.kind].model_validate(spec.config), Stage(artifact.path, spec))
    wait_for_all()
    if not is_main():
        return
    shutil.rmtree(artifact.path / "checkpoints", ignore_errors=True)  # the model is written; nothing resumes from here
    artifact.finish(
        {
            "recipe": spec.recipe,
            "stage": spec.stage,
            "kind": spec.kind,
            "key": spec.key,
            "parents": spec.parents,
            "seconds": round(time.time() - start, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": device(),
            "processes": world_size(),
            "versions": {"r1lite": __version__} | {name: version(name) for name in LIBRARIES},
            "result": result,
        }
    )


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"


def end(code: int) -> NoReturn:
    """Of several processes that have done all each at once: one in thirty was aborted by a library's thread instead."""
    if code or world_size() == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(Path(sys.argv[1])))
