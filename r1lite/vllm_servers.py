"""vLLM for rollouts on GPUs of its own: the servers of rollouts (rollout_server.py), as a trainer's process sees them.

The main process makes them start, and hands them the weights; each samples its own prompts by its share of them.
"""

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from r1lite.artifacts import read_json
from r1lite.engines import Finished, Sampling
from r1lite.launch import RANK_LOGS
from r1lite.memory import WHOLE_GPU
from r1lite.observe import say
from r1lite.ranks import from_main, is_main, rank, timeout, wait_for_all, world_size
from r1lite.serving import SERVERS, TOKEN, address_files
from r1lite.sharding import named_weights
from r1lite.shared_buffer import end_of, fill, size_for
from r1lite.vllm_process import first_order, generate, send, wait
from r1lite.weight_group import broadcast, join

SECONDS = 0.5  # between two looks for those that are not there yet


class Connection:
    """To a server, which says END at once to whoever knows the token."""

    def __init__(self, file: Path) -> None:
        told = read_json(file)
        self.place = f"{told['host']}:{told['port']}"
        try:
            self.socket = socket.create_connection((told["host"], told["port"]), timeout().total_seconds())
        except OSError as error:
            raise RuntimeError(f"the server of rollouts at {self.place} cannot be reached: {error}") from None
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.stdin: IO[str] = self.socket.makefile("w")
        self.stdout: IO[str] = self.socket.makefile("r")
        self.stdin.write((file.parent / TOKEN).read_text() + "\n")
        self.stdin.flush()
        wait(self)

    def kill(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def how_it_ended(self) -> str:
        return (
            f"the server of rollouts at {self.place} has hung up, or has said nothing for "
            f"{timeout().total_seconds():g} s, which is launch.timeout; its log is beside this one"
        )


class VLLMServers:
    """An engine, of which every process of a trainer has one. Each server has a random stream of its own, which starts
    from `seed` and its place."""

    name = "vllm"

    def __init__(self, path: Path, eos_token_ids: list[int], max_length: int, seed: int, dtype: str) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.buffer: torch.Tensor | None = None
        told = json.loads(os.environ[SERVERS])
        self.gpus_each: int = told["tensor_parallel"]
        files = await_files(Path(os.environ[RANK_LOGS]), told["servers"])
        self.all: list[Connection] = []
        if is_main():
            say(f"  starting vLLM on {len(files)} servers of {self.gpus_each} GPU each")
            self.all = [Connection(file) for file in files]
            for place, server in enumerate(self.all):
                more = {"dtype": dtype, "tensor_parallel_size": self.gpus_each}
                send(server, first_order(path, eos_token_ids, max_length, seed + place, WHOLE_GPU, True, **more))
            for server in self.all:
                wait(server)
        wait_for_all()
        mine = share_of(len(files), rank(), world_size())
        self.mine = [self.all[place] if is_main() else Connection(files[place]) for place in mine]

    def generate(self, prompts: list[list[int]], n: int, sampling: Sampling) -> Iterator[list[Finished]]:
        yield from generate(self.mine, prompts, n, sampling)

    def sync(self, model: Any) -> None:
        if is_main():
            self.hand_over(model)
        else:  # it has a part of each
            for _ in named_weights(model):
                pass
        wait_for_all()  # or another would sample from the old ones

    @property
    def ranks(self) -> int:
        """Of the group in which the servers' GPUs get the weights; this process is its first."""
        return 1 + self.gpus_each * len(self.all)

    def hand_over(self, model: Any) -> None:
        if self.buffer is None:
            self.buffer = torch.empty(size_for(model, self.dtype), dtype=torch.uint8, device=model.device)
            self.group = join(0, self.ranks, model.device, self.invite)
            for server in self.all:
                wait(server)
        for layout in fill(self.buffer, named_weights(model), self.dtype):
            for server in self.all:
                send(server, {"do": "load", "layout": layout})
            broadcast(self.group, self.buffer[: end_of(layout)])
            for server in self.all:
                wait(server)

    def invite(self, group_id: bytes) -> bytes:
        """Have all servers' GPUs join the group."""
        assert self.buffer is not None
        how = {"id": base64.b64encode(group_id).decode(), "size": len(self.buffer), "ranks": self.ranks}
        for place, server in enumerate(self.all):
            send(server, {"do": "join", "first": 1 + place * self.gpus_each, **how})
        return group_id

    def weight_sums(self) -> list[tuple[float, float]]:
        for server in self.all:
            send(server, {"do": "sum"})
        found: list[tuple[float, float]] = from_main([wait(server) for server in self.all])
        return found

    def close(self) -> None:
        """Hang up; `r1lite` ends the servers with the stage."""
        for server in {*self.all, *self.mine}:
            server.kill()


def await_files(folder: Path, count: int) -> list[Path]:
    """Those in which the servers say where they are, once all of them have. Raises RuntimeError where some never do."""
    end = time.monotonic() + timeout().total_seconds()
    while len(files := address_files(folder)) < count:
        if time.monotonic() > end:
            raise RuntimeError(
                f"{len(files)} of {count} servers of rollouts have started within {timeout().total_seconds():g} s, "
                "which is launch.timeout; start `r1lite run` on all machines, those of launch.rollouts among them"
            )
        time.sleep(SECONDS)
    return files


def share_of(servers: int, rank: int, ranks: int) -> list[int]:
    """Which servers a process asks: its part of them, or where there are fewer servers than processes one of them."""
    return list(range(rank, servers, ranks)) or [rank % servers]
