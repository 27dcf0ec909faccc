"""How the process of a stage is started: alone, or as many of them as `launch:` says, by `accelerate launch`."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from r1lite.stages.config import Strict
from r1lite.strict_yaml import load_yaml
from r1lite.watchdog import SYNC_TIMEOUT

WORKER = "r1lite.worker"
PROVEN = "MULTI_GPU"  # what accelerate calls data-parallel training
RANK_LOGS = "R1LITE_RANK_LOGS"  # the folder in which each of several processes keeps its own log
TRAINS = ("base", "sft", "grpo", "reward_model", "distill")  # kinds of stages that write checkpoints as they go
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # upon which they write one more and end; Slurm sends them before a requeue
ALONE = ("select", "grade")  # those that are one process in any case
SAMPLES = ("eval", "sample")  # and those that have an engine on each GPU without being launched


class Launch(Strict):
    """`launch:` of a recipe. It decides how fast its stages run and never what they make, so it is in no stage's key.

    `accelerate` is a file of accelerate's own settings, which says how training is sharded; `gpus` are the processes
    that share a step, one a GPU, or on a machine without any so many on its CPU; all GPUs where it is not said. A
    weight sync that takes longer than `sync_timeout` ends the run, with the stacks of that process in its log.
    """

    accelerate: str = Field("recipes/accelerate/ddp.yaml", description="a config file of accelerate's")
    gpus: int | None = Field(None, gt=0)
    sync_timeout: float = Field(300.0, gt=0, description="seconds after which a weight sync is taken to hang")
    environment: dict[str, str] = Field({}, description="variables for the processes, such as {NCCL_DEBUG: WARN}")

    def faults(self) -> Iterator[str]:
        """What the types cannot say, each as `field: what is wrong and what to do`."""
        file = Path(self.accelerate)
        if not file.is_file():
            yield f"accelerate: there is no file {file}; recipes/accelerate/ has those that are shipped"
            return
        try:
            settings = load_yaml(file)
        except ValueError as error:
            yield f"accelerate: {error}"
            return
        kind = settings.get("distributed_type") if isinstance(settings, dict) else None
        if kind != PROVEN:
            yield (
                f"accelerate: {file} must state distributed_type: {PROVEN}, with the whole model on each GPU; "
                f"what shards the model itself has not been proven with r1lite yet; got {kind!r}"
            )

    def processes(self) -> int:
        return self.gpus or max(1, count_gpus())


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see, without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([name for name in named.split(",") if name])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def is_launched(launch: Launch | None, kind: str) -> bool:
    return launch is not None and kind not in ALONE


def command(launch: Launch | None, kind: str, stage: Path) -> list[str]:
    """What starts a stage's worker, or workers."""
    if launch is None or not is_launched(launch, kind):
        return [sys.executable, "-m", WORKER, str(stage)]
    processes = launch.processes()
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", launch.accelerate),
        *("--num_processes", str(processes)),
        *("--num_machines", "1"),
        *("--main_process_port", "0"),  # one that is free
        *("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) // processes))),
        *("--module", WORKER, str(stage)),
    ]


def environment(launch: Launch | None, kind: str, rank_logs: Path) -> dict[str, str]:
    """What every worker gets: the repository on its path, wherever it runs, and where it is alone one GPU to train on.

    Without a launcher transformers would wrap the model in DataParallel on several GPUs, which TRL refuses.
    """
    package = str(Path(__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    if launch is not None and is_launched(launch, kind):
        own = {RANK_LOGS: str(rank_logs), SYNC_TIMEOUT: str(launch.sync_timeout)}
        return {**found, **own, **launch.environment}
    if kind not in SAMPLES:
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def how_ended(code: int) -> str:
    """Example: how_ended(-9) == "was killed by signal 9"."""
    return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"


def last_words(log: Path, rank_logs: Path) -> str:
    """Which process was the first to fail, as torchrun tells it in the launcher's log, and the end of its own log; ""
    where that was the main one and has told why."""
    report = re.search(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", log.read_text(errors="replace"), re.S)
    if not report:
        return ""
    rank, code = report[1], int(report[2])
    if rank == "0" and code >= 0:  # it has spoken for itself
        return ""
    own = rank_logs / f"rank_{rank}.log"
    lines = own.read_text(errors="replace").splitlines()[-8:] if own.exists() else []
    return "\n".join([f"rank {rank} {how_ended(code)}; the end of {own}:", *(f"  {line}" for line in lines)])
