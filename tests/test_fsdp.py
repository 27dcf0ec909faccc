"""A sharded model: FSDP2 on the CPU, where accelerate has to be talked into it; test_packed_trainer has its gradients."""

import pytest
from safetensors.torch import load_file
from test_packed_trainer import run_processes

from r1lite.artifacts import STOP, newest_checkpoint
from r1lite.models import load_model


@pytest.mark.slow
@pytest.mark.alone
def test_an_interrupted_run_of_a_sharded_model_resumed_is_the_uninterrupted_run(toy_model, tmp_path):
    def run(name, stop=False):
        there = tmp_path / name
        there.mkdir(exist_ok=True)
        if stop:
            (there / STOP).touch()
        run_processes(2, ["tests/fsdp_ranks.py", str(toy_model), str(there)], shards=True)
        return there

    run("cut", stop=True)
    checkpoint = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint and checkpoint.name == "checkpoint-1"
    assert (checkpoint / "pytorch_model_fsdp.bin").exists(), "it was sharded indeed"
    (tmp_path / "cut" / STOP).unlink()
    cut, whole = (load_file(run(name) / "model/model.safetensors") for name in ("cut", "whole"))
    assert all((cut[name] == whole[name]).all() for name in whole)
    found = dict(load_model(tmp_path / "cut" / "model", "float32").named_parameters())
    before = dict(load_model(toy_model, "float32").named_parameters())
    assert set(found) == set(before) and any((found[name] != before[name]).any() for name in before)
