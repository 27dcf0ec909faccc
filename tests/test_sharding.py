"""A model, or what trains it, in parts: FSDP2 and DeepSpeed's ZeRO on the CPU, where accelerate has to be talked into it.

test_packed_trainer has FSDP2's gradients.
"""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_packed_trainer import run_processes
from test_trainer import make_config, make_stage

from r1lite.artifacts import STOP, newest_checkpoint
from r1lite.distillation import train_distill
from r1lite.models import load_model
from r1lite.observe import read_metrics
from r1lite.rollouts import rollout_engine
from r1lite.sharding import as_without_deepspeed, shards
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
    config = SimpleNamespace(engine="transformers", max_tokens=8)
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


def test_distillation_is_refused_with_zero_3(monkeypatch):
    for name, value in ZERO3.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"does not gather what ZeRO-3 shares; take recipes/accelerate/fsdp2\.yaml"):
        train_distill(MagicMock(), MagicMock())


def test_models_of_float32_compute_in_half_precision_in_every_pass(toy_model):
    model, plain = load_model(toy_model, "float32"), load_model(toy_model, "float32")
    trainer = SimpleNamespace(model=model, ref_model=None, accelerator=SimpleNamespace(unwrap_model=lambda each: each))
    as_without_deepspeed(trainer, "bfloat16")
    ids = torch.arange(12)[None]
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(ids).logits.float()
    assert model(ids).logits.dtype == torch.float32 and torch.equal(model(ids).logits, expected)
    assert not torch.equal(model(ids).logits, plain(ids).logits)


def run_kept(world, model, there, accelerate, stop=False, **keys):
    """The directory of a stage of three steps that so many processes have trained, or been asked to end."""
    there.mkdir(exist_ok=True)
    if stop:
        (there / STOP).touch()
    run_processes(world, ["tests/kept_ranks.py", str(model), str(there), json.dumps(keys)], accelerate)
    return there


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.alone
def test_deepspeed_learns_what_one_process_alone_does(toy_model, tmp_path):
    """From several micro-batches a step and steps a rollout, with gradients clipped and a reference model."""
    keys = {"loss_type": "dapo", "beta": 0.04, "num_iterations": 2, "optim": "sgd", "learning_rate": 0.05}
    found = {}
    for world, accelerate in ((1, "ddp"), (2, "zero2"), (2, "zero3")):
        there = run_kept(world, toy_model, tmp_path / accelerate, accelerate, max_grad_norm=0.5, **keys)
        steps = [(row["loss"], row["grad_norm"]) for row in read_metrics(there / "metrics.jsonl")]
        found[accelerate] = load_file(there / "model/model.safetensors"), steps
    one, steps = found.pop("ddp")
    assert len(steps) == 3 and min(norm for _, norm in steps) > 0.5
    before = dict(load_model(toy_model, "float32").named_parameters())
    assert set(one) == set(before) and any(not torch.allclose(one[name], before[name], atol=1e-3) for name in one)
    for two, same in found.values():
        assert set(two) == set(one) and all(torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-6) for name in one)
        assert np.allclose(same, steps, rtol=1e-5, atol=1e-6)


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
        return run_kept(2, toy_model, tmp_path / name, accelerate, stop, learning_rate=0.01)

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
