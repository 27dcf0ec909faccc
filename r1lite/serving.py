"""Servers of rollouts, as `launch.rollouts` wants them: how they are started, beside a stage that trains, and ended.

rollout_server.py is what runs in each of them, and vllm_servers.py what a trainer's processes see of them.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event

from r1lite.artifacts import Spec
from r1lite.launch import TOLD, Launch, Machine, gpu_names, package_path
from r1lite.pool import end_with_parent
from r1lite.watchdog import ending_when

SERVERS = "R1LITE_ROLLOUT_SERVERS"  # what a trainer's processes are told of them
TOKEN = "token"  # the file of an attempt that has what opens them
NAME = "rollout_server_"  # what the files of each of them begin with
LOOPBACK = "127.0.0.1"
SECONDS = 0.5  # between two looks at whether they live


def is_served(launch: Launch | None, spec: Spec) -> bool:
    """Whether a stage takes its rollouts from servers."""
    served = launch is not None and launch.rollouts is not None
    return served and spec.kind in ("grpo", "distill") and spec.config["engine"] != "transformers"


def environment(launch: Launch) -> dict[str, str]:
    """What a trainer's processes get to know."""
    assert launch.rollouts is not None
    told = {"servers": launch.rollouts.count, "tensor_parallel": launch.rollouts.tensor_parallel}
    return {SERVERS: json.dumps(told)}


def write_token(folder: Path) -> None:
    """Before the first server of an attempt is started."""
    with open(os.open(folder / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))


def address_files(folder: Path) -> list[Path]:
    """Of those servers that have begun to listen, in an order that all processes find."""
    return sorted(folder.glob(f"{NAME}*.json"))


def commands(launch: Launch, machine: Machine, folder: Path) -> list[tuple[str, list[str]]]:
    """What starts this machine's servers, each with its GPUs as CUDA_VISIBLE_DEVICES names them.

    Raises ValueError where the machine has too few.
    """
    wanted, gpus = launch.rollouts, gpu_names()
    assert wanted is not None
    before = 0 if wanted.nodes else launch.processes()
    if gpus and before + wanted.gpus > len(gpus):
        raise ValueError(
            f"launch.rollouts: tensor_parallel x data_parallel = {wanted.gpus} GPUs"
            + (f" and the {before} that train" if before else "")
            + f" are more than the {len(gpus)} of this machine; set launch.gpus or data_parallel to less"
        )
    found = []
    for place in range(wanted.data_parallel):
        first = before + place * wanted.tensor_parallel
        command = [sys.executable, "-m", "r1lite.rollout_server", str(folder), f"{NAME}{machine.rank}_{place}",
                   machine.address if wanted.nodes else LOOPBACK]  # fmt: skip
        found.append((",".join(gpus[first : first + wanted.tensor_parallel]), command))
    return found


@contextmanager
def serving(launch: Launch, machine: Machine, folder: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """Have this machine's servers run, each with a log of its own."""
    inherited = {key: value for key, value in os.environ.items() if not TOLD.fullmatch(key)}
    same = {**inherited, **launch.environment, "PYTHONPATH": package_path(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    started: list[subprocess.Popen[str]] = []
    try:
        for gpus, command in commands(launch, machine, folder):
            with (folder / f"{command[-2]}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={**same, "CUDA_VISIBLE_DEVICES": gpus},
                        preexec_fn=end_with_parent,
                        text=True,
                    )
                )
        yield started
    finally:
        for server in started:
            server.kill()
        for server in started:
            server.wait()


def who_ended(servers: list["subprocess.Popen[str]"]) -> str:
    """In words, with its log; "" where all of them live. None ends by itself before it is ended with its stage."""
    for server in servers:
        if server.poll() is not None:
            assert isinstance(server.args, list)
            folder, name = server.args[3:5]
            return f"a server of rollouts ended with exit code {server.returncode}; its log is {folder}/{name}.log"
    return ""


def ending_with_servers(
    servers: list["subprocess.Popen[str]"], worker: "subprocess.Popen[str]"
) -> AbstractContextManager[Event]:
    """Kill a trainer whose server has ended, for which it would wait; what it gives is set then."""
    return ending_when(lambda: who_ended(servers) != "", worker, SECONDS)
