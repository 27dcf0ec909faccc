"""Engines in processes of their own, with a stand-in for vLLM: what goes in and out, and what a death costs.

tests/gpu/test_vllm.py has the real one.
"""

import os
import signal
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from r1lite.engines import Request, Sampling
from r1lite.fleet import Fleet
from r1lite.vllm_process import own_gpus

VLLM = '''
import multiprocessing, os, sys, time
from types import SimpleNamespace

print("a library speaks on stdout")
GPU = os.environ["CUDA_VISIBLE_DEVICES"]
DIES_AFTER = dict(pair.split(":") for pair in os.environ.get("DIES", "").split(",") if pair).get(GPU)


class SamplingParams:
    def __init__(self, **values):
        self.__dict__ |= values


class LLM:
    """Answers a prompt with its tokens again, its GPU and its seed; the third of three is cut off."""

    def __init__(self, model, seed, **_):
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        self.seed, self.made, self.waiting, self.llm_engine = seed, 0, [], self
        self.core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
        self.core.start()
        self.check()

    def check(self):
        if DIES_AFTER is not None and self.made >= int(DIES_AFTER):
            os._exit(7)

    def enqueue(self, prompts, parameters, use_tqdm):
        assert len(prompts) == len(parameters)
        for each in parameters:
            assert not each.detokenize and each.top_p == 0.9 and each.stop_token_ids == [2] and each.logprobs is None
        names = [str(1000 + self.made + len(self.waiting) + place) for place in range(len(prompts))]
        self.waiting += [(name, prompt["prompt_token_ids"]) for name, prompt in zip(names, prompts)]
        return [name + "-a1b2" for name in names]

    def step(self):
        print("a library speaks in every step")
        self.check()
        name, prompt = self.waiting.pop()  # the last comes first: nothing is promised about the order
        self.made += 1
        sample = SimpleNamespace(token_ids=(*prompt, int(GPU), self.seed), finish_reason=["stop", "length"][self.made % 3 == 0])
        return [SimpleNamespace(finished=True, request_id=name, outputs=[sample]), SimpleNamespace(finished=False)]
'''
SAMPLING = Sampling(max_tokens=8, temperature=0.6, top_p=0.9)
REQUESTS = [Request([10 + index], n) for index, n in enumerate([3, 1, 2, 3, 1])]


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(VLLM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.getcwd()}")

    def start(gpus, dies=""):
        monkeypatch.setenv("DIES", dies)
        return closing(Fleet(tmp_path, [2], 64, seed=5, gpus=gpus))

    return start


def collect(engine, finished=None) -> list:
    finished = [] if finished is None else finished
    for batch in engine.stream(REQUESTS, SAMPLING):
        finished += batch
    return finished


@pytest.mark.parametrize("gpus", [["0"], ["0", "3"]])
def test_every_request_is_answered_as_often_as_it_asks(fleet, gpus):
    with fleet(gpus) as engine:
        finished = collect(engine)
    assert Counter(each.index for each in finished) == {index: each.n for index, each in enumerate(REQUESTS)}
    for each in finished:
        (completion,) = each.completions
        prompt, gpu, seed = completion.token_ids
        assert [prompt] == REQUESTS[each.index].prompt
        assert str(gpu) == gpus[each.index % len(gpus)]
        assert seed == each.seed == 5 + gpus.index(str(gpu))
    assert 1 <= sum(each.completions[0].truncated for each in finished) <= 3


def test_the_same_engines_take_more_requests(fleet):
    with fleet(["0", "1"]) as engine:
        assert len(collect(engine)) == len(collect(engine)) == 10


def test_one_engines_death_loses_nothing_that_was_finished(fleet):
    finished = []
    with fleet(["0", "1"], dies="1:2") as engine, pytest.raises(RuntimeError, match=r"died on GPU 1 \(exit code 7\)"):
        collect(engine, finished)
    by_gpu = Counter(each.completions[0].token_ids[1] for each in finished)
    assert by_gpu == {0: 3 + 2 + 1, 1: 2}  # the other has done all of its share


def test_an_engine_that_does_not_start_is_told(fleet):
    with pytest.raises(RuntimeError, match=r"died on GPU 0 \(exit code 7\); the log"), fleet(["0"], dies="0:0"):
        pass


def test_a_closed_fleet_leaves_no_process(fleet):
    with fleet(["0", "1"]) as engine:
        processes = engine.engines
        assert all(process.poll() is None for process in processes)
    assert [process.poll() for process in processes] == [0, 0]


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def wait_until(what) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has died")
def test_an_engine_killed_by_force_leaves_nothing_that_holds_the_gpu(fleet):
    with fleet(["0"]) as engine:
        (process,) = engine.engines
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def cores():
            every = children.read_text().split()
            return [int(child) for child in every if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

        wait_until(cores)
        (core,) = cores()
        time.sleep(1)  # it has imported this module by then
        process.kill()
        wait_until(lambda: not alive(core))


def test_who_stops_listening_does_not_wait_for_the_rest(fleet):
    endless = [Request([1], 10**6)]
    with fleet(["0"]) as engine:
        (process,) = engine.engines
        for _ in engine.stream(endless, SAMPLING):
            break
    assert process.poll() == -9


def test_an_engine_knows_nothing_of_those_beside_the_one_that_uses_it_and_ends_with_it_alone(fleet, monkeypatch):
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with fleet(["0"]) as engines:
        for number in (signal.SIGTERM, signal.SIGUSR1):  # as Slurm sends them to all processes of a job
            os.kill(engines.engines[0].pid, number)
        assert sum(len(batch) for batch in engines.stream(REQUESTS, SAMPLING)) == sum(each.n for each in REQUESTS)


def test_of_several_processes_on_a_machine_each_has_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,4,7")
    assert own_gpus() == ["2", "4", "7"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpus() == ["4"]
