"""A model, or what trains it, in parts: FSDP2 and DeepSpeed's ZeRO on the CPU, where accelerate has to be talked into it.

test_packed_trainer has FSDP2's gradients.
"""

from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file
from test_packed_trainer import run_processes, run_ranks
from test_trainer import make_config, make_stage

from r1lite.artifacts import STOP, newest_checkpoint
from r1lite.models import load_model
from r1lite.rollouts import rollout_engine
from r1lite.sharding import shards
from r1lite.trainer import train_grpo

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO2, ZERO3 = ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in "23")
needs_deepspeed = pytest.mark.skipif(
    not find_spec("deepspeed"), reason="needs DeepSpeed: pip install r1lite[deepspeed]"
)


@pytest.mark.parametrize(
    ("told", "sharded"), [({}, False), (ZERO2, False), (ZERO3, True), ({"ACCELERATE_USE_FSDP": "true"}, True)]
)
def test_the_model_itself_does_not_sample_where_it_is_sharded(monkeypatch, told, sharded):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert shards() == sharded
    config = SimpleNamespace(engine="transformers")
    with pytest.raises(ValueError, match="each process has a part only") if sharded else nullcontext():
        rollout_engine(config, None, None, MagicMock(), MagicMock(), 0)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        (
            "sync_ref_model",
            "trainer.sync_ref_model: is not kept over a resume by FSDP or DeepSpeed; take it out, or use",
        ),
        ("fp16", "trainer.fp16: has not been proven with DeepSpeed; take bf16, or recipes/accelerate/ddp.yaml"),
    ],
)
def test_what_deepspeed_would_not_keep_is_refused(toy_model, tmp_path, monkeypatch, key, fault):
    config = make_config(toy_model, probe=None, trainer={"max_steps": 1, key: True})
    for name, value in ZERO2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=fault):
        train_grpo(config, make_stage(tmp_path, config))


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.alone
def test_deepspeed_learns_what_one_process_alone_does(toy_model, tmp_path):
    """From several micro-batches a step and steps a rollout, with gradients clipped and a reference model."""
    keys = {"loss_type": "dapo", "beta": 0.04, "num_iterations": 2, "max_grad_norm": 0.5}
    one, (passes,), run = run_ranks(1, toy_model, tmp_path / "one", keys)
    assert len(run["losses"]) == 3 and len(passes) > 6 and min(run["norms"]) > 0.5
    before = dict(load_model(toy_model, "float32").named_parameters())
    assert any(not torch.allclose(one[name], before[name], atol=1e-3) for name in one)
    for accelerate in ("zero2", "zero3"):
        two, shared, same = run_ranks(2, toy_model, tmp_path / accelerate, keys, accelerate)
        assert min(map(len, shared)) > 3
        assert all(torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-6) for name in one)
        assert same["losses"] == pytest.approx(run["losses"], rel=1e-5, abs=1e-6)
        assert same["norms"] == pytest.approx(run["norms"], rel=1e-5), "of gradients before they are clipped"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("accelerate", "part"),
    [
        ("fsdp2", "pytorch_model_fsdp.bin"),
        pytest.param("zero3", "global_step1/zero_pp_rank_1_mp_rank_00_model_states.pt", marks=needs_deepspeed),
    ],
)
def test_an_interrupted_run_of_a_sharded_model_resumed_is_the_uninterrupted_run(toy_model, tmp_path, accelerate, part):
    def run(name, stop=False):
        there = tmp_path / name
        there.mkdir(exist_ok=True)
        if stop:
            (there / STOP).touch()
        run_processes(2, ["tests/kept_ranks.py", str(toy_model), str(there)], accelerate)
        return there

    run("cut", stop=True)
    checkpoint = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint and checkpoint.name == "checkpoint-1"
    assert (checkpoint / part).exists(), "it was sharded indeed"
    (tmp_path / "cut" / STOP).unlink()
    cut, whole = (load_file(run(name) / "model/model.safetensors") for name in ("cut", "whole"))
    assert all((cut[name] == whole[name]).all() for name in whole)
    found = dict(load_model(tmp_path / "cut" / "model", "float32").named_parameters())
    before = dict(load_model(toy_model, "float32").named_parameters())
    assert set(found) == set(before) and any((found[name] != before[name]).any() for name in before)
