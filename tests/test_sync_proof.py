import copy
import random

import pytest
import torch
from safetensors.torch import load_file
from test_distill import make_config as make_distill_config
from test_distill import make_stage as make_distill_stage
from test_distill import make_teacher
from test_trainer import make_config, make_stage, rollout_rows

from r1lite import distillation, trainer
from r1lite.engines import TransformersEngine, weight_sums
from r1lite.models import load_model, load_tokenizer
from r1lite.sync_proof import SUMS, prove_sync

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5]]
NOT_SYNCED = "the transformers engine has not the trainer's weights after a sync"
OTHER_LOGPROBS = "has the trainer's weights but computes other log-probs"


class Frozen(TransformersEngine):
    """An engine with weights of its own that no sync reaches."""

    def __init__(self, model, tokenizer, dtype=torch.float32):
        super().__init__(copy.deepcopy(model).to(dtype), [tokenizer.eos_token_id], tokenizer.pad_token_id)

    def sync(self, model):
        pass


class Copying(Frozen):
    def sync(self, model):
        self.model.load_state_dict(model.state_dict())


def use_engine(monkeypatch, module, kind) -> list:
    """Have a stage make its engine of this kind; the engine, once there is one."""
    made = []

    def rollout_engine(config, arguments, path, model, tokenizer, longest):
        made.append(kind(model, tokenizer))
        return made[0]

    monkeypatch.setattr(module, "rollout_engine", rollout_engine)
    return made


def train(path, toy_model, **trainer_keys) -> dict:
    config = make_config(toy_model, probe=None, trainer={"max_steps": 3, **trainer_keys})
    return trainer.train_grpo(config, make_stage(path, config))


@pytest.fixture
def model(toy_model):
    return load_model(toy_model, "float32")


@pytest.fixture
def tokenizer(toy_model):
    return load_tokenizer(toy_model)


def prove(engine, model, temperature=0.7):
    prove_sync(engine, model, PROMPTS, temperature, 12)


# Training


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-6])
def test_an_engine_that_no_sync_reaches_is_caught_after_the_first_update(
    toy_model, tmp_path, monkeypatch, learning_rate
):
    use_engine(monkeypatch, trainer, Frozen)
    with pytest.raises(RuntimeError, match=NOT_SYNCED):
        train(tmp_path, toy_model, learning_rate=learning_rate)
    assert {row["step"] for row in rollout_rows(tmp_path)} == {0}
    assert not (tmp_path / "model").exists()


def test_an_engine_that_copies_the_weights_trains_as_one_without_a_copy(toy_model, tmp_path, monkeypatch):
    train(tmp_path / "live", toy_model)
    made = use_engine(monkeypatch, trainer, Copying)
    assert train(tmp_path / "copy", toy_model)["steps"] == 3
    assert len(made) == 1
    assert rollout_rows(tmp_path / "copy") == rollout_rows(tmp_path / "live")
    expected, got = (load_file(tmp_path / name / "model/model.safetensors") for name in ("live", "copy"))
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_the_student_of_a_distillation_is_proven_as_well(toy_model, tokenizer, tmp_path, monkeypatch):
    make_teacher(tmp_path / "teacher", tokenizer, len(tokenizer))
    config = make_distill_config(toy_model, tmp_path / "teacher", trainer={"max_steps": 2, "save_steps": 1})
    use_engine(monkeypatch, distillation, Frozen)
    with pytest.raises(RuntimeError, match=NOT_SYNCED):
        distillation.train_distill(config, make_distill_stage(tmp_path / "frozen", config))
    assert {row["step"] for row in rollout_rows(tmp_path / "frozen")} == {0}
    use_engine(monkeypatch, distillation, Copying)
    assert distillation.train_distill(config, make_distill_stage(tmp_path / "copy", config))["steps"] == 2


# What the two proofs tell


def swap_layers(model):
    one, other = (layer.self_attn.q_proj for layer in model.model.layers)
    one.weight.data, other.weight.data = other.weight.data, one.weight.data


def permute_rows(model):
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.roll(1, 0)


def swap_gate_and_up(model):
    gate, up = model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj
    gate.weight.data, up.weight.data = up.weight.data, gate.weight.data


@pytest.mark.parametrize("misplace", [swap_layers, permute_rows, swap_gate_and_up])
def test_weights_in_the_wrong_place_are_caught_by_their_log_probs(model, tokenizer, misplace):
    engine = Frozen(model, tokenizer)
    prove(engine, model)
    misplace(engine.model)
    assert engine.weight_sums()[0] == pytest.approx(weight_sums(model.parameters(), torch.float32), rel=1e-12)
    with pytest.raises(RuntimeError, match=OTHER_LOGPROBS):
        prove(engine, model)


def test_an_engine_that_samples_at_another_temperature_is_caught(model, tokenizer):
    class Hotter(Frozen):
        def generate(self, prompts, n, sampling):
            return super().generate(prompts, n, type(sampling)(sampling.max_tokens, 1.0))

    with pytest.raises(RuntimeError, match=OTHER_LOGPROBS):
        prove(Hotter(model, tokenizer), model)


def test_an_engine_in_bfloat16_has_the_weights_of_a_trainer_in_float32(model, tokenizer):
    engine = Frozen(model, tokenizer, torch.bfloat16)
    assert weight_sums(model.parameters(), torch.bfloat16) == engine.weight_sums()[0]
    assert weight_sums(model.parameters(), torch.float32) != engine.weight_sums()[0]
    prove(engine, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-8)
    with pytest.raises(RuntimeError, match=NOT_SYNCED):
        prove(engine, model)


WEIGHTS = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((40, 8), (16, 8), (8,), (3, 8))]


@pytest.mark.parametrize(
    "laid_out",
    [
        [torch.cat([WEIGHTS[0], WEIGHTS[1], WEIGHTS[3]]), WEIGHTS[2]],
        WEIGHTS[::-1],
        [*WEIGHTS, torch.zeros(5, 8)],
        [torch.nn.functional.pad(weight, (0, 3)) for weight in WEIGHTS],
        [weight.T.contiguous() if weight.dim() == 2 else weight for weight in WEIGHTS],
    ],
    ids=["fused", "reversed", "zeros", "padded", "transposed"],
)
def test_the_sums_do_not_depend_on_how_weights_are_laid_out(laid_out):
    sums = weight_sums(WEIGHTS, torch.float32)
    assert all(
        abs(a - b) < SUMS / 1e3 * sums[1] for a, b in zip(weight_sums(laid_out, torch.float32), sums, strict=True)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sums_tell_that_one_weight_has_changed_a_little(model, tokenizer, sign):
    engine = Frozen(model, tokenizer)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 5] = 1.0
        engine.model.model.layers[1].mlp.up_proj.weight[3, 5] = 1.0
        prove(engine, model)
        weight[3, 5] += sign * 100 * 2**-23
    change = weight_sums(model.parameters(), torch.float32)[0] - engine.weight_sums()[0][0]
    assert change == pytest.approx(weight[3, 5].item() - 1.0, rel=1e-3)
    with pytest.raises(RuntimeError, match=NOT_SYNCED):
        prove(engine, model)


def test_tied_embeddings_count_once_on_both_sides(toy_model, model, tokenizer):
    assert model.lm_head.weight is model.model.embed_tokens.weight
    kept = load_file(toy_model / "model.safetensors")
    assert "lm_head.weight" not in kept
    sums = weight_sums(kept.values(), torch.float32)
    for side in (weight_sums(model.parameters(), torch.float32), Copying(model, tokenizer).weight_sums()[0]):
        assert side == pytest.approx(sums, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_a_proof_leaves_the_model_and_the_random_states_alone(model, tokenizer, training):
    live = TransformersEngine(model, [tokenizer.eos_token_id], tokenizer.pad_token_id)
    for engine in (live, Frozen(model, tokenizer)):
        model.train(training)
        before = (torch.get_rng_state(), random.getstate(), weight_sums(model.parameters(), torch.float32))
        prove(engine, model)
        assert {module.training for module in model.modules()} == {training}
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), weight_sums(model.parameters(), torch.float32)) == before[1:]
        assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
        assert not any(weight.is_inference() for weight in model.parameters())


@pytest.mark.parametrize(
    ("whose", "told"), [("engine", "has not the trainer's weights"), ("trainer", "no longer finite")]
)
def test_weights_that_are_no_numbers_are_told(toy_model, whose, told):
    model = load_model(toy_model, "float32")
    engine = TransformersEngine(copy.deepcopy(model), [1], 0)
    with torch.no_grad():
        next(iter((engine.model if whose == "engine" else model).parameters())).fill_(torch.nan)
    with pytest.raises(RuntimeError, match=told):
        prove_sync(engine, model, [[5, 6]], 1.0, 8)
