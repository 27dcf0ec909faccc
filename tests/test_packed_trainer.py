import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_trainer import make_config, make_stage
from transformers import TrainerCallback
from trl import GRPOTrainer

from r1lite import packed_trainer, trainer
from r1lite.engines import Completion, Finished, Sampling, in_order
from r1lite.models import load_model, load_tokenizer
from r1lite.observe import read_metrics
from r1lite.packed_trainer import PackedTrainer
from r1lite.records import read_rows
from r1lite.sync_proof import logprobs
from r1lite.trainer import train_grpo

MAX_TOKENS, TEMPERATURE = 40, 0.9


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Toy models are no faster on more, and far slower where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Scripted:
    """An engine whose completions follow from the prompt alone: short and long, ended and cut off, with log-probs that
    are the untrained model's but for noise. In every other prompt's group all begin with the same token."""

    dtype = torch.float32

    def __init__(self, path, name):
        self.name = name
        self.model, tokenizer = load_model(path, "float32"), load_tokenizer(path)
        self.end = tokenizer.eos_token_id
        self.words = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]

    def generate(self, prompts, n, sampling):
        for index, prompt in reversed(list(enumerate(prompts))):
            yield [Finished(index, [self.completion(prompt, sample) for sample in range(n)], sampling.seed)]

    def completion(self, prompt, sample):
        rng = random.Random(f"{prompt}/{sample}")
        alike = random.Random(str(prompt)).random() < 0.5
        cut = rng.random() < 0.3
        length = MAX_TOKENS if cut else rng.choice([1, 2, 5, 12, 25, 38])
        ids = [self.words[3 if alike else sample], *rng.choices(self.words, k=length - 1)] + [self.end] * (not cut)
        (true,) = logprobs(self.model, [prompt], [ids], TEMPERATURE, self.dtype)
        return Completion(ids, [each + rng.gauss(0, 0.2) for each in true], cut)

    def sync(self, model):
        pass

    def close(self):
        pass


class Bare(GRPOTrainer):
    """TRL's trainer with the same rollouts."""

    def _generate_single_turn(self, prompt_ids, *_):
        n = self.num_generations
        completions = itertools.chain(*in_order(self.engine.generate(prompt_ids[::n], n, Sampling(MAX_TOKENS))))
        return zip(*[(each.token_ids, each.logprobs) for each in completions], strict=True)


def first_token(completion_ids, **_):
    return [float(ids[0] % 5) for ids in completion_ids]


def nothing(completions, **_):
    return [0.0 for _ in completions]


@dataclass
class Run(TrainerCallback):
    """What a run of train_grpo did, with a scripted engine and without checkpoints."""

    trainer: GRPOTrainer
    path: Path
    steps: list  # the gradient of each optimizer step

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.steps.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))

    def logged(self, name):
        return [row[name] for row in self.trainer.state.log_history if name in row]


@pytest.fixture
def train(toy_model, tmp_path, monkeypatch):
    """Runs train_grpo on scripted rollouts; with `stock` it is TRL's own trainer that trains."""

    def run(built, stage, title):
        found = Run(built, stage.path, [])
        built.args.save_strategy = "no"
        built.add_callback(found)
        built.train()
        return found

    def start(engine="transformers", trainer_keys=(), **changes):
        monkeypatch.setattr(trainer, "rollout_engine", lambda *_: Scripted(toy_model, engine))
        config = make_config(
            toy_model,
            **{
                "rewards": [{"use": "tests/test_packed_trainer.py:first_token"}],
                "max_tokens": MAX_TOKENS,
                "temperature": TEMPERATURE,
                "probe": None,
                **({"micro_batch": 4} if changes.get("stock") else {"tokens_per_micro_batch": 130}),
                **changes,
            },
            trainer={"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05, "max_steps": 2, **dict(trainer_keys)},
        )
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        return train_grpo(config, make_stage(path, config))

    monkeypatch.setattr("r1lite.rollouts.prove_sync", lambda *_: None)
    monkeypatch.setattr(trainer, "train_from_engine", run)
    monkeypatch.setattr(trainer, "RolloutTrainer", lambda config, stage, problems, **more: Bare(**more))
    return start


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


def agree(packed, stock, steps=2):
    assert type(stock.trainer) is Bare and type(packed.trainer) is PackedTrainer
    assert len(packed.steps) == len(stock.steps) == steps
    for mine, theirs in zip(packed.steps, stock.steps, strict=True):
        assert theirs.norm() > 0 and distance(mine, theirs) < 1e-5
    assert packed.logged("loss") == pytest.approx(stock.logged("loss"), rel=1e-5, abs=1e-5)
    return True


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_gradients_and_losses_are_stock_trls(train, loss_type, level, beta, num_iterations):
    keys = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "beta": beta,
        "num_iterations": num_iterations,
    }
    packed = train(trainer_keys=keys)
    assert agree(packed, train(stock=True, trainer_keys=keys))


def test_gradients_are_stock_trls_where_layers_are_run_again_in_the_backward_pass(train):
    keys = {"gradient_checkpointing": True}
    packed = train(trainer_keys=keys)
    assert packed.trainer.model.is_gradient_checkpointing
    assert agree(packed, train(stock=True, trainer_keys=keys))


WHOLE_BATCH = {"micro_batch": 16}  # where TRL's loss depends on how a batch is cut into micro-batches
OPTIONS = {
    "bnpo": {"keys": {"loss_type": "bnpo"}, "stock": WHOLE_BATCH},
    "sapo": {"keys": {"loss_type": "sapo"}},
    "luspo": {"keys": {"loss_type": "luspo", "importance_sampling_level": "sequence"}},
    "vespo": {"keys": {"loss_type": "vespo"}},
    "updates_per_rollout": {"both": {"updates_per_rollout": 2}, "plain": {"loss_type": "dapo"}},
    "truncated": {"keys": {"mask_truncated_completions": True}, "plain": {"loss_type": "grpo"}},
    "truncated-dapo": {"keys": {"mask_truncated_completions": True}, "plain": {"loss_type": "dapo", "beta": 0.04}},
    "delta": {"keys": {"delta": 1.21}, "plain": {"num_iterations": 2, "learning_rate": 1.0}},
    "off_policy_mask": {"keys": {"off_policy_mask_threshold": 0.01}},
    "top_entropy": {
        "keys": {"top_entropy_quantile": 0.5},
        "stock": WHOLE_BATCH,
        "packed": {"tokens_per_micro_batch": 10_000},
    },
    "entropy_bonus": {"keys": {"entropy_coef": 0.01}, "plain": {"loss_type": "dapo"}, "stock": WHOLE_BATCH},
    **{
        f"vllm-{mode}-{num_iterations}": {
            "keys": {"vllm_importance_sampling_clip_max": 1.1},
            "plain": {
                "vllm_importance_sampling_mode": mode,
                "vllm_importance_sampling_clip_max": 100.0,
                "num_iterations": num_iterations,
            },
            "engine": "vllm",
        }
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        for num_iterations in (1, 2)
    },
    "vllm-vespo": {
        "keys": {"vllm_importance_sampling_clip_max": 1.1},
        "plain": {"loss_type": "vespo", "vllm_importance_sampling_clip_max": 100.0},
        "engine": "vllm",
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_change_the_gradient_change_it_as_with_stock_trl(train, option):
    case = {"keys": {}, "plain": {}, "both": {}, "stock": {}, "packed": {}, "engine": "transformers", **OPTIONS[option]}
    keys = {**case["plain"], **case["keys"]}
    packed = train(case["engine"], keys, **case["both"], **case["packed"])
    assert agree(packed, train(case["engine"], keys, stock=True, **case["both"], **case["stock"]))
    plain = train(case["engine"], case["plain"], **case["packed"])
    assert max(map(distance, packed.steps, plain.steps)) > 1e-3, "the option does something here"


def test_vllms_ratios_are_logged_as_stock_trl_logs_them(train):
    for num_iterations in (1, 2):
        keys = {"max_steps": 1, "num_iterations": num_iterations, "scale_rewards": "none", "beta": 0.04}
        packed, stock = (train("vllm", keys, **more) for more in ({"tokens_per_micro_batch": 10_000}, {"stock": True}))
        for kind, name in itertools.product(("sampling_logp_difference", "importance_sampling_ratio"), ("mean", "max")):
            name = f"sampling/{kind}/{name}"
            assert packed.logged(name) == pytest.approx(stock.logged(name), rel=1e-4)


def spy(monkeypatch, owner, name, note):
    """Notes of every call of a function."""
    notes, real = [], getattr(owner, name)

    def call(*arguments, **named):
        notes.append(note(*arguments, **named))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)
    return notes


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_gradient_does_not_depend_on_the_budget_which_no_pass_exceeds(train, monkeypatch, beta):
    tokens = spy(monkeypatch, packed_trainer, "pack", lambda ids, mask, width: int(mask.sum()))
    found, passes = [], []
    for budget in (60, 130, 10_000):
        tokens.clear()
        found.append(train(trainer_keys={"beta": beta, "num_iterations": 2}, tokens_per_micro_batch=budget).steps)
        assert 0 < max(tokens) <= budget
        passes.append(len(tokens))
    assert passes[0] > passes[1] > passes[2] == (4 if beta else 3)
    for steps in found[1:]:
        assert all(distance(one, other) < 1e-5 for one, other in zip(steps, found[0], strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_rows_without_advantage_are_computed_only_where_they_count(train, beta):
    run = train(trainer_keys={"max_steps": 1, "beta": beta})
    moved = sum(advantage != 0 for advantage in run.trainer._logs["advantages"]) / 16
    assert 0 < moved < 1
    assert run.logged("rows_computed") == [1.0 if beta else moved]


def test_rows_that_are_masked_are_not_computed(train):
    run = train(trainer_keys={"mask_truncated_completions": True})
    kept = [row for file in sorted((run.path / "rollouts").iterdir()) for row in read_rows(file) if row["advantage"]]
    counts = [sum(row["step"] == step and not row["truncated"] for row in kept) for step in (0, 1)]
    assert run.logged("rows_computed") == [count / 16 for count in counts]
    assert sum(counts) < len(kept)


def test_a_batch_without_signal_makes_a_step_with_a_gradient_of_0(train, toy_model):
    run = train(rewards=[{"use": "tests/test_packed_trainer.py:nothing"}])
    assert [step.abs().max().item() for step in run.steps] == [0, 0]
    before = load_model(toy_model, "float32").parameters()
    assert all(map(torch.equal, before, run.trainer.model.parameters()))
    assert run.logged("loss") == [0, 0] and run.logged("rows_computed") == [1 / 16, 1 / 16]


@pytest.mark.parametrize(("engine", "num_iterations", "old"), [("vllm", 1, 0), ("vllm", 2, 1), ("transformers", 1, 0)])
def test_old_logprobs_are_computed_only_where_the_update_has_not_the_same(
    train, monkeypatch, engine, num_iterations, old
):
    graded = spy(monkeypatch, PackedTrainer, "packed_logps", lambda *_, **__: torch.is_grad_enabled())
    run = train(engine, {"max_steps": 1, "num_iterations": num_iterations}, tokens_per_micro_batch=10_000)
    assert graded == [False] * old + [True]
    assert run.trainer.use_vllm == (engine == "vllm")


def test_the_devices_cache_is_emptied_as_often_as_trl_would(train, monkeypatch):
    emptied = spy(monkeypatch, packed_trainer, "clear_device_cache", lambda: True)
    train(trainer_keys={"torch_empty_cache_steps": 2, "max_steps": 5})
    assert len(emptied) == 3  # before the updates of steps 0, 2 and 4
    train(trainer_keys={"max_steps": 1})
    assert len(emptied) == 3


def test_an_optimizer_with_modes_is_set_to_train(train, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.optim.SGD, "train", lambda self: modes.append("train"), raising=False)
    train(trainer_keys={"max_steps": 2})
    assert modes == ["train", "train"]


@pytest.mark.parametrize("stock", [False, True])
def test_the_phases_of_a_step_are_within_its_time(toy_model, tmp_path, stock):
    config = make_config(toy_model, stock=stock, probe=None, trainer={"max_steps": 3})
    before = time.time()
    train_grpo(config, make_stage(tmp_path, config))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert len(metrics) == 3
    for row in metrics:
        phases = {name: seconds for name, seconds in row.items() if name.startswith("seconds/")}
        assert {f"seconds/{name}" for name in ("generate", "forward_backward", "optimizer", "idle")} <= set(phases)
        assert all(seconds >= 0 for seconds in phases.values())
        assert sum(phases.values()) <= row["time"] - before + 0.002  # time is in whole milliseconds
        assert 0 <= row["padding_share"] < 1 and row["tokens_per_second"] > 0
        before = row["time"]


def run_processes(world, command, accelerate="ddp"):
    """A program in so many processes, which find one another, and are told of recipes/accelerate/, as those of
    accelerate's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["PYTHONPATH"] = os.pathsep.join(["tests", ".", *filter(None, [os.environ.get("PYTHONPATH")])])
    config = yaml.safe_load(Path(f"recipes/accelerate/{accelerate}.yaml").read_text())
    for section, switch, prefix in (("fsdp", "FSDP", ""), ("deepspeed", "DEEPSPEED", "ACCELERATE_DEEPSPEED_")):
        if keys := config.get(f"{section}_config"):
            shared |= {prefix + key.upper().replace("INIT_FLAG", "INIT"): str(value) for key, value in keys.items()}
            shared[f"ACCELERATE_USE_{switch}"] = "true"
    ranks = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors.decode()[-2000:]


def run_ranks(world, toy_model, out, keys, accelerate="ddp"):
    """Weights after three steps of so many processes, the tokens of each of their packed passes, and the steps' losses
    and problems."""
    out.mkdir()
    run_processes(world, ["tests/packed_ranks.py", str(toy_model), str(out), json.dumps(keys)], accelerate)
    tokens = [json.loads((out / f"tokens-{rank}.json").read_text()) for rank in range(world)]
    return load_file(out / "weights"), tokens, json.loads((out / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("world", "keys", "accelerate"),
    [
        (2, {"loss_type": "dr_grpo"}, "ddp"),
        (4, {"loss_type": "dapo"}, "ddp"),
        (2, {"loss_type": "grpo", "beta": 0.04}, "fsdp2"),
    ],
)
def test_ranks_share_the_tokens_evenly_and_learn_what_one_alone_would(toy_model, tmp_path, world, keys, accelerate):
    one, alone, run = run_ranks(1, toy_model, tmp_path / "1", keys)
    many, shared, same = run_ranks(world, toy_model, tmp_path / str(world), keys, accelerate)
    assert all(torch.allclose(one[name], many[name], rtol=1e-5, atol=1e-6) for name in one)
    assert len(run["losses"]) == 3 and same["losses"] == pytest.approx(run["losses"], rel=1e-5, abs=1e-6)
    assert same["asked"] == run["asked"], "the same problems in each step"
    assert len({problem for step in run["asked"] for problem in step}) == sum(len(set(step)) for step in run["asked"])
    before = dict(load_model(toy_model, "float32").named_parameters())
    assert any(not torch.allclose(one[name], before[name], atol=1e-4) for name in one)
    trained = [sum(tokens) for tokens in shared]
    assert len({len(passes) for passes in shared}) == 1 and sum(trained) >= sum(alone[0])
    assert max(trained) < (1.1 if world == 2 else 1.5) * min(trained), "few rows make larger differences"
