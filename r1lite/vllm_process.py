"""How others talk with vLLM, which is in a process of its own (vllm_loop.py): in lines of JSON.

Where the process is one's own the lines go through pipes: no port is opened, and torch.distributed of whoever trains
beside it knows nothing of it. rollout_server.py has one on other GPUs. Nothing is ever unpickled.
"""

import base64
import json
import os
import subprocess
import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any, Protocol

from r1lite.engines import Completion, Finished, Sampling

PROGRAM = [sys.executable, "-m", "r1lite.vllm_loop"]
# What a launcher tells a process about those beside it, which vLLM would take for its own ranks.
LAUNCHED = (
    *("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_"),
    *("TORCHELASTIC_", "TORCH_NCCL_", "ACCELERATE_", "FSDP_"),
)
END = "ready\n"  # it waits for an order
NOTHING = "[]\n"  # it goes on, and nothing has ended
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "max_num_seqs": 1024,
    "logprobs_mode": "processed_logprobs",
    "worker_extension_cls": "r1lite.vllm_worker.RolloutWorker",
}


class Link(Protocol):
    """What one talks with vLLM through."""

    @property
    def stdin(self) -> IO[str] | None: ...

    @property
    def stdout(self) -> IO[str] | None: ...

    def kill(self) -> None: ...

    def how_it_ended(self) -> str: ...


class Process(subprocess.Popen[str]):
    """vLLM in a process of one's own."""

    def how_it_ended(self) -> str:
        return f"vLLM has died (exit code {self.wait()}); the log has its last words"


def start(
    gpu: str,
    path: Path,
    eos_token_ids: list[int],
    max_length: int,
    seed: int,
    memory_share: float,
    logprobs: bool,
    **more: Any,
) -> Process:
    """Start vLLM's LLM on a GPU, named as CUDA_VISIBLE_DEVICES names it; `more` goes to it. END tells that it is up.

    With `logprobs` its completions have those of the distribution sampled from.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    environment |= {"CUDA_VISIBLE_DEVICES": gpu, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    engine = Process(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    send(engine, first_order(path, eos_token_ids, max_length, seed, memory_share, logprobs, **more))
    return engine


def first_order(
    path: Path, eos_token_ids: list[int], max_length: int, seed: int, memory_share: float, logprobs: bool, **more: Any
) -> dict[str, Any]:
    """What makes vLLM start."""
    settings = {
        "model": str(path),
        "max_model_len": max_length,
        "seed": seed,
        "gpu_memory_utilization": memory_share,
        **more,
    }
    return {"eos": eos_token_ids, "logprobs": logprobs, "settings": settings}


def visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def own_gpus() -> list[str]:
    """Those that are this process's own: all of them, or of several processes on this machine one each."""
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return visible_gpus() if each == 1 else [visible_gpus()[int(os.environ["LOCAL_RANK"])]]


def send(engine: Link, order: dict[str, Any]) -> None:
    assert engine.stdin is not None
    with suppress(OSError):  # it has died, which the end of its output tells
        engine.stdin.write(json.dumps(order) + "\n")
        engine.stdin.flush()


def next_line(engine: Link) -> str:
    """The next line of its answer; END after the last one, "" where it has died, be it within a line."""
    assert engine.stdout is not None
    try:
        line = engine.stdout.readline()
    except OSError:  # a connection that is lost, or has been silent for too long
        return ""
    return line if line.endswith("\n") else ""


def wait(engine: Link) -> Any:
    """Until it is ready for the next order; returns what it has to say of this one."""
    said = None
    while (line := next_line(engine)) not in ("", END):
        said = json.loads(line)
    refuse_dead(engine, line)
    return said


def refuse_dead(engine: Link, line: str) -> None:
    if line == "":
        raise RuntimeError(
            f"{engine.how_it_ended()}. Run the same command again: it goes on from the newest checkpoint"
        )


def generate(engines: Sequence[Link], prompts: list[list[int]], n: int, sampling: Sampling) -> Iterator[list[Finished]]:
    """A group of `n` completions for each prompt, by engines that share the prompts: those that are whole, while the
    rest goes on. Raises RuntimeError where one has died, after what was finished until then."""
    lines: Queue[tuple[int, str]] = Queue()
    requests = [(index, prompt, n) for index, prompt in enumerate(prompts)]
    for place, engine in enumerate(engines):
        mine = requests[place :: len(engines)]
        send(engine, {"do": "generate", "requests": mine, "sampling": asdict(sampling)})
        listen(engine, lambda line, place=place: lines.put((place, line)))  # type: ignore[misc]
    groups: dict[int, list[Completion]] = defaultdict(list)
    working = set(range(len(engines)))
    try:
        while working:
            arrived = [lines.get()]
            while not lines.empty():  # while the last ones were graded
                arrived.append(lines.get())
            finished = []
            for index, completion in (
                sample for _, line in arrived if line not in ("", END) for sample in completions_of(line)
            ):
                groups[index].append(completion)
                if len(groups[index]) == n:
                    finished.append(Finished(index, groups.pop(index), sampling.seed))
            if finished:
                yield finished
            for place, line in arrived:
                if line in ("", END):
                    working.discard(place)
                    refuse_dead(engines[place], line)
    finally:
        for place in working:  # whoever asked has failed, and does not want the rest
            engines[place].kill()


def listen(engine: Link, hear: Callable[[str], None]) -> None:
    """Hand on the lines of an answer as they come, up to END or "", so that vLLM never waits for whoever uses them."""

    def read() -> None:
        line = None
        while line not in ("", END):
            line = next_line(engine)
            hear(line)

    Thread(target=read, daemon=True).start()


def completions_of(line: str) -> list[tuple[int, Completion]]:
    """The samples that a line tells of, each with the index of its request."""
    return [
        (index, Completion(unpacked("i", ids), unpacked("f", logprobs), cut))
        for index, ids, logprobs, cut in json.loads(line)
    ]


def packed(kind: str, values: Sequence[float]) -> str:
    return base64.b64encode(array(kind, values).tobytes()).decode()


def unpacked(kind: str, text: str) -> list[Any]:
    return array(kind, base64.b64decode(text)).tolist()
