"""vLLM in a process of its own: its steps, and between them the orders of those who talk with it (vllm_process.py).

Its core runs in the same process as this loop, which is faster than the two processes that vLLM would make of it
(bench/README.md).
"""

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import IO, Any

from r1lite.engines import Sampling
from r1lite.launch import SIGNALS
from r1lite.pool import end_with_parent
from r1lite.vllm_process import END, NOTHING, SETTINGS, packed

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"  # as vLLM calls it
SECONDS = 0.1  # after which log-probs of what has ended are fetched from the GPU; in each step it would be slower
ALIVE = 5.0  # seconds, after which whoever waits is told that the loop goes on
Said = tuple[IO[str], dict[str, Any] | None]  # an order, and who is to have the answer; None ends the loop


@dataclass(eq=False)
class Call:
    """An order to generate: who gets its samples, and how many of them are to come."""

    results: IO[str]
    left: int


@dataclass(slots=True)
class Running:
    """A sample that vLLM is at: whose, the index of its request, its prompt's tokens, and its row of log-probs."""

    call: Call
    index: int
    prompt: int
    row: int


def serve(orders: "Queue[Said]") -> None:
    """The first order has the settings; END says that vLLM is ready, and afterwards that an order is done."""
    results, given = orders.get()
    assert given is not None
    loop = Loop(given)
    tell(results, END)
    while True:
        while not (loop.running and orders.empty()):
            results, order = orders.get()
            if order is None:
                return
            loop.obey(results, order)
        loop.step()


class Loop:
    """vLLM's LLM. Several may have samples from it at once."""

    def __init__(self, given: dict[str, Any]) -> None:
        from vllm import LLM

        settings = given["settings"]
        self.eos, self.dtype, self.wants_logprobs = given["eos"], settings.get("dtype"), given["logprobs"]
        make = with_newer_runner if self.wants_logprobs else with_any_runner
        self.llm = make(LLM, settings)
        self.records = self.wants_logprobs and self.llm.llm_engine.vllm_config.use_v2_model_runner
        if self.records:
            self.workers("r1lite_record", settings["max_model_len"])
        self.running: dict[str, Running] = {}
        self.ended: list[Any] = []
        self.rows: list[int] = []  # of log-probs that are free
        self.last = 0.0

    def workers(self, method: str, *arguments: Any) -> list[Any]:
        """What the worker of each of its GPUs says (vllm_worker.py)."""
        said: list[Any] = self.llm.collective_rpc(method, args=arguments)
        return said

    def obey(self, results: IO[str], order: dict[str, Any]) -> None:
        """It can `generate`. For a trainer it also can `open` a buffer of its or `join` its group, `load` the weights
        that come that way, `sum` those that it has, `sleep` and `wake`."""
        match order.pop("do"):
            case "generate":
                return self.enqueue(results, **order)
            case "open":
                self.workers("r1lite_open", order)
            case "join":
                self.workers("r1lite_join", order)
            case "load":
                assert not self.running
                self.workers("r1lite_load", order["layout"])
                self.llm.reset_prefix_cache()
            case "sum":
                parts = self.workers("r1lite_sums", self.dtype)
                tell(results, json.dumps([sum(part) for part in zip(*parts, strict=True)]) + "\n")
            case "sleep":
                self.llm.sleep()
            case "wake":
                self.llm.wake_up()
        tell(results, END)

    def enqueue(self, results: IO[str], requests: list[tuple[int, list[int], int]], sampling: dict[str, Any]) -> None:
        """Have vLLM take `requests` of an index, a prompt and a number of samples."""
        from vllm import SamplingParams

        how = Sampling(**sampling)
        wanted = [(index, prompt) for index, prompt, n in requests for _ in range(n)]
        settings = {
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "stop_token_ids": self.eos,
            "logprobs": 0 if self.wants_logprobs and not self.records else None,
            "detokenize": False,
        }
        rows = self.take_rows(len(wanted)) if self.wants_logprobs else [0] * len(wanted)
        if self.wants_logprobs:
            parameters = [SamplingParams(**settings, extra_args={"row": row}) for row in rows]
        else:  # an evaluation may ask for a million samples at once
            parameters = [SamplingParams(**settings)] * len(wanted)
        names = self.llm.enqueue([{"prompt_token_ids": prompt} for _, prompt in wanted], parameters, use_tqdm=False)
        if not self.running:
            self.last = time.monotonic()
        call = Call(results, len(wanted))
        for name, row, (index, prompt) in zip(names, rows, wanted, strict=True):
            self.running[name.split("-")[0]] = Running(call, index, len(prompt), row)
        if not wanted:
            tell(results, END)

    def take_rows(self, count: int) -> list[int]:
        if count > len(self.rows):
            have = len(self.rows) + len(self.running)
            self.rows += range(have, have + count - len(self.rows))
            if self.records:
                self.workers("r1lite_make_room", len(self.rows) + len(self.running))
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken

    def step(self) -> None:
        """One of vLLM's, after which it is told now and then what has ended."""
        self.ended += [output for output in self.llm.llm_engine.step() if output.finished]
        waited = time.monotonic() - self.last
        if self.ended and (not self.records or len(self.ended) == len(self.running) or waited > SECONDS):
            self.report()
        elif waited > ALIVE:
            for call in {each.call for each in self.running.values()}:
                tell(call.results, NOTHING)
            self.last = time.monotonic()

    def report(self) -> None:
        found = [(self.running.pop(output.request_id), output.outputs[0]) for output in self.ended]
        samples: dict[Call, list[tuple[int, str, str, bool]]] = defaultdict(list)
        for (mine, out), logprobs in zip(found, self.logprobs_of(found), strict=True):
            sample = (mine.index, packed("i", out.token_ids), packed("f", logprobs), out.finish_reason == "length")
            samples[mine.call].append(sample)
        for call, ended in samples.items():
            tell(call.results, json.dumps(ended) + "\n")
            call.left -= len(ended)
            if not call.left:
                tell(call.results, END)
        if self.wants_logprobs:
            self.rows += [mine.row for mine, _ in found]
        self.ended, self.last = [], time.monotonic()

    def logprobs_of(self, found: list[tuple[Running, Any]]) -> Iterable[list[float]]:
        if not self.wants_logprobs:
            return [[]] * len(found)
        if self.records:
            places = [(mine.row, mine.prompt, len(out.token_ids)) for mine, out in found]
            read: list[list[float]] = self.workers("r1lite_read", places)[0]
            return read
        return [[at[token].logprob for token, at in zip(out.token_ids, out.logprobs, strict=True)] for _, out in found]


def with_any_runner(make: Callable[..., Any], settings: dict[str, Any]) -> Any:
    return make(**settings, **SETTINGS)


def with_newer_runner(make: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """vLLM with its model runner V2, which the recorder needs, where that can run the model.

    By itself vLLM takes it for some architectures only. Whether it computes one rightly, the proof after each weight
    sync tells.
    """
    os.environ.setdefault(RUNNER, "1")
    try:
        return make(**settings, **SETTINGS)
    except ValueError as error:
        if "Model Runner V2" not in str(error):
            raise
        os.environ[RUNNER] = "0"
        return make(**settings, **SETTINGS)


def tell(results: IO[str], line: str) -> None:
    try:
        results.write(line)
        results.flush()
    except OSError:  # whoever asked has gone
        pass


def hear(lines: Iterable[str], results: IO[str], orders: "Queue[Said]") -> None:
    for line in lines:
        orders.put((results, json.loads(line)))


def main() -> None:
    end_with_parent()
    for number in SIGNALS:  # whoever uses it ends upon them in good order, and needs it until then
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which processes of vLLM's own would inherit
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    orders: Queue[Said] = Queue()

    def listen() -> None:
        hear(sys.stdin, results, orders)
        orders.put((results, None))  # no more orders

    Thread(target=listen, daemon=True).start()
    serve(orders)


if __name__ == "__mp_main__":  # a process of vLLM's: it would outlive an engine killed by force, and hold its GPU
    end_with_parent()
if __name__ == "__main__":
    main()
