"""The estimate of a GPU's memory against measured peaks, and what is said where it is too little."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from r1lite.cli import app
from r1lite.hardware import parse_hardware, read_shape, setting_of, shape_of
from r1lite.memory import Setting, changes, estimate, fits
from r1lite.recipe import load_recipe

TINY = json.loads(Path("data/tiny_base/config.json").read_text())
QWEN3_06B = {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128,
    "num_key_value_heads": 8, "intermediate_size": 3072, "tie_word_embeddings": True, "vocab_size": 151_936,
}  # fmt: skip
QWEN25_15B = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True, "vocab_size": 151_936,
}  # fmt: skip
QWEN25_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "tie_word_embeddings": False, "vocab_size": 152_064,
}  # fmt: skip
# On one H200, 2026-11-26, by bench/grpo_step.py: the whole GPU at its peak.
MEASURED = {
    "tiny": (TINY, 224, 0.1, 16.6),
    "equal": (QWEN3_06B, 1088, 0.5, 112.7),
    "tailed": (QWEN3_06B, 4160, 0.5, 115.7),
    "large": (QWEN25_15B, 2112, 0.3, 108.4),
}
H200 = Setting(139.8, 1, 1088, 16384, 512, 0.5, False, False, False, False)
H100S = replace(H200, card=79.1, checkpoints=True)


def shape(config):
    return read_shape(config, "there")


@pytest.mark.parametrize("workload", MEASURED)
def test_the_estimate_is_near_what_was_measured(workload):
    config, longest, share, measured = MEASURED[workload]
    found = estimate(shape(config), replace(H200, longest=longest, share=share)).peak
    assert abs(found - measured) < 0.15 * measured
    # Most of it is what vLLM was told to take: the rest has to be right as well, to a GiB where it is little.
    own, estimated = measured - share * H200.card, found - share * H200.card
    assert abs(estimated - own) < max(0.15 * own, 1.2)


@pytest.mark.parametrize(("config", "weights"), [(QWEN25_15B, 1.5437e9), (QWEN25_7B, 7.6156e9), (QWEN3_06B, 0.59605e9)])
def test_weights_are_counted(config, weights):
    assert shape(config).weights == pytest.approx(weights, rel=1e-3)


def test_weights_of_the_tiny_model_are_those_in_its_file():
    with safe_open("data/tiny_base/model.safetensors", "np") as file:
        there = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert shape(TINY).weights == pytest.approx(there, rel=1e-2)


@pytest.mark.parametrize(
    ("config", "setting", "helps"),
    [
        (QWEN3_06B, replace(H200, card=79.1), ["trainer.vllm_gpu_memory_utilization: 0.4"]),
        (QWEN25_15B, replace(H200, card=79.1, longest=16384), ["trainer.gradient_checkpointing: true"]),
        (QWEN25_7B, replace(H100S, gpus=8), ["launch.accelerate: recipes/accelerate/fsdp2.yaml"]),
        (QWEN25_7B, replace(H200, gpus=4),
         ["tokens_per_micro_batch: 4096", "launch.accelerate: recipes/accelerate/fsdp2.yaml"]),
        (QWEN25_7B, replace(H200, gpus=4, checkpoints=True, share=0.02),
         ["launch.accelerate: recipes/accelerate/fsdp2.yaml", "trainer.vllm_gpu_memory_utilization: 0.6"]),
        (QWEN25_7B, H100S, []),
    ],
    ids=["less for vLLM", "computed again", "shared", "two", "what is left for vLLM", "nothing helps"],
)  # fmt: skip
def test_the_fewest_changes_that_help_are_told(config, setting, helps):
    assert not fits(shape(config), setting)
    assert changes(shape(config), setting) == helps


def test_what_fits_fits():
    assert fits(shape(QWEN3_06B), H200)
    assert not fits(shape(QWEN3_06B), replace(H200, share=0.02)), "vLLM has no room for a completion"


def test_each_part_follows_from_what_it_is_of():
    one = estimate(shape(QWEN3_06B), H200).parts
    assert one["weights"] == one["gradients"] == one["optimizer"] / 2 == pytest.approx(2 * one["in bfloat16"])
    assert one["vLLM"] == H200.share * H200.card and one["reference"] == 0
    many = estimate(shape(QWEN3_06B), replace(H200, gpus=4)).parts
    assert many["gradients"] == 2 * one["gradients"], "DDP sums them in buckets"
    shared = estimate(shape(QWEN3_06B), replace(H200, gpus=4, shards=True, reference=True)).parts
    assert shared["optimizer"] == one["optimizer"] / 4 and shared["reference"] == one["weights"] / 4
    half = estimate(shape(QWEN3_06B), replace(H200, budget=8192)).parts
    assert half["activations"] == one["activations"] / 2
    asleep, awake = (estimate(shape(QWEN3_06B), replace(H200, sleeps=sleeps)).peak for sleeps in (True, False))
    assert asleep < awake


@pytest.mark.parametrize(
    ("said", "meant"), [("8xH100", (8, 79.1)), ("h200", (1, 139.8)), ("4x48", (4, 48.0)), ("1x23.5", (1, 23.5))]
)
def test_hardware_is_read(said, meant):
    assert parse_hardware(said) == meant


@pytest.mark.parametrize("said", ["8xH1000", "", "x", "0xH100", "8x", "4xnan", "2x0", "2xinf", "8 x H100"])
def test_hardware_that_is_none_is_told(said):
    with pytest.raises(ValueError, match="write the GPUs of a machine as 8xH100, with one of A100, H100, H200"):
        parse_hardware(said)


def test_a_model_that_is_no_plain_decoder_is_told():
    with pytest.raises(ValueError, match="the memory of m cannot be estimated from its config.json: 'vocab_size'"):
        read_shape({key: value for key, value in TINY.items() if key != "vocab_size"}, "m")
    with pytest.raises(ValueError, match="it is a mixture of experts"):
        read_shape({**TINY, "num_experts": 8}, "m")


def test_the_model_of_a_later_stage_is_that_of_the_first():
    assert shape_of(load_recipe(Path("recipes/tiny/distill.yaml")), "$r1") == shape(TINY)
    from_scratch = shape_of(load_recipe(Path("recipes/tiny/base.yaml")), "$base")
    assert replace(from_scratch, vocabulary=TINY["vocab_size"]) == shape(TINY)


def test_a_recipe_says_what_its_stages_take():
    overrides = ["launch={gpus: 4, num_machines: 2}", "stages.zero.trainer.beta=0.1", "stages.zero.max_tokens=20000"]
    recipe = load_recipe(Path("recipes/tiny/zero.yaml"), overrides)
    found = setting_of(recipe.stages["zero"], recipe, "8xH100")
    assert found.gpus == 8 and found.card == 79.1 and found.longest == found.budget == 20512
    assert found.reference and not found.shards and not found.sleeps and found.share == 0.5
    for file, shards in (("zero2", False), ("zero3", True), ("fsdp2", True)):
        overrides.append(f"launch.accelerate=recipes/accelerate/{file}.yaml")
        recipe = load_recipe(Path("recipes/tiny/zero.yaml"), overrides)
        assert setting_of(recipe.stages["zero"], recipe, "8xH100").shards == shards
    with pytest.raises(ValueError, match="launch.gpus: 4 are more than the 2 of 2xH100"):
        setting_of(recipe.stages["zero"], recipe, "2xH100")


def test_servers_of_rollouts_leave_the_trainers_gpus_to_the_trainers():
    def setting(launch, hardware="8xH100"):
        recipe = load_recipe(Path("recipes/tiny/zero.yaml"), [f"launch={launch}"])
        return setting_of(recipe.stages["zero"], recipe, hardware)

    colocated, served = setting("{gpus: 6}"), setting("{rollouts: {tensor_parallel: 2}}")
    assert (served.gpus, served.servers, served.server_gpus, served.share) == (6, 1, 2, 0.85)
    model = shape(QWEN25_7B)
    assert estimate(model, served).parts == {**estimate(model, colocated).parts, "vLLM": 0.0}
    assert estimate(model, served).room > 2 * estimate(model, colocated).room, "on two whole GPUs"
    far = setting("{main_process_ip: 10.0.0.1, rollouts: {nodes: 2, tensor_parallel: 4, data_parallel: 2}}")
    assert (far.gpus, far.servers, far.server_gpus) == (8, 4, 4)
    small = replace(served, card=40.0, shards=True)
    assert not any("vllm" in change for change in changes(shape(QWEN25_15B), small))
    with pytest.raises(ValueError, match="launch.rollouts: 8 GPUs of each machine are too many for 8xH100"):
        setting("{rollouts: {tensor_parallel: 8}}")
    with pytest.raises(ValueError, match="launch.gpus: 7 and 2 of launch.rollouts are more than the 8 of 8xH100"):
        setting("{gpus: 7, rollouts: {tensor_parallel: 2}}")


def test_plan_says_whether_it_fits(tmp_path):
    def said(hardware, *more):
        words = ["plan", "recipes/tiny/zero.yaml", "--runs", str(tmp_path), "--hardware", hardware, *more]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.output

    assert "zero: fits on 1 GPU of 79.1 GiB; vLLM has room for 256 of 256 completions" in said("8xH100")
    assert "not estimated, since only GRPO stages are: report" in said("8xH100")
    assert "zero: does not fit on 1 GPU of 3 GiB; no setting helps" in said("1x3")
    assert "at its peak" in said("1x3")
    padded = said("1x3", "--set", "stages.zero.stock=true")
    assert "packed rows are (`stock: false`): zero" in padded and "fit on" not in padded
