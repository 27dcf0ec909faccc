import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from r1lite import distillation
from r1lite.artifacts import Artifact, Spec
from r1lite.distillation import same_vocabulary, shared_width, train_distill
from r1lite.models import load_model, load_tokenizer
from r1lite.observe import read_metrics
from r1lite.problems import load_problems
from r1lite.prompts import encode, render
from r1lite.records import read_rows
from r1lite.stages.base import build_tokenizer
from r1lite.stages.distill import OWNED, Config
from r1lite.trainer_keys import fields
from r1lite.worker import Stage


def evenness(completions, **_):
    """A reward that an untrained model earns now and then."""
    return [float(len(completion) % 2 == 0) for completion in completions]


def make_teacher(path, tokenizer, vocab_size: int) -> None:
    """Wider and shallower than the toy model, and with a head of its own."""
    save_model(
        path, tokenizer, 1, vocab_size=vocab_size, hidden_size=48, num_hidden_layers=1, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(toy_model, tmp_path_factory):
    tokenizer = load_tokenizer(toy_model)
    path = tmp_path_factory.mktemp("teacher")
    make_teacher(path, tokenizer, len(tokenizer))
    return path


def make_stage(path, config: Config) -> Stage:
    spec = Spec("t", "small", "distill", {"a": 1}, {}, config.model_dump(mode="json"))
    Artifact(path).prepare(spec)
    return Stage(path, spec)


def make_config(student, teacher, **changes) -> Config:
    settings = {
        "kind": "distill",
        "prompt": "plain",
        "model": str(student),
        "teacher": str(teacher),
        "problems": "data/chain.yaml#probe",
        "prompts_per_step": 4,
        "generations": 2,
        "max_tokens": 12,
        "micro_batch": 4,
    }
    trainer_keys = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "beta": 1.0,
        "save_steps": 2,
        "gradient_checkpointing": False,
    }
    return Config.model_validate({**settings, **changes, "trainer": {**trainer_keys, **changes.get("trainer", {})}})


def distill(path, config: Config) -> dict:
    return train_distill(config, make_stage(path, config))


def rollout_rows(path) -> list:
    return [row for file in sorted((path / "rollouts").glob("*.parquet")) for row in read_rows(file)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainer": {"beta": 1.5}}, "trainer.beta: must be from 0 (forward KL) to 1 (reverse KL); got 1.5"),
        ({"trainer": {"max_steps": 0}}, "trainer.max_steps: must be a whole number of at least 1; got 0"),
        ({"trainer": {"save_steps": 0.5}}, "trainer.save_steps: must be a whole number of at least 1; got 0.5"),
        ({"trainer": {"num_train_epochs": 1}}, "trainer: state one of max_steps and num_train_epochs"),
        ({"trainer": {"temperature": 0.5}}, "trainer.temperature: set by r1lite; use temperature instead"),
        ({"trainer": {"teacher_model_name_or_path": "x"}},
         "trainer.teacher_model_name_or_path: set by r1lite; use teacher instead"),
        ({"trainer": {"vllm_mode": "server"}}, "trainer.vllm_mode: set by r1lite; use engine instead"),
        ({"trainer": {"vllm_max_model_length": 64}}, "trainer.vllm_max_model_length: set by r1lite; use max_tokens"),
        ({"trainer": {"bata": 1.0}}, "trainer.bata: not a field of DistillationConfig; did you mean 'beta'?"),
        ({"trainer": {"beta": "reverse"}}, "trainer.beta: must be float; got 'reverse'"),
        ({"micro_batch": 3}, "micro_batch: 3 does not divide prompts_per_step x generations = 8"),
    ],
)  # fmt: skip
def test_what_the_types_cannot_say_is_a_fault(changes, expected):
    faults = list(make_config("a", "b", **changes).faults())
    assert len(faults) == 1
    assert faults[0].startswith(expected.split("; did")[0])


def test_a_config_without_faults_and_one_that_leaves_out_what_has_to_be_stated():
    config = make_config("a", "b")
    assert list(config.faults()) == []
    bare = config.model_copy(update={"trainer": {}})
    assert [fault.split(";")[0] for fault in bare.faults()] == [
        "trainer.learning_rate: missing",
        "trainer.beta: missing",
        "trainer: state one of max_steps and num_train_epochs",
    ]


def test_all_keys_that_r1lite_owns_are_keys_of_trl():
    gone = {"logging_dir"}  # of transformers 4, refused so that nobody relies on it
    assert set(OWNED) - gone <= set(fields("DistillationConfig"))


def tokenizer_of(tokens, **special):
    tokenizer = build_tokenizer(tokens)
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return tokenizer


def tokenizer_that_begins_with(token):
    tokenizer = build_tokenizer(["a", "b", "c"])
    processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, tokenizer.get_vocab()[token])])
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (
            tokenizer_of(["a", "b", "d"]),
            r"2 of 7 tokens have another id or none in the other, such as 'c' \(5 and none\)",
        ),
        (tokenizer_of(["b", "a", "c"]), r"2 of 6 tokens .* such as 'a' \(3 and 4\)"),
        (tokenizer_of(["a", "b", "c"], eos_token="c"), "ends its completions with '<eos>' and the teacher with 'c'"),
        (tokenizer_that_begins_with("c"), r"adds the ids \[\] to a text and the teacher's \[5\]"),
    ],
    ids=["tokens", "ids", "end", "begin"],
)
def test_unlike_tokenizers_are_refused_with_the_remedy(teacher, expected):
    student = build_tokenizer(["a", "b", "c"])
    same_vocabulary(student, build_tokenizer(["a", "b", "c"]))
    with pytest.raises(ValueError, match=f"{expected}.*distill by text: `sample` with the teacher, then `sft`"):
        same_vocabulary(student, teacher)


def test_unlike_tokenizers_are_refused_before_a_model_is_loaded(toy_model, tmp_path, monkeypatch):
    make_teacher(tmp_path / "teacher", build_tokenizer(["a", "b"]), 5)
    monkeypatch.delattr(distillation, "load_model")
    with pytest.raises(ValueError, match=f"student {toy_model} and the teacher {tmp_path}/teacher differ"):
        distill(tmp_path / "stage", make_config(toy_model, tmp_path / "teacher"))


def test_a_teacher_with_more_padding_loses_it_and_one_with_less_is_refused(toy_model, teacher, tmp_path):
    tokenizer = load_tokenizer(toy_model)
    make_teacher(tmp_path / "padded", tokenizer, len(tokenizer) + 8)
    assert shared_width(toy_model, tmp_path / "padded") == len(tokenizer)
    whole = load_model(tmp_path / "padded", "float32")
    cut = distillation.load_teacher(tmp_path / "padded", len(tokenizer), "float32")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(cut(ids).logits, whole(ids).logits[..., : len(tokenizer)], atol=1e-6)
    with pytest.raises(ValueError, match=f"has {len(tokenizer) + 8} logits and the teacher only {len(tokenizer)}"):
        shared_width(tmp_path / "padded", teacher)
    facts = distill(tmp_path / "stage", make_config(toy_model, tmp_path / "padded", trainer={"max_steps": 1}))
    assert facts["steps"] == 1


def brute_force(student, teacher, inputs, temperature, reverse=True):
    """The divergence summed over the completions' tokens, a row at a time, without padding; and the tokens' log-probs."""
    total, logprobs = torch.zeros(()), []
    for prompt, prompt_mask, completion, mask in zip(
        *(inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")), strict=True
    ):
        prompt, completion = prompt[prompt_mask.bool()], completion[mask.bool()]
        ids = torch.cat([prompt, completion])[None]
        log_s, log_t = (
            (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1) for model in (student, teacher)
        )
        log_t = log_t.detach()
        for t in range(len(completion)):
            one, other = (log_s[t], log_t[t]) if reverse else (log_t[t], log_s[t])
            total = total + sum(one[v].exp() * (one[v] - other[v]) for v in range(len(one)))
        logprobs.append((completion.tolist(), log_s.gather(1, completion[:, None]).squeeze(1).tolist()))
    return total, logprobs


@pytest.mark.parametrize("beta", [1.0, 0.0])
def test_loss_and_gradient_are_the_kl_over_completion_tokens_at_the_sampling_temperature(
    toy_model, teacher, tmp_path, monkeypatch, beta
):
    seen = []
    real = distillation.StudentTrainer.compute_loss

    def compared(self, model, inputs, **named):
        loss = real(self, model, inputs, **named)
        parameters = list(model.parameters())
        expected, logprobs = brute_force(model, self.teacher_model, inputs, 0.7, reverse=beta == 1.0)
        expected = expected / sum(len(completion.token_ids) for completion in self.sampled)  # of the whole step
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        mine = torch.autograd.grad(loss, parameters, retain_graph=True)
        for got, right in zip(mine, torch.autograd.grad(expected, parameters), strict=True):
            assert torch.allclose(got, right, rtol=1e-3, atol=1e-5 * right.abs().max().item())
        for ids, found in logprobs:  # what was sampled from is what is trained
            same = [completion.logprobs for completion in self.sampled if completion.token_ids == ids]
            assert any(found == pytest.approx(logged, abs=1e-4) for logged in same)
        assert not self.teacher_model.training
        assert all(weight.grad is None and not weight.requires_grad for weight in self.teacher_model.parameters())
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(distillation.StudentTrainer, "compute_loss", compared)
    config = make_config(toy_model, teacher, temperature=0.7, trainer={"max_steps": 1, "beta": beta})
    distill(tmp_path, config)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert len(seen) == 2  # micro-batches of 4
    assert row["loss"] == pytest.approx(sum(seen), rel=1e-3)


@pytest.fixture(scope="module")
def trained(toy_model, teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    probe = {"problems": "data/chain.yaml#test", "limit": 4, "samples": 2, "every_steps": 2,
             "reward": {"use": "tests/test_distill.py:evenness"}}  # fmt: skip
    config = make_config(toy_model, teacher, probe=probe, trainer={"max_steps": 30})
    return path, distill(path, config)


def test_the_student_moves_towards_the_teacher(trained, toy_model, teacher):
    path, _ = trained
    rows = read_metrics(path / "metrics.jsonl")[1:]  # the first is the probe before training
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert sum(row["loss"] for row in rows[-3:]) < 0.6 * sum(row["loss"] for row in rows[:3])
    before, after = (load_model(model, "float32") for model in (toy_model, path / "model"))
    tokenizer = load_tokenizer(path / "model")
    prompts = [encode(tokenizer, render("plain", p.problem)) for p in load_problems("data/chain.yaml#test", 32)]
    target = load_model(teacher, "float32")
    assert held_out_kl(after, target, prompts) < 0.6 * held_out_kl(before, target, prompts)


def held_out_kl(student, teacher, prompts) -> float:
    """The reverse KL at the first token of the answers to prompts that were not trained on."""
    with torch.no_grad():
        rows = [
            [model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts]
            for model in (student, teacher)
        ]
    return sum((s.exp() * (s - t)).sum().item() for s, t in zip(*rows, strict=True)) / len(prompts)


def test_rollouts_metrics_and_facts(trained, toy_model, teacher):
    path, facts = trained
    kept, rows = rollout_rows(path), read_metrics(path / "metrics.jsonl")
    assert len(kept) == 30 * 4 * 2
    for step in range(30):
        mine = [row for row in kept if row["step"] == step]
        assert [row["sample"] for row in mine] == [0, 1] * 4
        assert len({row["problem_id"] for row in mine}) == 4
        assert all(mine[i]["problem_id"] == mine[i + 1]["problem_id"] for i in range(0, 8, 2))
        assert {row["advantage"] for row in mine} == {None}
        assert rows[step + 1]["completions/mean_length"] == pytest.approx(sum(row["length"] for row in mine) / 8)
    assert len({row["seed"] for row in kept}) == 30
    assert [row["step"] for row in rows if "probe/pass@1" in row] == list(range(0, 31, 2))
    assert {"seconds/generate", "entropy", "reflective_words", "grad_norm"} <= set(rows[-1])
    assert (path / "curves.png").stat().st_size > 10_000
    assert facts["tokens_sampled"] == sum(row["length"] for row in kept)
    assert facts["steps"] == 30
    assert facts["engine"] == "transformers"
    assert facts["student_parameters"] != facts["teacher_parameters"]
    assert facts["last"]["step_time"] > 0
    assert not list((path / "model").glob("*.bin"))


class Crash(Exception):
    pass


def test_an_interrupted_run_resumed_is_the_uninterrupted_run(toy_model, teacher, tmp_path, monkeypatch):
    """Weights, optimizer state, schedule, completions, metrics and facts, to the last bit."""
    config = make_config(toy_model, teacher)
    whole, torn = make_stage(tmp_path / "whole", config), make_stage(tmp_path / "torn", config)
    expected = train_distill(config, whole)
    step = distillation.StudentTrainer.training_step

    def crash_in_step_4(self, *arguments, **named):
        if self.state.global_step == 3:
            raise Crash
        return step(self, *arguments, **named)

    monkeypatch.setattr(distillation.StudentTrainer, "training_step", crash_in_step_4)
    with pytest.raises(Crash):
        train_distill(config, torn)
    monkeypatch.setattr(distillation.StudentTrainer, "training_step", step)
    got = train_distill(config, torn)

    assert got["tokens_sampled"] == expected["tokens_sampled"]
    assert rollout_rows(torn.path) == rollout_rows(whole.path)
    for name in ("model/model.safetensors", "checkpoints/checkpoint-4/model.safetensors"):
        one, other = load_file(whole.path / name), load_file(torn.path / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    states = [torch.load(stage.path / "checkpoints/checkpoint-4/optimizer.pt")["state"] for stage in (whole, torn)]
    assert all(torch.equal(states[0][i][name], states[1][i][name]) for i in states[0] for name in states[0][i])
    timeless = [[drop_times(row) for row in read_metrics(stage.path / "metrics.jsonl")] for stage in (whole, torn)]
    assert timeless[0] == timeless[1]


def drop_times(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in ("time", "step_time") and not k.startswith("seconds/")}


def test_the_micro_batch_changes_nothing_but_rounding(toy_model, teacher, tmp_path):
    losses, weights = [], []
    for size in (2, 8):
        config = make_config(toy_model, teacher, micro_batch=size, trainer={"learning_rate": 1e-3, "max_steps": 2})
        distill(tmp_path / str(size), config)
        losses.append([row["loss"] for row in read_metrics(tmp_path / str(size) / "metrics.jsonl")])
        weights.append(load_file(tmp_path / str(size) / "model" / "model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_epochs_become_steps(toy_model, teacher, tmp_path):
    keys = {"num_train_epochs": 0.1, "learning_rate": 1e-3, "beta": 1.0}
    config = make_config(toy_model, teacher).model_copy(update={"trainer": keys})
    assert distill(tmp_path, config)["steps"] == 2  # 64 problems, 4 a step
