"""vLLM for evaluation: an engine on each GPU of this node, each in processes of its own (`python -m r1lite.fleet`).

Every engine gets its share of the requests at once and hands over each sample as it ends. When one dies the others go
on, and nothing that was finished is lost. Lines of JSON go in and out: no port is opened and nothing is unpickled.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from r1lite.engines import Completion, Finished, Request, Sampling, Streaming, TransformersEngine, pick_engine
from r1lite.models import end_tokens, load_generation_config, load_model
from r1lite.observe import say
from r1lite.pool import end_with_parent

MOST_WAITING = 2048  # finished samples, or
SECONDS = 15.0  # after which they are handed over
END = "ready\n"
SETTINGS: dict[str, Any] = {"skip_tokenizer_init": True, "max_num_seqs": 1024, "gpu_memory_utilization": 0.85}


def open_engine(name: str, path: Path, tokenizer: Any, max_length: int, seed: int) -> Streaming:
    """An engine with a model directory's weights; prompt and completion have at most `max_length` tokens together."""
    if pick_engine(name) == "vllm":
        return Fleet(path, end_tokens(load_generation_config(path), tokenizer), max_length, seed, visible_gpus())
    model = load_model(path, "auto")
    return TransformersEngine(model, end_tokens(model.generation_config, tokenizer), tokenizer.pad_token_id)


def visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


class Fleet:
    """vLLM engines, one a GPU. Each has a random stream of its own, which starts from `seed` and its place."""

    def __init__(self, path: Path, eos_token_ids: list[int], max_length: int, seed: int, gpus: list[str]) -> None:
        self.seeds = [(seed + place) % 2**32 for place in range(len(gpus))]
        self.gpus, self.busy = gpus, False
        say(f"  starting vLLM on GPU {', '.join(gpus)}")
        self.engines = [
            start({"model": str(path), "eos": eos_token_ids, "max_length": max_length, "seed": seed}, gpu)
            for gpu, seed in zip(gpus, self.seeds, strict=True)
        ]
        self.refuse_dead([place for place, engine in enumerate(self.engines) if next_line(engine) != END])

    def stream(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Finished]]:
        """Raises RuntimeError when an engine has died, after the others have finished their share."""
        self.busy, lines = True, Queue[tuple[int, str]]()
        wanted = [[index, request.prompt, request.n] for index, request in enumerate(requests)]
        for place, engine in enumerate(self.engines):
            send(engine, {"sampling": asdict(sampling), "requests": wanted[place :: len(self.engines)]})
            Thread(target=read, args=(engine, place, lines), daemon=True).start()
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
                    Finished(index, [Completion(ids, [], cut)], self.seeds[place])
                    for index, ids, cut in json.loads(line)
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


def start(settings: dict[str, Any], gpu: str) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": gpu,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # the engine goes on while its samples are handed over
        # Asking torch whether there is a GPU is enough to make CUDA fail in a forked process.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    command = [sys.executable, "-m", "r1lite.fleet"]
    engine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    send(engine, settings)
    return engine


def read(engine: "subprocess.Popen[str]", place: int, lines: "Queue[tuple[int, str]]") -> None:
    """Hand on an engine's lines up to the end of its batch, or "" where it has died."""
    line = None
    while line not in ("", END):
        line = next_line(engine)
        lines.put((place, line))


def next_line(engine: "subprocess.Popen[str]") -> str:
    assert engine.stdout is not None
    return engine.stdout.readline()


def send(engine: "subprocess.Popen[str]", message: dict[str, Any]) -> None:
    assert engine.stdin is not None
    try:
        engine.stdin.write(json.dumps(message) + "\n")
        engine.stdin.flush()
    except BrokenPipeError:  # it has died, which the end of its output tells
        pass


def serve(orders: IO[str], results: IO[str]) -> None:
    """One engine: settings come in, then batches of requests; END says that it is ready, and that a batch is done."""
    settings = json.loads(orders.readline())
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=settings["model"],
        max_model_len=settings["max_length"],
        seed=settings["seed"],
        **SETTINGS,
    )
    print(END, end="", file=results, flush=True)
    for order in orders:
        batch = json.loads(order)
        sampling = Sampling(**batch["sampling"])
        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=settings["eos"],
            detokenize=False,
        )
        wanted = [(index, prompt) for index, prompt, n in batch["requests"] for _ in range(n)]
        names = llm.enqueue([{"prompt_token_ids": prompt} for _, prompt in wanted], parameters, use_tqdm=False)
        running = {name.split("-")[0]: index for name, (index, _) in zip(names, wanted, strict=True)}
        while running:
            ended = [output for output in llm.llm_engine.step() if output.finished]
            done = [(running.pop(output.request_id), output.outputs[0]) for output in ended]
            if done:
                samples = [[index, list(out.token_ids), out.finish_reason == "length"] for index, out in done]
                print(json.dumps(samples), file=results, flush=True)
        print(END, end="", file=results, flush=True)


def main() -> None:
    end_with_parent()
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    serve(sys.stdin, results)


if __name__ == "__mp_main__":  # a process of vLLM's: it would outlive an engine killed by force, and hold its GPU
    end_with_parent()
if __name__ == "__main__":
    main()
