"""vLLM for evaluation: an engine on each GPU of this node, each in a process of its own.

Every engine gets its share of the requests at once and hands over each sample as it ends. When one dies the others go
on, and nothing that was finished is lost.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from r1lite.engines import Finished, Request, Sampling, Streaming, TransformersEngine, pick_engine
from r1lite.memory import WHOLE_GPU
from r1lite.models import end_tokens, load_generation_config, load_model
from r1lite.observe import say
from r1lite.vllm_process import END, completions_of, listen, next_line, own_gpus, send, start

MOST_WAITING = 2048  # finished samples, or
SECONDS = 15.0  # after which they are handed over


def open_engine(name: str, path: Path, tokenizer: Any, max_length: int, seed: int) -> Streaming:
    """An engine with a model directory's weights; prompt and completion have at most `max_length` tokens together."""
    if pick_engine(name) == "vllm":
        return Fleet(path, end_tokens(load_generation_config(path), tokenizer), max_length, seed, own_gpus())
    model = load_model(path, "auto")
    return TransformersEngine(model, end_tokens(model.generation_config, tokenizer), tokenizer.pad_token_id)


class Fleet:
    """vLLM engines, one a GPU. Each has a random stream of its own, which starts from `seed` and its place."""

    def __init__(self, path: Path, eos_token_ids: list[int], max_length: int, seed: int, gpus: list[str]) -> None:
        self.seeds = [(seed + place) % 2**32 for place in range(len(gpus))]
        self.gpus, self.busy = gpus, False
        say(f"  starting vLLM on GPU {', '.join(gpus)}")
        self.engines = [
            start(gpu, path, eos_token_ids, max_length, seed, WHOLE_GPU, logprobs=False)
            for gpu, seed in zip(gpus, self.seeds, strict=True)
        ]
        self.refuse_dead([place for place, engine in enumerate(self.engines) if next_line(engine) != END])

    def stream(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Finished]]:
        """Raises RuntimeError when an engine has died, after the others have finished their share."""
        self.busy, lines = True, Queue[tuple[int, str]]()
        wanted = [(index, request.prompt, request.n) for index, request in enumerate(requests)]
        for place, engine in enumerate(self.engines):
            mine = wanted[place :: len(self.engines)]
            send(engine, {"do": "generate", "requests": mine, "sampling": asdict(sampling)})
            listen(engine, lambda line, place=place: lines.put((place, line)))  # type: ignore[misc]
        working, finished, last = len(self.engines), [], time.monotonic()
        died: list[int] = []
        while working:
            try:
                place, line = lines.get(timeout=SECONDS)
            except Empty:  # nothing new, but what has waited long enough is handed over below
                place, line = 0, "[]"
            if line in ("", END):
                working -= 1
                died += [place] if line == "" else []
            else:
                finished += [
                    Finished(index, [completion], self.seeds[place]) for index, completion in completions_of(line)
                ]
            if finished and (len(finished) >= MOST_WAITING or time.monotonic() - last > SECONDS or not working):
                yield finished
                finished, last = [], time.monotonic()
        self.busy = False
        self.refuse_dead(died)

    def refuse_dead(self, died: list[int]) -> None:
        if died:
            codes = ", ".join(f"{self.gpus[place]} (exit code {self.engines[place].wait()})" for place in died)
            raise RuntimeError(
                f"vLLM has died on GPU {codes}; the log has its last words. What was finished is kept, and the same "
                "command goes on from there"
            )

    def close(self) -> None:
        for engine in self.engines:
            if self.busy:  # whoever asked has failed, and does not want the rest
                engine.kill()
            assert engine.stdin is not None
            with suppress(BrokenPipeError):
                engine.stdin.close()  # no more requests
        for engine in self.engines:
            engine.wait()
