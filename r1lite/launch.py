"""How the process of a stage is started: alone, or as many of them as `launch:` says, by `accelerate launch`.

Of several machines each starts its own; machines.py has what they tell one another.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from r1lite.ranks import TIMEOUT
from r1lite.stages.config import Strict
from r1lite.strict_yaml import load_yaml
from r1lite.watchdog import SYNC_TIMEOUT

WORKER = "r1lite.worker"
# What r1lite has been proven with, as accelerate calls it: the whole model on each GPU, a part of it, and DeepSpeed's
# ZeRO; with what a file has to say of the latter two, and one that does.
WHOLE, SHARED, ZERO = "MULTI_GPU", "FSDP", "DEEPSPEED"
STATED: dict[Any, tuple[str, dict[str, tuple], str]] = {
    SHARED: (
        "fsdp_config",
        {
            "fsdp_version": (2,),
            "fsdp_state_dict_type": ("FULL_STATE_DICT",),
            "fsdp_cpu_ram_efficient_loading": (False,),
        },
        "fsdp2.yaml",
    ),
    ZERO: (
        "deepspeed_config",
        {
            "zero_stage": (2, 3),
            "zero3_init_flag": (False,),
            "zero3_save_16bit_model": (True,),
            "deepspeed_multinode_launcher": ("standard",),
        },
        "zero3.yaml",
    ),
}
RANK_LOGS = "R1LITE_RANK_LOGS"  # the folder in which each of several processes keeps its own log
TRAINS = ("base", "sft", "grpo", "reward_model", "distill")  # kinds of stages that write checkpoints as they go
# What torchrun tells the processes that it starts, which is about none that these start in turn.
TOLD = re.compile(r"RANK|WORLD_SIZE|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # upon which they write one more and end; Slurm sends them before a requeue
ALONE = ("select", "grade")  # those that are one process in any case
SAMPLES = ("eval", "sample")  # and those that have an engine on each GPU without being launched


class Servers(Strict):
    """`launch.rollouts`: vLLM on GPUs of its own, in servers with a copy of the model each.

    They are on `nodes` machines beside those that train, on which the same `r1lite run` is started; where there are no
    such machines, on the only one that trains, on the GPUs after those that do.
    """

    nodes: int = Field(0, ge=0, description="machines that have nothing but servers")
    tensor_parallel: int = Field(1, gt=0, description="GPUs that share one copy of the model")
    data_parallel: int = Field(1, gt=0, description="copies, that is servers, of each machine")

    @property
    def gpus(self) -> int:
        """Of each machine."""
        return self.tensor_parallel * self.data_parallel

    @property
    def count(self) -> int:
        return max(1, self.nodes) * self.data_parallel


class Launch(Strict):
    """`launch:` of a recipe. It decides how fast its stages run and never what they make, so it is in no stage's key.

    `accelerate` is a file of accelerate's own settings, which says how training is sharded; `gpus` are the processes of
    each machine that share a step, one a GPU, or on a machine without any so many on its CPU; all GPUs where it is not
    said. On each of `num_machines` the same `r1lite run` is started. What is said of them neither here nor there comes
    from Slurm or torchrun, where one of them has started it.
    """

    accelerate: str = Field("recipes/accelerate/ddp.yaml", description="a config file of accelerate's")
    gpus: int | None = Field(None, gt=0)
    num_machines: int | None = Field(None, gt=0)
    main_process_ip: str | None = Field(None, description="where the first machine is reached by the others")
    main_process_port: int | None = Field(None, gt=0, lt=65536)
    timeout: int = Field(1800, gt=0, description="seconds that a process waits for another before it takes it for lost")
    rollouts: Servers | None = Field(None, description="colocate (or null) has vLLM beside each trainer")
    sync_timeout: float = Field(300.0, gt=0, description="seconds after which a weight sync is taken to hang")
    environment: dict[str, str] = Field({}, description="variables for the processes, such as {NCCL_DEBUG: WARN}")

    @field_validator("rollouts", mode="before")
    @classmethod
    def _colocate(cls, value: Any) -> Any:
        return None if value == "colocate" else value

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
        settings = settings if isinstance(settings, dict) else {}
        kind = settings.get("distributed_type")
        if kind not in (WHOLE, SHARED, ZERO):
            yield (
                f"accelerate: {file} must state distributed_type: {WHOLE}, with the whole model on each GPU, {SHARED} "
                f"or {ZERO}; others have not been proven with r1lite; got {kind!r}"
            )
            return
        section, stated, example = STATED.get(kind, ("", {}, ""))
        given = settings.get(section)
        given = given if isinstance(given, dict) else {}
        for key, allowed in stated.items():
            if given.get(key) not in allowed:
                yield (
                    f"accelerate: {file} must state {section}.{key}: {' or '.join(map(str, allowed))}, as "
                    f"recipes/accelerate/{example} does; got {given.get(key)!r}"
                )
        for key in sorted(given.keys() - stated) if kind == ZERO else ():
            yield (
                f"accelerate: {file} must not state {section}.{key}, which has not been proven with r1lite; take it "
                "out, since batches, clipping and precision follow from a stage's trainer"
            )

    def processes(self) -> int:
        """Of each machine that trains."""
        beside = self.rollouts.gpus if self.rollouts and not self.rollouts.nodes else 0
        return self.gpus or max(1, len(gpu_names()) - beside)

    def refuse_missing(self) -> None:
        """Raise ValueError where what it needs is not installed here."""
        if find_spec("deepspeed") is None and load_yaml(Path(self.accelerate))["distributed_type"] == ZERO:
            raise ValueError(
                f"launch.accelerate: {self.accelerate} needs DeepSpeed, which is not installed here; pip install "
                "r1lite[deepspeed], or take recipes/accelerate/fsdp2.yaml"
            )

    def machine(self, rank: int) -> "Machine":
        """This machine among all, of which it has the given rank. Raises ValueError where that cannot be."""
        told = os.environ
        nodes = self.rollouts.nodes if self.rollouts else 0
        all_of_them = int(told.get("SLURM_STEP_NUM_NODES") or told.get("GROUP_WORLD_SIZE") or 1 + nodes)
        count = self.num_machines or all_of_them - nodes
        if count > 1 and self.rollouts and not nodes:
            raise ValueError(
                f"launch.rollouts: {count} machines train, and servers have to be on machines of their own then; set "
                "launch.rollouts.nodes"
            )
        if count < 1:
            raise ValueError(f"launch.rollouts.nodes: {nodes} of {all_of_them} machines leave none that trains")
        if rank >= count + nodes:
            raise ValueError(
                f"this is machine {rank}, the first being 0, and launch.num_machines is {count}"
                + (f", besides the {nodes} of launch.rollouts" if nodes else "")
                + "; set it to as many as there are, or start `r1lite run` on the first one alone"
            )
        address = self.main_process_ip or told.get("MASTER_ADDR") or first_host(told.get("SLURM_STEP_NODELIST", ""))
        if count + nodes > 1 and not address:
            raise ValueError(
                "launch.main_process_ip: say where the others reach the first machine, as in "
                "--set launch.main_process_ip=10.0.0.1; neither Slurm nor torchrun has told it"
            )
        port = self.main_process_port or int(told.get("MASTER_PORT", "29500"))
        return Machine(rank, count, address, port, nodes)


@dataclass(frozen=True)
class Machine:
    """One of `count` that train and `rollout_nodes` that serve them; the first is reached at an address and port."""

    rank: int = 0
    count: int = 1
    address: str = ""
    port: int = 0  # one that is free
    rollout_nodes: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.count + self.rollout_nodes == 1

    @property
    def serves(self) -> bool:
        return self.rank >= self.count


def first_host(nodes: str) -> str:
    """Of a list as Slurm writes it. Example: first_host("gpu[017-019,030]") == "gpu017"."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).partition(",")[0]


def gpu_names() -> list[str]:
    """Of NVIDIA's GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES names them; without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def is_launched(launch: Launch | None, kind: str) -> bool:
    return launch is not None and kind not in ALONE


def command(launch: Launch | None, kind: str, stage: Path, machine: Machine) -> list[str]:
    """What starts a stage's worker, or those of this machine."""
    if launch is None or not is_launched(launch, kind):
        return [sys.executable, "-m", WORKER, str(stage)]
    processes = launch.processes()
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", launch.accelerate),
        *("--num_processes", str(processes * machine.count)),
        *("--num_machines", str(machine.count)),
        *(("--machine_rank", str(machine.rank), "--main_process_ip", machine.address) if machine.count > 1 else ()),
        *("--main_process_port", str(machine.port if machine.count > 1 else 0)),  # 0: one that is free
        *("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) // processes))),
        *("--module", WORKER, str(stage)),
    ]


def environment(launch: Launch | None, kind: str, rank_logs: Path) -> dict[str, str]:
    """What every worker gets: the repository on its path, wherever it runs, and no more GPUs than there are processes.

    transformers would wrap the model of one process in DataParallel on several GPUs, which TRL refuses.
    """
    found = {"PYTHONPATH": package_path(), "TOKENIZERS_PARALLELISM": "false"}
    if launch is not None and is_launched(launch, kind):
        if kind in TRAINS and launch.processes() < len(gpu_names()):
            found["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_names()[: launch.processes()])
        own = {RANK_LOGS: str(rank_logs), SYNC_TIMEOUT: str(launch.sync_timeout), TIMEOUT: str(launch.timeout)}
        # torchrun would end all at once upon a SIGTERM that reaches it.
        return {**found, **own, "PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT", **launch.environment}
    if kind not in SAMPLES:
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def package_path() -> str:
    """PYTHONPATH with the repository in it."""
    package = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


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
