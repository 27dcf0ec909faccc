"""The engine for rollouts, with a stand-in for vLLM in the engine's own process.

tests/gpu/test_vllm.py has the real one.
"""

import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_fleet import alive, wait_until

from r1lite import shared_buffer, vllm_engine, vllm_process
from r1lite.engines import Sampling, weight_sums
from r1lite.models import load_model
from r1lite.sync_proof import prove_sync
from r1lite.vllm_process import packed, unpacked

VLLM = '''
import ctypes, importlib, json, os, random, sys, time
from pathlib import Path
from types import ModuleType, SimpleNamespace

HERE = Path(__file__).parent
PLAN = json.loads((HERE / "plan.json").read_text())
print("a library speaks on stdout")


def note(what, **more):
    with (HERE / "notes").open("a") as file:
        file.write(json.dumps([what, more]) + "\\n")


def reached(what):
    note(what)
    if PLAN.get("dies") == what:
        os._exit(7)




class Id(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


class StatelessProcessGroup:
    def __init__(self, rank, world_size, store):
        self.rank, self.world_size = rank, world_size


class PyNcclCommunicator:
    """Has what is broadcast go through a store of torch's."""

    def __init__(self, group, device):
        from torch.distributed import TCPStore

        told = Id()
        if group.rank == 0:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            told.internal[:2] = [self.store.port >> 8, self.store.port % 256]
        told = group.broadcast_obj(told, 0)
        high, low = bytes(told)[:2]
        if group.rank:
            self.store = TCPStore("127.0.0.1", high * 256 + low)
        self.rank, self.count = group.rank, 0
        deadline = time.monotonic() + 30
        self.store.add("ranks", 1)
        while self.store.add("ranks", 0) < group.world_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def broadcast(self, tensor, src, stream):
        import torch

        self.count += 1
        if self.rank == src:
            self.store.set(str(self.count), tensor.numpy().tobytes())
        else:
            tensor.copy_(torch.frombuffer(bytearray(self.store.get(str(self.count))), dtype=tensor.dtype))


for name, made in {
    "vllm.distributed": {},
    "vllm.distributed.device_communicators": {},
    "vllm.distributed.device_communicators.pynccl": {"PyNcclCommunicator": PyNcclCommunicator},
    "vllm.distributed.utils": {"StatelessProcessGroup": StatelessProcessGroup},
}.items():
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(made)
for module, names in {
    "linear": ["ColumnParallelLinear", "QKVParallelLinear", "RowParallelLinear"],
    "vocab_parallel_embedding": ["VocabParallelEmbedding"],
}.items():
    sys.modules[f"vllm.model_executor.layers.{module}"] = made = ModuleType(module)
    made.__dict__.update({name: type(name, (), {}) for name in names})


class SamplingParams:
    def __init__(self, **values):
        self.__dict__ |= values


class Weights:
    def __init__(self, path, dtype):
        import torch
        from safetensors.torch import load_file

        self.kept = {name: weight.to(getattr(torch, dtype)) for name, weight in load_file(f"{path}/model.safetensors").items()}

    def modules(self):
        return [self]

    def named_parameters(self, recurse):
        return iter(self.kept.items())

    def load_weights(self, weights):
        from safetensors.torch import save_file

        reached("load")
        if PLAN.get("deaf"):
            return
        for name, weight in weights:
            assert weight.dtype == self.kept[name].dtype and weight.shape == self.kept[name].shape
            self.kept[name].copy_(weight)
        save_file(self.kept, HERE / "loaded.safetensors")


class LLM:
    """Says a prompt again, and some more; what it says tells which of the samples this is.

    Samples end in any order and several in a step; where a plan `holds`, all of one prompt's end first, and the rest
    waits until a file appears.
    """

    def __init__(self, **settings):
        environment = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "VLLM_ENABLE_V1_MULTIPROCESSING")}
        note("settings", **settings, environment=environment)
        reached("start")
        self.settings, self.awake, self.steps, self.worker, self.waiting = settings, True, 0, None, []
        self.made, self.model = 0, None
        self.llm_engine = self
        self.vllm_config = SimpleNamespace(use_v2_model_runner=False)

    def collective_rpc(self, method, args):
        assert self.awake
        if not self.worker:
            import torch

            module, _, name = self.settings["worker_extension_cls"].rpartition(".")
            self.worker = getattr(importlib.import_module(module), name)()
            self.worker.model_runner = SimpleNamespace(model=Weights(self.settings["model"], self.settings["dtype"]))
            self.worker.rank, self.worker.device = 0, torch.device("cpu")
        note("model")
        return [getattr(self.worker, method)(*args)]

    def reset_prefix_cache(self):
        note("reset")

    def sleep(self):
        assert self.awake
        self.awake = False
        note("sleep")

    def wake_up(self):
        assert not self.awake
        self.awake = True
        note("wake")

    def enqueue(self, prompts, parameters, use_tqdm):
        assert self.awake and len(prompts) == len(parameters) and not use_tqdm
        note("enqueue", prompts=prompts, parameters=[vars(each) for each in parameters])
        names = [str(1000 + self.made + row) for row in range(len(prompts))]
        self.made += len(prompts)
        self.waiting += zip(range(len(prompts)), names, [prompt["prompt_token_ids"] for prompt in prompts], parameters)
        random.Random(3).shuffle(self.waiting)
        if "holds" in PLAN:
            self.waiting.sort(key=lambda each: each[2] == PLAN["holds"])
        return [name + "-a1b2" for name in names]

    def step(self):
        print("a library speaks in every step")
        self.steps += 1
        ends = random.Random(self.steps).randrange(PLAN.get("at_once", 3) + 1)
        ended = [self.waiting.pop() for _ in range(min(len(self.waiting), ends))]
        if "holds" in PLAN and PLAN["holds"] not in [prompt for _, _, prompt, _ in [*self.waiting, *ended]]:
            reached("hold")
            deadline = time.monotonic() + 60
            while not (HERE / "go").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        if not self.waiting:
            reached("last step")
        done = [SimpleNamespace(finished=True, request_id=each[1], outputs=[self.sample(*each)]) for each in ended]
        return [*done, SimpleNamespace(finished=False, request_id="7", outputs=[])]

    def sample(self, row, name, prompt, parameters):
        if PLAN.get("computes"):
            return computed(self, prompt, parameters)
        tokens = tuple([*prompt, row, *range(row % 5)] * PLAN.get("times", 1))
        return SimpleNamespace(
            token_ids=tokens,
            logprobs=[{token + 1: SimpleNamespace(logprob=0.0), token: SimpleNamespace(logprob=-(token + 1) / 7)} for token in tokens],
            finish_reason=["stop", "length"][row % 3 == 0],
        )


def computed(llm, prompt, parameters):
    from r1lite.engines import Sampling, TransformersEngine, in_order
    from transformers import AutoModelForCausalLM

    llm.model = llm.model or AutoModelForCausalLM.from_pretrained(llm.settings["model"], dtype=llm.settings["dtype"])
    llm.model.load_state_dict(llm.worker.model_runner.model.kept, strict=False)
    engine = TransformersEngine(llm.model, parameters.stop_token_ids, 0)
    sampling = Sampling(parameters.max_tokens, parameters.temperature, seed=llm.settings["seed"] + llm.steps)
    ((found,),) = in_order(engine.generate([prompt], 1, sampling))
    return SimpleNamespace(
        token_ids=found.token_ids,
        logprobs=[{token: SimpleNamespace(logprob=value)} for token, value in zip(found.token_ids, found.logprobs)],
        finish_reason="length" if found.truncated else "stop",
    )
'''
SAMPLING = Sampling(max_tokens=8, temperature=0.6, top_p=0.9, top_k=40, seed=11)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14], [8, 9]]


class StandIn:
    """Starts engines with a stand-in for vLLM that follows a plan, and has what it noted."""

    def __init__(self, path):
        self.path, self.engines = path, []
        (path / "vllm.py").write_text(VLLM)

    def start(self, model=None, dtype="float32", sleeps=False, **plan):
        self.plan(**plan)
        engine = vllm_engine.VLLMEngine(model or self.path, [2, 3], 64, 5, dtype, 0.4, sleeps)
        self.engines.append(engine)
        return engine

    def plan(self, **plan):
        (self.path / "plan.json").write_text(json.dumps(plan))

    def notes(self) -> list:
        file = self.path / "notes"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def noted(self, what) -> list:
        return [more for name, more in self.notes() if name == what]

    def go(self):
        (self.path / "go").touch()

    def loaded(self) -> dict:
        return load_file(self.path / "loaded.safetensors")


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.getcwd()}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stand_in = StandIn(tmp_path)
    yield stand_in
    for engine in stand_in.engines:
        engine.process.kill()
        engine.process.wait()
        engine.process.stdout.close()
        with suppress(BrokenPipeError):
            engine.process.stdin.close()


@pytest.fixture
def model(toy_model):
    return load_model(toy_model, "float32")


def collect(engine, n=3, prompts=PROMPTS, finished=None) -> list:
    finished = [] if finished is None else finished
    for batch in engine.generate(prompts, n, SAMPLING):
        assert batch
        finished += batch
    return finished


def said(row, prompt, times=1) -> tuple:
    """Tokens, log-probs in float32, and whether it was cut off, of the stand-in's sample of a row."""
    tokens = [*prompt, row, *range(row % 5)] * times
    return tokens, torch.tensor([-(token + 1) / 7 for token in tokens]).tolist(), row % 3 == 0


def contents(group) -> list:
    return sorted((each.token_ids, each.logprobs, each.truncated) for each in group.completions)


# Generation


@pytest.mark.parametrize("n", [1, 4])
def test_every_prompt_is_answered_once_by_a_whole_group_of_exactly_what_was_sampled(vllm, n):
    engine = vllm.start()
    for _ in range(2):
        finished = collect(engine, n)
        assert sorted(group.index for group in finished) == list(range(len(PROMPTS)))
        for group in finished:
            rows = range(group.index * n, group.index * n + n)
            assert contents(group) == sorted(said(row, PROMPTS[group.index]) for row in rows)
            assert group.seed == SAMPLING.seed


def test_the_same_prompt_twice_makes_two_groups(vllm):
    finished = collect(vllm.start(), 2, [[5, 6], [5, 6]])
    assert {group.index: contents(group) for group in finished} == {
        0: sorted([said(0, [5, 6]), said(1, [5, 6])]),
        1: sorted([said(2, [5, 6]), said(3, [5, 6])]),
    }


def test_no_prompts_have_no_groups(vllm):
    engine = vllm.start()
    assert collect(engine, prompts=[]) == []
    assert len(collect(engine)) == len(PROMPTS)


def test_a_group_that_ends_early_is_handed_over_while_the_rest_goes_on(vllm):
    batches = vllm.start(holds=PROMPTS[2]).generate(PROMPTS, 3, SAMPLING)
    first = next(batches)
    assert 2 in [group.index for group in first]
    assert not vllm.noted("last step")
    vllm.go()
    assert sorted(group.index for batch in [first, *batches] for group in batch) == list(range(len(PROMPTS)))


def test_vllm_never_waits_for_whoever_grades(vllm):
    batches = vllm.start(holds=PROMPTS[0], times=400).generate(PROMPTS, 30, SAMPLING)
    first = next(batches)
    vllm.go()
    wait_until(lambda: vllm.noted("last step"))
    finished = [group for batch in [first, *batches] for group in batch]
    assert sum(len(each.token_ids) for group in finished for each in group.completions) > 2**18
    for group in finished:
        rows = range(group.index * 30, group.index * 30 + 30)
        assert contents(group) == sorted(said(row, PROMPTS[group.index], 400) for row in rows)


def test_vllm_gets_the_settings_the_prompts_and_how_to_sample(vllm):
    engine = vllm.start(dtype="bfloat16", sleeps=True)
    assert engine.name == "vllm" and engine.dtype == torch.bfloat16
    collect(engine, 2)
    assert vllm.noted("settings") == [
        {
            "model": str(vllm.path),
            "max_model_len": 64,
            "seed": 5,
            "dtype": "bfloat16",
            "gpu_memory_utilization": 0.4,
            "enable_sleep_mode": True,
            "environment": {"CUDA_VISIBLE_DEVICES": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            **vllm_process.SETTINGS,
        }
    ]
    (order,) = vllm.noted("enqueue")
    assert order["prompts"] == [{"prompt_token_ids": prompt} for prompt in PROMPTS for _ in range(2)]
    how = {"max_tokens": 8, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "stop_token_ids": [2, 3]}
    assert order["parameters"] == [
        {**how, "logprobs": 0, "detokenize": False, "extra_args": {"row": row}} for row in range(2 * len(PROMPTS))
    ]


# Weights


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01).add_(0.003)


def assert_has_the_weights_of(engine, model, vllm):
    dtype = engine.dtype
    assert engine.weight_sums()[0] == pytest.approx(weight_sums(model.parameters(), dtype), rel=1e-11, abs=0)
    expected = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    loaded = vllm.loaded()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("size", [shared_buffer.BYTES, 1, 5000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sync_hands_over_the_trainers_weights_however_many_parts_it_takes(
    vllm, model, toy_model, monkeypatch, dtype, size
):
    monkeypatch.setattr(shared_buffer, "BYTES", size)
    engine = vllm.start(toy_model, dtype)
    for syncs in (1, 2, 3):
        change(model)
        assert engine.weight_sums()[0] != pytest.approx(weight_sums(model.parameters(), engine.dtype), rel=1e-6)
        engine.sync(model)
        assert_has_the_weights_of(engine, model, vllm)
        parts = len(vllm.noted("load"))
        assert (parts == syncs) if size > 5000 else (parts >= 3 * syncs)
        assert len(vllm.noted("reset")) == parts
    largest = max(parameter.numel() for parameter in model.parameters()) * engine.dtype.itemsize
    assert len(engine.buffer.bytes) == max(size, largest)


def test_weights_and_samples_take_turns(vllm, model, toy_model):
    engine = vllm.start(toy_model)
    for _ in range(3):
        change(model)
        engine.sync(model)
        assert len(collect(engine)) == len(PROMPTS)
        assert_has_the_weights_of(engine, model, vllm)


def test_a_sync_leaves_the_model_alone(vllm, model, toy_model):
    engine = vllm.start(toy_model, "bfloat16")
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    engine.sync(model)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad and parameter.grad is None


def test_a_proof_passes_after_a_sync_and_tells_of_weights_that_no_sync_has_reached(vllm, model, toy_model):
    engine = vllm.start(toy_model, computes=True)
    change(model)
    engine.sync(model)
    prove_sync(engine, model, PROMPTS, 0.7, 12)
    change(model)
    with pytest.raises(RuntimeError, match="has not the trainer's weights"):
        prove_sync(engine, model, PROMPTS, 0.7, 12)


def test_a_proof_tells_of_a_vllm_that_loads_nothing(vllm, model, toy_model):
    engine = vllm.start(toy_model, deaf=True)
    change(model)
    engine.sync(model)
    with pytest.raises(RuntimeError, match="the vllm engine has not the trainer's weights"):
        prove_sync(engine, model, PROMPTS, 0.7, 12)


# Sleep


def use(engine, model):
    collect(engine)
    collect(engine)
    engine.sync(model)
    engine.sync(model)
    collect(engine)
    engine.weight_sums()
    engine.weight_sums()
    collect(engine)


def works(vllm) -> list:
    names = ["enqueue", "load", "model", "sleep", "wake"]
    return [name for name, _ in groupby(name for name, _ in vllm.notes() if name in names)]


def test_it_sleeps_after_it_has_generated_until_it_is_needed(vllm, model, toy_model):
    engine = vllm.start(toy_model, sleeps=True)
    use(engine, model)
    generates = ["enqueue", "sleep", "wake"]
    syncs = ["model", "load"] * 2
    assert works(vllm) == [*generates, *generates, *syncs, *generates, "model", "enqueue", "sleep"]
    engine.close()
    assert engine.process.returncode == 0


def test_it_never_sleeps_unless_asked_to(vllm, model, toy_model):
    use(vllm.start(toy_model), model)
    assert works(vllm) == ["enqueue", *["model", "load"] * 2, "enqueue", "model", "enqueue"]


# Ends

DIED = r"vLLM has died \(exit code 7\); the log has its last words"


def test_a_vllm_that_does_not_start_is_told(vllm):
    with pytest.raises(RuntimeError, match=DIED):
        vllm.start(dies="start")


def test_what_was_finished_is_handed_over_before_a_death_is_told(vllm):
    engine = vllm.start(holds=PROMPTS[1], dies="hold")
    finished = []
    with pytest.raises(RuntimeError, match=DIED):
        collect(engine, finished=finished)
    assert [(group.index, contents(group)) for group in finished] == [
        (1, sorted(said(row, PROMPTS[1]) for row in (3, 4, 5)))
    ]
    engine.close()


def test_a_death_in_a_sync_is_told(vllm, model, toy_model):
    engine = vllm.start(toy_model, dies="load")
    with pytest.raises(RuntimeError, match=DIED):
        engine.sync(model)
    engine.close()


def test_a_death_between_two_orders_is_told_by_the_next(vllm, model):
    engine = vllm.start()
    engine.process.kill()
    engine.process.wait()
    for order in (engine.weight_sums, lambda: engine.sync(model), lambda: collect(engine)):
        with pytest.raises(RuntimeError, match=r"vLLM has died \(exit code -9\)"):
            order()


def test_a_vllm_that_had_died_before_its_last_order_can_be_closed(vllm):
    engine = vllm.start()
    engine.process.kill()
    engine.process.wait()
    with pytest.raises(RuntimeError, match="vLLM has died"):
        engine.weight_sums()
    engine.close()


HALF_A_LINE = """
import os, sys
sys.stdin.readline()
print("ready", flush=True)
sys.stdin.readline()
os.write(1, b'[[0, "AAAA')
os._exit(7)
"""


@pytest.mark.parametrize("order", [collect, vllm_engine.VLLMEngine.weight_sums], ids=["generate", "sums"])
def test_a_death_in_the_middle_of_a_line_is_told(vllm, monkeypatch, order):
    monkeypatch.setattr(vllm_process, "PROGRAM", [sys.executable, "-c", HALF_A_LINE])
    engine = vllm.start()
    with pytest.raises(RuntimeError, match=DIED):
        order(engine)


def test_who_stops_listening_does_not_leave_it_at_work(vllm):
    engine = vllm.start(holds=PROMPTS[0])
    batches = engine.generate(PROMPTS, 3, SAMPLING)
    next(batches)
    batches.close()
    assert engine.process.wait() == -9
    engine.close()


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_closed_engine_leaves_no_process(vllm, sleeps):
    engine = vllm.start(sleeps=sleeps)
    collect(engine)
    assert alive(engine.process.pid)
    engine.close()
    assert engine.process.returncode == 0 and not alive(engine.process.pid)


PARENT = """
import sys
from r1lite.engines import Sampling
from r1lite.vllm_engine import VLLMEngine

engine = VLLMEngine(sys.argv[1], [2], 64, 5, "float32", 0.4)
print(engine.process.pid, flush=True)
list(engine.generate([[5], [6]], 1, Sampling(8)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has died")
def test_a_trainer_killed_by_force_leaves_no_vllm_behind_however_busy_it_is(vllm):
    vllm.plan(holds=[5])
    with subprocess.Popen([sys.executable, "-c", PARENT, vllm.path], stdout=subprocess.PIPE, text=True) as parent:
        child = int(next(line for line in parent.stdout if line.strip().isdecimal()))
        wait_until(lambda: vllm.noted("hold"))
        assert alive(child)
        parent.kill()
    wait_until(lambda: not alive(child))


# What goes through the pipe


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.lists(st.floats(max_value=0, allow_nan=False, width=32)))
def test_ids_and_log_probs_come_out_of_the_pipe_as_they_went_in(ids, logprobs):
    assert unpacked("i", packed("i", ids)) == unpacked("i", packed("i", tuple(ids))) == ids
    assert unpacked("f", packed("f", logprobs)) == logprobs
    assert "\n" not in packed("f", logprobs)


def test_an_impossible_token_keeps_its_log_prob():
    assert unpacked("f", packed("f", [-math.inf, -0.1])) == [-math.inf, torch.tensor(-0.1).item()]
