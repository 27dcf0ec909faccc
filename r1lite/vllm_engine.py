"""vLLM for rollouts: an engine in a process of its own on the trainer's GPU, which follows a model by its weights."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from r1lite.engines import Finished, Sampling
from r1lite.observe import say
from r1lite.sharding import named_weights
from r1lite.shared_buffer import Buffer, fill, make_buffer, size_for
from r1lite.vllm_process import generate, send, start, visible_gpus, wait


class VLLMEngine:
    """Its random stream starts from `seed` and goes on from call to call; a seed of its own for each request would make
    vLLM sample row by row. So runs with it are reproducible in distribution, not token by token.
    """

    name = "vllm"

    def __init__(
        self,
        path: Path,
        eos_token_ids: list[int],
        max_length: int,
        seed: int,
        dtype: str,
        memory_share: float,
        sleeps: bool = False,
    ) -> None:
        """Takes `memory_share` of the GPU's memory, and where it `sleeps` gives it back while it has nothing to do."""
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.sleeps, self.asleep = sleeps, False
        self.buffer: Buffer | None = None
        gpus = visible_gpus()
        gpu = gpus[torch.cuda.current_device()] if gpus else ""
        say(f"  starting vLLM{f' on GPU {gpu}' if gpu else ''}")
        self.process = start(
            gpu,
            path,
            eos_token_ids,
            max_length,
            seed,
            memory_share,
            logprobs=True,
            dtype=dtype,
            enable_sleep_mode=sleeps,
        )
        wait(self.process)

    def generate(self, prompts: list[list[int]], n: int, sampling: Sampling) -> Iterator[list[Finished]]:
        self.wake()
        yield from generate([self.process], prompts, n, sampling)
        if self.sleeps:
            self.ask("sleep")
            self.asleep = True

    def sync(self, model: Any) -> None:
        self.wake()
        if self.buffer is None:
            self.buffer = make_buffer(size_for(model, self.dtype), model.device)
            self.ask("open", **self.buffer.handle)
        for layout in fill(self.buffer.bytes, named_weights(model), self.dtype):
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            self.ask("load", layout=layout)

    def weight_sums(self) -> list[tuple[float, float]]:
        self.wake()
        plain, absolute = self.ask("sum")
        return [(plain, absolute)]

    def wake(self) -> None:
        if self.asleep:
            self.ask("wake")
            self.asleep = False

    def ask(self, what: str, **more: Any) -> Any:
        send(self.process, {"do": what, **more})
        return wait(self.process)

    def close(self) -> None:
        with suppress(BrokenPipeError), self.process:  # no more orders, and it ends
            pass
