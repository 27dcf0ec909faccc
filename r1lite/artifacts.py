"""A stage's directory: its key, its manifest, its lock, and where it came from.

`runs/<recipe>/<stage>-<key>/` holds spec.json (what is to be made, from what), logs/, metrics.jsonl, checkpoints/, the
outputs, and manifest.json. The manifest is written last, by an atomic rename: where it is, the stage is done.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1lite.records import digest, write_json

STOP = "stop"  # a file of this name tells that a stage was asked to end, on whichever machine
RUNNING = "running.json"  # and one of this is there as long as all of its machines are at work on it
SCHEMA = 1  # raise it when a stage of the same config would no longer mean the same


@dataclass(frozen=True)
class Spec:
    """What a stage directory is to hold. `inputs` is all that decides its content; the key is its hash."""

    recipe: str
    stage: str
    kind: str
    inputs: dict[str, Any]
    parents: dict[str, str]  # stage name -> its directory, as seen from the folder in which this one lies
    config: dict[str, Any]

    @property
    def key(self) -> str:
        return digest(json.dumps(self.inputs, sort_keys=True))[:12]


class Stopped(Exception):
    """A stage was asked to end, and did so at a point from which the same command goes on."""


class Locked(ValueError):
    """Another process is writing this stage."""


@dataclass(frozen=True)
class Artifact:
    path: Path

    @property
    def spec(self) -> Spec:
        return Spec(**read_json(self.path / "spec.json"))

    def parent(self, stage: str) -> "Artifact":
        return Artifact((self.path.resolve().parent / self.spec.parents[stage]).resolve())

    @property
    def done(self) -> bool:
        return (self.path / "manifest.json").exists()

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def log(self) -> Path:
        """The log of the attempt that is now starting: logs are never overwritten."""
        folder = self.path / "logs"
        return folder / f"attempt_{len(list(folder.glob('attempt_*.log'))) + 1}.log"

    def prepare(self, spec: Spec) -> None:
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        write_json(self.path / "spec.json", asdict(spec))

    def manifest(self) -> dict[str, Any]:
        """The manifest of a stage that is done; ValueError when it, or an output that it lists, is damaged."""
        remedy = f"delete {self.path} and run again"
        manifest = read_json(self.path / "manifest.json")
        if not isinstance(manifest, dict) or "outputs" not in manifest:
            raise ValueError(f"{self.path / 'manifest.json'} is not a manifest; {remedy}")
        for name, size in manifest["outputs"].items():
            output = self.path / name
            if not output.is_file() or output.stat().st_size != size:
                raise ValueError(f"{output} is missing or not the {size} bytes that its manifest says; {remedy}")
        return manifest

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the manifest: every file that is an output with its size, and `facts` about the run."""
        passing = {"spec.json", "manifest.json", "lock", STOP, RUNNING}
        outputs = {
            str(path.relative_to(self.path)): path.stat().st_size
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name not in passing and "logs" not in path.relative_to(self.path).parts
        }
        write_json(self.path / "manifest.json", {**facts, "outputs": outputs})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for writing; the kernel frees it when this process ends, however it ends."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise Locked(
                    f"{self.path} is being written by process {file.read() or '?'}; wait for it, or stop it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete {path.parent} and run again") from None
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None


def earlier(runs: Path, recipe: str, stage: str) -> list[Artifact]:
    """All artifacts of a stage, the newest first."""
    found = [path.parent for path in (runs / recipe).glob(f"{stage}-????????????/spec.json")]
    return [
        Artifact(path) for path in sorted(found, key=lambda path: (path / "spec.json").stat().st_mtime, reverse=True)
    ]


def link_latest(runs: Path, recipe: str, stage: str, artifact: Artifact) -> Path:
    """Point runs/<recipe>/latest/<stage> at an artifact, in one step."""
    link = runs / recipe / "latest" / stage
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name(f".{stage}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(artifact.path, link.parent))
    partial.replace(link)
    return link


# Checkpoints. transformers writes them file by file, so each gets a seal once it is whole.

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    write_json(checkpoint / SEAL, file_sizes(checkpoint))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; what a crash left half-written, or what was damaged since, is removed."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def is_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / SEAL).read_text()) == file_sizes(checkpoint))
    except (OSError, ValueError):
        return False


def file_sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}
