"""vLLM in a process of its own (`python -m r1lite.vllm_process`), and how others talk with it: in lines of JSON.

No port is opened and nothing is unpickled. vLLM's core runs in the same process as the loop that feeds it, which is
faster than the two processes that vLLM would make of it (bench/README.md), and torch.distributed of whoever trains
beside it knows nothing of it.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Any

from r1lite.engines import Completion, Sampling
from r1lite.launch import SIGNALS
from r1lite.pool import end_with_parent

PROGRAM = [sys.executable, "-m", "r1lite.vllm_process"]
# What a launcher tells a process about those beside it, which vLLM would take for its own ranks.
LAUNCHED = (
    *("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_"),
    *("TORCHELASTIC_", "TORCH_NCCL_", "ACCELERATE_", "FSDP_"),
)
END = "ready\n"  # it waits for an order
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"  # as vLLM calls it
SECONDS = 0.1  # after which log-probs of what has ended are fetched from the GPU; in each step it would be slower
SETTINGS: dict[str, Any] = {"skip_tokenizer_init": True, "max_num_seqs": 1024, "logprobs_mode": "processed_logprobs"}


def start(
    gpu: str,
    path: Path,
    eos_token_ids: list[int],
    max_length: int,
    seed: int,
    memory_share: float,
    logprobs: bool,
    **more: Any,
) -> "subprocess.Popen[str]":
    """Start vLLM's LLM on a GPU, named as CUDA_VISIBLE_DEVICES names it; `more` goes to it. END tells that it is up.

    With `logprobs` its completions have those of the distribution sampled from.
    """
    settings = {
        "model": str(path),
        "max_model_len": max_length,
        "seed": seed,
        "gpu_memory_utilization": memory_share,
        **more,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    environment |= {"CUDA_VISIBLE_DEVICES": gpu, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    engine = subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    send(engine, {"eos": eos_token_ids, "logprobs": logprobs, "settings": settings})
    return engine


def visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def own_gpus() -> list[str]:
    """Those that are this process's own: all of them, or of several processes on this machine one each."""
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return visible_gpus() if each == 1 else [visible_gpus()[int(os.environ["LOCAL_RANK"])]]


def send(engine: "subprocess.Popen[str]", order: dict[str, Any]) -> None:
    assert engine.stdin is not None
    try:
        engine.stdin.write(json.dumps(order) + "\n")
        engine.stdin.flush()
    except BrokenPipeError:  # it has died, which the end of its output tells
        pass


def next_line(engine: "subprocess.Popen[str]") -> str:
    """The next line of its answer; END after the last one, "" where it has died, be it within a line."""
    assert engine.stdout is not None
    line = engine.stdout.readline()
    return line if line.endswith("\n") else ""


def listen(engine: "subprocess.Popen[str]", hear: Callable[[str], None]) -> None:
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


def serve(orders: IO[str], results: IO[str]) -> None:
    """One engine: settings come in, then orders; END says that it is ready, and that an order is done.

    It can `generate`. For a trainer it also can `open` a shared buffer, `load` the weights in it, `sum` those that it
    has, `sleep` and `wake`.
    """
    import torch
    from vllm import LLM

    from r1lite.engines import weight_sums
    from r1lite.shared_buffer import open_buffer, views

    given = json.loads(orders.readline())
    llm = with_newer_runner(LLM, given) if given["logprobs"] else LLM(**given["settings"], **SETTINGS)
    recorder = buffer = None
    if given["logprobs"] and llm.llm_engine.vllm_config.use_v2_model_runner:
        from r1lite.vllm_logprobs import LogprobRecorder

        recorder = LogprobRecorder(runner_of(llm), given["settings"]["max_model_len"])
    print(END, end="", file=results, flush=True)
    for line in orders:
        order = json.loads(line)
        match order.pop("do"):
            case "generate":
                for samples in generate(llm, given["eos"], given["logprobs"], recorder, **order):
                    print(json.dumps(samples), file=results, flush=True)
            case "open":
                buffer = open_buffer(**order)
            case "load":
                assert buffer is not None
                runner_of(llm).model.load_weights(views(buffer, order["layout"]))
                if buffer.is_cuda:  # its owner writes over it next
                    torch.cuda.synchronize()
                llm.reset_prefix_cache()
            case "sum":
                dtype = getattr(torch, given["settings"]["dtype"])
                print(json.dumps(weight_sums(runner_of(llm).model.parameters(), dtype)), file=results)
            case "sleep":
                llm.sleep()
            case "wake":
                llm.wake_up()
        print(END, end="", file=results, flush=True)


def generate(
    llm: Any,
    eos_token_ids: list[int],
    logprobs: bool,
    recorder: Any,
    requests: list[tuple[int, list[int], int]],
    sampling: dict[str, Any],
) -> Iterator[list[tuple[int, str, str, bool]]]:
    """What has ended, now and then, for `requests` of an index, a prompt and a number of samples."""
    from vllm import SamplingParams

    how = Sampling(**sampling)
    wanted = [(index, prompt) for index, prompt, n in requests for _ in range(n)]
    settings = {
        "max_tokens": how.max_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "stop_token_ids": eos_token_ids,
        "logprobs": 0 if logprobs and recorder is None else None,
        "detokenize": False,
    }
    if logprobs:
        parameters = [SamplingParams(**settings, extra_args={"row": row}) for row in range(len(wanted))]
    else:  # an evaluation may ask for a million samples at once
        parameters = [SamplingParams(**settings)] * len(wanted)
    if recorder:
        recorder.make_room(len(wanted))
    names = llm.enqueue([{"prompt_token_ids": prompt} for _, prompt in wanted], parameters, use_tqdm=False)
    running = {name.split("-")[0]: row for row, name in enumerate(names)}
    ended: list[Any] = []
    last = time.monotonic()
    while running:
        ended += [output for output in llm.llm_engine.step() if output.finished]
        if not ended or (recorder and len(ended) < len(running) and time.monotonic() - last < SECONDS):
            continue
        rows = [running.pop(output.request_id) for output in ended]
        found = [output.outputs[0] for output in ended]
        if recorder:
            values = recorder.read(rows, [len(wanted[row][1]) for row in rows], [len(out.token_ids) for out in found])
        elif logprobs:
            values = [[at[token].logprob for token, at in zip(o.token_ids, o.logprobs, strict=True)] for o in found]
        else:
            values = [[]] * len(found)
        yield [
            (wanted[row][0], packed("i", out.token_ids), packed("f", mine), out.finish_reason == "length")
            for row, out, mine in zip(rows, found, values, strict=True)
        ]
        ended, last = [], time.monotonic()


def with_newer_runner(make: Callable[..., Any], given: dict[str, Any]) -> Any:
    """vLLM with its model runner V2, which the recorder needs, where that can run the model.

    By itself vLLM takes it for some architectures only. Whether it computes one rightly, the proof after each weight
    sync tells.
    """
    os.environ.setdefault(RUNNER, "1")
    try:
        return make(**given["settings"], **SETTINGS)
    except ValueError as error:
        if "Model Runner V2" not in str(error):
            raise
        os.environ[RUNNER] = "0"
        return make(**given["settings"], **SETTINGS)


def runner_of(llm: Any) -> Any:
    """vLLM's model runner, which is in this process."""
    return llm.collective_rpc(lambda worker: worker.model_runner)[0]


def main() -> None:
    end_with_parent()
    for number in SIGNALS:  # whoever uses it ends upon them in good order, and needs it until then
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which processes of vLLM's own would inherit
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    serve(sys.stdin, results)


if __name__ == "__mp_main__":  # a process of vLLM's: it would outlive an engine killed by force, and hold its GPU
    end_with_parent()
if __name__ == "__main__":
    main()
