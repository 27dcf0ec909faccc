import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from r1lite import rollout_trainer, rollouts
from r1lite.artifacts import Artifact, Spec
from r1lite.engines import TransformersEngine
from r1lite.observe import read_metrics
from r1lite.packed_trainer import PackedTrainer
from r1lite.problems import load_problems
from r1lite.records import Rollout, read_rows
from r1lite.rollout_trainer import RolloutTrainer, measure
from r1lite.rubric import all_scores
from r1lite.schedule import mixed_schedule, schedule
from r1lite.stages.config import shares
from r1lite.stages.grpo import Config, Probe
from r1lite.trainer import train_grpo
from r1lite.training import derive_micro_batch
from r1lite.worker import Stage
from rewards.format import think_answer


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 12), st.integers(0, 3))
def test_schedule_asks_no_problem_twice_in_a_rollout_and_all_before_any_again(
    n_problems, per_rollout, n_rollouts, seed
):
    if n_problems < per_rollout:
        return
    order = schedule(n_problems, per_rollout, n_rollouts, seed)
    assert len(order) == per_rollout * n_rollouts
    assert order == schedule(n_problems, per_rollout, n_rollouts, seed)
    for start in range(0, len(order), per_rollout):
        assert len(set(order[start : start + per_rollout])) == per_rollout
    an_epoch = n_problems // per_rollout * per_rollout
    for start in range(0, len(order) - an_epoch + 1, an_epoch):
        assert len(set(order[start : start + an_epoch])) == an_epoch


def test_a_longer_run_begins_as_the_shorter_one():
    assert schedule(50, 8, 20, 0)[:80] == schedule(50, 8, 10, 0)
    assert mixed_schedule([50, 9], [8, 3], 20, 0)[:110] == mixed_schedule([50, 9], [8, 3], 10, 0)


@settings(deadline=None)
@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_are_whole_and_as_near_to_the_weights_as_whole_ones_can_be(total, weights):
    parts = shares(total, weights)
    assert sum(parts) == total
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(part - wanted) < 1 + 1e-9 and part >= 0 for part, wanted in zip(parts, exact, strict=True))
    pairs = sorted(zip(weights, parts, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(pairs) if low[0] < high[0])
    assert parts == shares(total, [8 * weight for weight in weights]), "the unit of the weights is nothing"


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (32, [3, 1], [24, 8]),
        (4, [1, 1, 1], [2, 1, 1]),
        (10, [0.94, 0.06], [9, 1]),
        (7, [1.0], [7]),
        (1, [1, 9], [0, 1]),
    ],
)
def test_shares(total, weights, expected):
    assert shares(total, weights) == expected


SETS = st.lists(st.integers(1, 20).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))), min_size=1, max_size=4)  # fmt: skip


@settings(deadline=None)
@given(SETS, st.integers(1, 10), st.integers(0, 3))
def test_a_mixture_asks_each_set_its_share_in_its_own_order(sets, n_rollouts, seed):
    sizes, per_rollout = (list(each) for each in zip(*sets, strict=True))
    order = mixed_schedule(sizes, per_rollout, n_rollouts, seed)
    width = sum(per_rollout)
    assert len(order) == width * n_rollouts
    asked = [[] for _ in sizes]
    for start in range(0, len(order), max(1, width)):
        rollout = order[start : start + width]
        assert len(set(rollout)) == width, "no problem twice in a rollout"
        for place, size in enumerate(sizes):
            first = sum(sizes[:place])
            mine = [index - first for index in rollout if first <= index < first + size]
            assert len(mine) == per_rollout[place]
            asked[place] += mine
    for size, count, mine in zip(sizes, per_rollout, asked, strict=True):
        assert mine == schedule(size, count, n_rollouts, seed), "what else is asked changes nothing"


@settings(deadline=None)
@given(st.integers(1, 30).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))), st.integers(1, 9))
def test_a_set_alone_is_asked_as_ever(sizes, n_rollouts):
    size, count = sizes
    assert mixed_schedule([size], [count], n_rollouts, 0) == schedule(size, count, n_rollouts, 0)


def test_too_few_problems_of_one_set_are_an_error():
    with pytest.raises(ValueError, match="asks 4 different problems .* only 3"):
        mixed_schedule([100, 3], [12, 4], 5, 0)


def test_too_few_problems_for_a_rollout_is_an_error():
    with pytest.raises(ValueError, match="asks 8 different problems .* only 5"):
        schedule(5, 8, 1, 0)


@given(st.integers(1, 512), st.integers(0, 600))
def test_the_micro_batch_is_the_largest_divisor_that_fits(batch, most):
    size = derive_micro_batch(batch, most)
    assert batch % size == 0
    assert size <= max(most, 1)
    assert not [other for other in range(size + 1, min(most, batch) + 1) if batch % other == 0]


def test_measure_goes_by_the_first_reward():
    def row(score, length, text):
        return Rollout("p", 0, text, length, False, {"accuracy": score, "other": 1.0}, 0)

    kept = [row(1.0, 10, "wait, check"), row(0.0, 30, "so"), row(None, 50, "wait")]
    assert measure(kept, "accuracy") == {
        "pass_rate": 1 / 2,  # what has no score is neither right nor wrong
        "length/right": 10,
        "length/wrong": 30,
        "reflective_words": 1.0,
    }
    unjudged = measure([row(None, 50, "wait")], "accuracy")
    assert (unjudged["pass_rate"], unjudged["length/right"], unjudged["length/wrong"]) == (None, None, None)


def make_stage(path, config: Config) -> Stage:
    spec = Spec("t", "zero", "grpo", {"a": 1}, {}, config.model_dump(mode="json"))
    Artifact(path).prepare(spec)
    return Stage(path, spec)


def make_config(toy_model, **changes) -> Config:
    settings = {
        "kind": "grpo",
        "prompt": "plain",
        "model": str(toy_model),
        "problems": "data/chain.yaml#probe",
        "rewards": [{"use": "tests/test_trainer.py:evenness"}, {"use": "rewards.format:think_answer", "weight": 0.5}],
        "prompts_per_step": 4,
        "generations": 4,
        "max_tokens": 12,
        "temperature": 1.0,
        "probe": Probe(problems="data/chain.yaml#test", limit=4, samples=2, every_steps=2),
    }
    trainer_keys = {
        "max_steps": 6, "learning_rate": 1e-2, "loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0,
        "save_steps": 2, "gradient_checkpointing": False,
    }  # fmt: skip
    return Config.model_validate({**settings, **changes, "trainer": {**trainer_keys, **changes.get("trainer", {})}})


def evenness(completions, **_):
    """A reward that an untrained model earns now and then."""
    return [float(len(completion) % 2 == 0) for completion in completions]


@pytest.fixture(scope="module")
def trained(toy_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    config = make_config(toy_model)
    train_grpo(config, make_stage(path, config))
    return path


def rollout_rows(path) -> list:
    return [row for file in sorted((path / "rollouts").glob("*.parquet")) for row in read_rows(file)]


def test_every_rollout_is_kept_with_its_rewards_and_advantage(trained):
    rows = rollout_rows(trained)
    assert len(rows) == 6 * 4 * 4
    for step in range(6):
        mine = [row for row in rows if row["step"] == step]
        assert len({row["problem_id"] for row in mine}) == 4
        for start in range(0, 16, 4):
            group = mine[start : start + 4]
            assert [row["sample"] for row in group] == [0, 1, 2, 3]
            assert len({row["problem_id"] for row in group}) == 1
            totals = torch.tensor([row["reward/evenness"] + 0.5 * row["reward/think_answer"] for row in group])
            advantages = torch.tensor([row["advantage"] for row in group])
            assert torch.allclose(advantages, totals - totals.mean(), atol=1e-6)  # scale_rewards: none
    for row in rows:
        assert row["reward/evenness"] == evenness([row["completion"]])[0]
        assert 1 <= row["length"] <= 12
        assert row["truncated"] <= (row["length"] == 12)


def test_the_rollouts_differ_from_step_to_step(trained):
    rows = rollout_rows(trained)
    assert len({row["seed"] for row in rows}) == 6
    assert len({tuple(row["completion"] for row in rows if row["step"] == step) for step in range(6)}) == 6


def test_metrics_have_a_row_a_step_and_the_probe_where_it_is_due(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "probe/pass@1" in row] == [0, 2, 4, 6]
    kept = rollout_rows(trained)
    for row in rows[1:]:
        mine = [kept_row for kept_row in kept if kept_row["step"] == row["step"] - 1]
        assert row["pass_rate"] == pytest.approx(sum(r["reward/evenness"] for r in mine) / len(mine))
        assert row["completions/mean_length"] == pytest.approx(sum(r["length"] for r in mine) / len(mine))
        assert {"seconds/generate", "seconds/grade", "reward", "grad_norm", "reflective_words"} <= set(row)
    assert (trained / "curves.png").stat().st_size > 10_000


def test_the_model_is_plain_safetensors_and_was_trained(trained, toy_model):
    assert not list((trained / "model").glob("*.bin"))
    before, after = (load_file(path / "model.safetensors") for path in (toy_model, trained / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


CHAIN, COURTESY = "data/chain.yaml#probe", "data/courtesy.yaml#train"
MIXTURE = {
    "problems": [{"use": CHAIN, "share": 3}, {"use": COURTESY}],
    "rewards": [
        {"use": "tests/test_trainer.py:evenness", "about": [CHAIN]},
        {"use": "tests/test_trainer.py:knows_name", "about": [COURTESY], "weight": 2.0},
        {"use": "rewards.format:think_answer", "weight": 0.5},
    ],
    "trainer": {"max_steps": 2},
}


def knows_name(completions, act, name, answer, **_):
    """A reward about prompts without an answer, which sees no others."""
    assert set(answer) == {""} and all(act) and all(name)
    return [float(text.count(" ") + len(person) > 3) for text, person in zip(completions, name, strict=True)]


@pytest.fixture(scope="module")
def mixed(toy_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed")
    config = make_config(toy_model, **MIXTURE)
    train_grpo(config, make_stage(path, config))
    return path


def test_each_step_asks_a_mixture_its_shares_and_each_reward_scores_what_it_is_about(mixed):
    sets = {problem.id: name for name in (CHAIN, COURTESY) for problem in load_problems(name)}
    rows = rollout_rows(mixed)
    for step in (0, 1):
        mine = [row for row in rows if row["step"] == step]
        asked = {row["problem_id"] for row in mine}
        assert sorted(sets[name] for name in asked) == [CHAIN] * 3 + [COURTESY]
        for start in range(0, 16, 4):
            group = mine[start : start + 4]
            of_chain = sets[group[0]["problem_id"]] == CHAIN
            for row in group:
                assert (row["reward/evenness"] is None) == (not of_chain)
                assert (row["reward/knows_name"] is None) == of_chain
                assert row["reward/think_answer"] is not None
            totals = torch.tensor(
                [
                    (row["reward/evenness"] or 0)
                    + 2 * (row["reward/knows_name"] or 0)
                    + 0.5 * row["reward/think_answer"]
                    for row in group
                ]
            )
            advantages = torch.tensor([row["advantage"] for row in group])
            assert torch.allclose(advantages, totals - totals.mean(), atol=1e-6)
    assert all(math.isfinite(row["advantage"]) for row in rows)


def test_the_pass_rate_of_a_mixture_is_over_what_the_first_reward_judges(mixed):
    kept = rollout_rows(mixed)
    metrics = read_metrics(mixed / "metrics.jsonl")
    for row in metrics[1:]:
        mine = [each["reward/evenness"] for each in kept if each["step"] == row["step"] - 1]
        judged = [score for score in mine if score is not None]
        assert len(judged) == 12
        assert row["pass_rate"] == pytest.approx(sum(judged) / 12)
        assert row["rewards/evenness/mean"] == pytest.approx(row["pass_rate"])
    assert all(0 <= row["probe/pass@1"] <= 1 for row in metrics if "probe/pass@1" in row)


def unsure(completions, **_):
    return [None for _ in completions]


def test_a_step_without_a_score_by_the_first_reward_has_no_pass_rate_and_goes_on(toy_model, tmp_path):
    rewards = [{"use": "tests/test_trainer.py:unsure"}, {"use": "tests/test_trainer.py:evenness"}]
    config = make_config(toy_model, rewards=rewards, probe=None, trainer={"max_steps": 1})
    train_grpo(config, make_stage(tmp_path, config))
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row.get("pass_rate") is None and row["rewards/evenness/mean"] > 0


def test_a_set_whose_share_is_less_than_a_problem_is_an_error(toy_model, tmp_path):
    config = make_config(toy_model, **{**MIXTURE, "problems": [{"use": CHAIN, "share": 20}, {"use": COURTESY}]})
    with pytest.raises(ValueError, match=f"{COURTESY}.* share"):
        train_grpo(config, make_stage(tmp_path, config))


def test_a_probe_is_judged_by_a_first_reward_that_is_about_another_set(toy_model, tmp_path, monkeypatch):
    """The probe's problems are of no set that is trained on, and would else get no score at all."""
    config = make_config(toy_model, **{**MIXTURE, "trainer": {"max_steps": 1}})
    seen = []
    grade = rollouts.grade
    monkeypatch.setattr(rollouts, "grade", lambda *arguments: seen.append(grade(*arguments)) or seen[-1])
    train_grpo(config, make_stage(tmp_path, config))
    probes = [row["probe/pass@1"] for row in read_metrics(tmp_path / "metrics.jsonl") if "probe/pass@1" in row]
    assert len(seen) == len(probes) == 2
    for (texts, scores, _), probe in zip(seen, probes, strict=True):
        assert scores == evenness(texts)
        assert probe == pytest.approx(sum(scores) / 8)


def test_groups_are_graded_as_they_end_and_the_rollout_is_in_the_order_it_was_asked(toy_model, tmp_path, monkeypatch):
    class TwoAtOnce(TransformersEngine):
        """Whose second half ends first."""

        def generate(self, prompts, n, sampling):
            finished = [group for batch in super().generate(prompts, n, sampling) for group in batch]
            for part in (finished[2:], finished[:2]):
                events.append(("sampled",))
                yield part

    def noted(*arguments, **columns):
        events.append(("graded", *dict.fromkeys(columns["problem_id"])))
        return all_scores(*arguments, **columns)

    events = []
    config = make_config(toy_model, probe=None, trainer={"max_steps": 1})
    monkeypatch.setattr(rollout_trainer, "all_scores", noted)
    monkeypatch.setattr(rollouts, "prove_sync", lambda *_: None)
    monkeypatch.setattr(rollouts, "TransformersEngine", TwoAtOnce)
    train_grpo(config, make_stage(tmp_path, config))
    rows = rollout_rows(tmp_path)
    asked = [row["problem_id"] for row in rows[::4]]
    assert events == [("sampled",), ("graded", *asked[2:]), ("sampled",), ("graded", *asked[:2])]
    assert [row["reward/evenness"] for row in rows] == evenness([row["completion"] for row in rows])
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 4


@pytest.mark.parametrize(
    ("keys", "share", "sleeps"),
    [({}, 0.5, False), ({"vllm_gpu_memory_utilization": 0.2, "vllm_enable_sleep_mode": True}, 0.2, True)],
)
def test_vllm_gets_what_the_recipe_says_of_it(toy_model, tmp_path, monkeypatch, keys, share, sleeps):
    class Started(Exception):
        pass

    def start(*given):
        raise Started(*given)

    monkeypatch.setattr(rollouts, "pick_engine", lambda _: "vllm")
    monkeypatch.setattr(rollouts, "VLLMEngine", start)
    config = make_config(toy_model, max_tokens=40, trainer=keys)
    with pytest.raises(Started) as started:
        train_grpo(config, make_stage(tmp_path, config))
    path, ends, longest, *rest = started.value.args
    assert path == toy_model and len(ends) == 1 and 40 < longest < 128
    assert rest == [config.seed, "float32", share, sleeps]


class Crash(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer": {"num_iterations": 2, "save_steps": 2}},
        {"updates_per_rollout": 2},
        {**MIXTURE, "trainer": {}},
        {
            "trainer": {
                "beta": 0.04,
                "loss_type": "grpo",
                "scale_rewards": "group",
                "sync_ref_model": True,
                "ref_model_sync_steps": 3,
                "ref_model_mixup_alpha": 1.0,
            }
        },
    ],
    ids=["plain", "iterations", "updates", "mixture", "reference"],
)
def test_an_interrupted_run_resumed_is_the_uninterrupted_run(toy_model, tmp_path, monkeypatch, changes):
    """Weights, optimizer state, schedule, completions and metrics, to the last bit."""
    config = make_config(toy_model, **changes)
    whole, torn = make_stage(tmp_path / "whole", config), make_stage(tmp_path / "torn", config)
    train_grpo(config, whole)

    step = PackedTrainer.training_step

    def crash_in_step_6(self, *arguments, **named):
        if self.state.global_step == 5 and self.stage is torn:
            raise Crash
        return step(self, *arguments, **named)

    monkeypatch.setattr(PackedTrainer, "training_step", crash_in_step_6)
    with pytest.raises(Crash):
        train_grpo(config, torn)
    assert not (torn.path / "model").exists()
    monkeypatch.setattr(PackedTrainer, "training_step", step)
    train_grpo(config, torn)

    assert rollout_rows(torn.path) == rollout_rows(whole.path)
    for name in ("model/model.safetensors", "checkpoints/checkpoint-6/model.safetensors"):
        expected, got = load_file(whole.path / name), load_file(torn.path / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected), name
    for name in ("optimizer.pt", "scheduler.pt"):
        expected, got = (torch.load(s.path / "checkpoints/checkpoint-6" / name) for s in (whole, torn))
        assert equal(expected, got), name
    timeless = [[drop_times(row) for row in read_metrics(s.path / "metrics.jsonl")] for s in (whole, torn)]
    assert timeless[0] == timeless[1]


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def drop_times(row: dict) -> dict:
    timed = ("time", "step_time", "tokens_per_second")
    return {k: v for k, v in row.items() if k not in timed and not k.startswith("seconds/")}


def test_a_prompt_that_the_tokenizer_cannot_read_is_an_error(toy_model, tmp_path):
    config = make_config(toy_model, prompt="r1_zero")
    with pytest.raises(ValueError, match="no tokens for the prompt .* use another prompt template than 'r1_zero'"):
        train_grpo(config, make_stage(tmp_path, config))


def test_rollout_rows_are_flat(tmp_path):
    row = Rollout("p-1", 0, "c", 1, False, {"accuracy": 1.0}, 0).row()
    assert row["reward/accuracy"] == 1.0
    assert json.dumps(row)


def by_length(completions, limit, **_):
    """TRL knows two ways to give no score."""
    scores = [len(completion) / limit for completion in completions]
    return [None if score > 1.5 else float("nan") if score > 1 else score for score in scores]


async def vowels(completions, **_):
    return [float(sum(letter in "aeiou" for letter in completion)) for completion in completions]


def with_timeouts(completions, log_metric, **_):
    log_metric("with_timeouts/timeouts", 2.0)
    return [0.0 for _ in completions]


PARITY = [
    {"use": "tests/test_trainer.py:by_length", "args": {"limit": 30}, "weight": 2.0},
    {"use": "tests/test_trainer.py:vowels", "weight": -0.5},
    {"use": "rewards.format:think_answer"},
    {"use": "tests/test_trainer.py:with_timeouts"},
]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_weights_names_args_and_the_total_are_trls_own(toy_model, tmp_path, monkeypatch, aggregation):
    """The rewards go through load_reward; what stock TRL makes of the bare functions is the same, to the last bit."""
    config = make_config(
        toy_model,
        rewards=PARITY,
        probe=None,
        trainer={"max_steps": 2, "multi_objective_aggregation": aggregation, "scale_rewards": "group"},
    )
    given = []
    real = RolloutTrainer._calculate_rewards

    def with_bare_functions(self, inputs, prompts, completions, ids):
        mine = real(self, inputs, prompts, completions, ids)
        wrapped = self.reward_funcs
        self.reward_funcs = [
            lambda completions, **columns: by_length(completions, limit=30),
            vowels,
            think_answer,
            with_timeouts,
        ]
        bare = super(RolloutTrainer, self)._calculate_rewards(inputs, prompts, completions, ids)
        self.reward_funcs = wrapped
        given.append(bare)
        assert torch.equal(mine.nan_to_num(-99), bare.nan_to_num(-99))
        return mine

    monkeypatch.setattr(RolloutTrainer, "_calculate_rewards", with_bare_functions)
    train_grpo(config, make_stage(tmp_path, config))
    weights = torch.tensor([2.0, -0.5, 1.0, 1.0])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert any(bare.isnan().any() for bare in given), "some completions have no score"
    for row, bare in zip(rows, given, strict=True):
        total = (bare * weights).nansum(1)
        assert row["reward"] == pytest.approx(total.mean().item(), abs=1e-5)
        assert row["rewards/by_length/mean"] == pytest.approx(bare[:, 0].nanmean().item(), abs=1e-5)
        assert row["rewards/vowels/mean"] == pytest.approx(bare[:, 1].mean().item(), abs=1e-5)
        assert row["with_timeouts/timeouts"] == 2.0
    for step, bare in enumerate(given):
        grouped = bare.view(-1, 4, len(PARITY))
        mean = grouped.nanmean(1, keepdim=True)
        if aggregation == "normalize_then_sum":  # GDPO: each reward in units of its own group
            deviation = ((grouped - mean) ** 2).nanmean(1, keepdim=True).sqrt()
            count = (~grouped.isnan()).sum(1, keepdim=True)
            deviation = deviation * (count / (count - 1)).sqrt()
            total = (((grouped - mean) / (deviation + 1e-4)).view(-1, len(PARITY)) * weights).nansum(1)
            expected = (total - total.mean()) / (total.std() + 1e-4)
        else:
            total = (bare * weights).nansum(1).view(-1, 4)
            expected = ((total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)).flatten()
        kept = [row["advantage"] for row in rollout_rows(tmp_path) if row["step"] == step]
        assert torch.allclose(torch.tensor(kept), expected, atol=1e-3)
