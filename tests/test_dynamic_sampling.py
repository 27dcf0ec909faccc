import asyncio
from collections import Counter
from statistics import fmean

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_trainer import CHAIN, COURTESY, MIXTURE, Crash, drop_times, evenness, make_config, make_stage, rollout_rows
from trl.trainer.utils import shutdown_event_loop_in_daemon, start_event_loop_in_daemon

from r1lite.dynamic_sampling import Group, draw, places_by_set, substitutes_for
from r1lite.observe import read_metrics
from r1lite.packed_trainer import PackedTrainer
from r1lite.problems import load_problems
from r1lite.rollout_trainer import RolloutTrainer
from r1lite.rubric import SET, all_scores
from r1lite.trainer import train_grpo

# The pure functions


def row_of(name, number, signal) -> dict:
    return {SET: name, "problem_id": f"{name}-{number}", "signal": signal}


def ids(groups) -> list:
    return [group.row["problem_id"] for group in groups]


def draw_from(pools: dict, most_rounds: int):
    """A draw from {set: (signal of the rows, signal of the substitutes)}, and the rows that each round asked."""
    rows = [row_of(name, n, signal) for name, (mine, _) in pools.items() for n, signal in enumerate(mine)]
    substitutes = {
        name: iter([row_of(name, 100 + n, signal) for n, signal in enumerate(more)])
        for name, (_, more) in pools.items()
    }
    asked = []

    def sample(rows, round_):
        assert round_ == len(asked)
        asked.append(rows)
        return [Group(row, [], [], [[1.0, float(not row["signal"])]], round_) for row in rows]

    return draw(rows, sample, substitutes, [1.0], most_rounds), asked


SIGNALS = st.lists(st.booleans(), max_size=12)
POOLS = st.dictionaries(st.sampled_from("abc"), st.tuples(st.lists(st.booleans(), min_size=1, max_size=6), SIGNALS), min_size=1)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(POOLS, st.integers(0, 3))
def test_a_draw_fills_the_batch_set_by_set_and_prefers_groups_with_signal(pools, most_rounds):
    drawn, asked = draw_from(pools, most_rounds)
    assert Counter(group.row[SET] for group in drawn.chosen) == {name: len(mine) for name, (mine, _) in pools.items()}
    sampled = [row["problem_id"] for rows in asked for row in rows]
    assert sorted(ids(drawn.chosen + drawn.left_out)) == sorted(sampled)
    assert len(set(sampled)) == len(sampled)
    for name, (_, more) in pools.items():
        chosen, left_out = (
            [group.row["signal"] for group in groups if group.row[SET] == name]
            for groups in (drawn.chosen, drawn.left_out)
        )
        assert all(chosen) or not any(left_out)
        n_sampled = sum(row[SET] == name for rows in asked for row in rows)
        used_up = n_sampled == sum(map(len, pools[name]))
        assert all(chosen) or used_up or drawn.rounds == most_rounds, "it goes on while something could be replaced"
        assert n_sampled - len(chosen) <= len(more)
    assert drawn.rounds == len(asked) - 1 <= most_rounds
    for before, rows in zip(range(1, len(asked)), asked[1:], strict=True):
        found = Counter(row[SET] for earlier in asked[:before] for row in earlier if row["signal"])
        for name in {row[SET] for row in rows}:
            assert found[name] < len(pools[name][0]), "a set whose groups all have signal asks no more"


@given(POOLS)
def test_without_rounds_the_choice_is_the_rows_themselves(pools):
    drawn, asked = draw_from(pools, 0)
    assert sorted(ids(drawn.chosen)) == sorted(row["problem_id"] for row in asked[0])
    assert (len(asked), drawn.left_out, drawn.rounds) == (1, [], 0)


YES, NO = True, False


@pytest.mark.parametrize(
    ("mine", "more", "asked"),
    [
        ([YES] * 4, [YES] * 9, [4]),  # nothing to replace
        ([YES, YES, YES, NO], [YES] * 9, [4, 2]),  # at 3 of 4, one takes 4/3
        ([YES, YES, NO, NO], [YES] * 9, [4, 4]),
        ([YES, NO, NO, NO], [YES] * 9, [4, 4]),  # 12 would be needed, and no more than the batch is asked
        ([NO] * 4, [YES] * 9, [4, 4]),
        ([YES] * 6 + [NO] * 2, [NO] * 3 + [YES] * 9, [8, 3, 4]),  # 2 at 6 of 8, then 2 at 6 of 11
        ([NO] * 4, [NO] * 99, [4, 4, 4, 4]),  # until the rounds are used up
        ([NO] * 4, [NO] * 6, [4, 4, 2]),  # until the substitutes are
        ([NO] * 4, [], [4]),
    ],
)
def test_as_many_substitutes_are_asked_as_would_do_at_the_rate_so_far(mine, more, asked):
    assert [len(rows) for rows in draw_from({"a": (mine, more)}, 3)[1]] == asked


def test_a_substitute_without_signal_takes_no_place_of_a_row_without():
    drawn, _ = draw_from({"a": ([NO, NO], [NO, YES, NO, NO])}, 2)
    assert ids(drawn.chosen) == ["a-101", "a-0"]


@pytest.mark.parametrize(
    ("weights", "scores", "signal"),
    [
        ([1.0], [[1.0, 0.0]], YES),
        ([1.0], [[1.0, 1.0]], NO),
        ([0.0], [[1.0, 0.0]], NO),
        ([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], NO),  # they cancel
        ([2.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], YES),
        ([2.0, 1.0], [[1.0, 0.0], [0.0, 2.0]], NO),
        ([1.0, -1.0], [[1.0, 0.0], [1.0, 0.0]], NO),
        ([1.0], [[None, None]], NO),
        ([1.0], [[None, 1.0]], NO),  # one alone is better than none other
        ([1.0], [[None, 1.0, 0.0]], YES),
        ([1.0, 1.0], [[None, 1.0], [1.0, None]], NO),
        ([1.0, 1.0], [[None, 1.0], [0.0, None]], YES),
        ([1.0, 1.0], [[None, 0.0], [0.0, 0.0]], NO),  # no score adds nothing
        ([1.0, 1.0], [[0.1, 0.3], [0.2, 0.0]], NO),  # but for rounding
    ],
)
def test_a_group_has_signal_where_totals_differ(weights, scores, signal):
    assert Group({}, [], [], scores, 0).has_signal(weights) == signal


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(0, 10), st.sets(st.integers(0, 39)), st.integers(1, 4))
def test_ranks_share_out_the_problems_that_were_not_asked(n_a, n_b, asked, ranks):
    names = ["a"] * n_a + ["b"] * n_b
    dataset = Dataset.from_dict({SET: names, "problem_id": [f"p-{n}" for n in range(len(names))]})
    places = places_by_set(dataset)
    found = [substitutes_for({f"p-{n}" for n in asked}, dataset, places, "0/7", rank, ranks) for rank in range(ranks)]
    for name in set(names):
        mine = [row["problem_id"] for by_set in found for row in by_set[name]]
        assert sorted(mine) == sorted(f"p-{n}" for n, other in enumerate(names) if other == name and n not in asked), (
            "together they are all, and none twice"
        )


def test_the_order_of_substitutes_follows_from_the_key_alone():
    dataset = Dataset.from_dict({SET: ["a", "b"] * 20, "problem_id": [f"p-{n}" for n in range(40)]})
    first, again, other = (
        [row["problem_id"] for row in substitutes_for({"p-0"}, dataset, places_by_set(dataset), key, 0, 1)["a"]]
        for key in ("0/1", "0/1", "0/2")
    )
    assert first == again != other
    assert sorted(first) == sorted(other) != first


def test_a_problem_that_stands_twice_is_offered_once():
    dataset = Dataset.from_dict({SET: ["a", "a", "b", "b"], "problem_id": ["p", "p", "p", "q"]})
    assert places_by_set(dataset) == {"a": {"p": 0}, "b": {"q": 3}}


# What training makes of them


def live(answer) -> bool:
    return answer in ("", "2", "4", "6")


def half_dead(completions, answer, log_metric, **_):
    """Of half of the problems no completion is right."""
    log_metric("half_dead/seen", float(len(completions)))
    return [float(live(gold) and len(text) % 2 == 0) for text, gold in zip(completions, answer, strict=True)]


async def half_dead_later(completions, answer, **_):
    await asyncio.sleep(0)
    return [float(live(gold) and "1" in text) for text, gold in zip(completions, answer, strict=True)]


HALF_DEAD = [
    {"use": "tests/test_dynamic_sampling.py:half_dead", "preflight": False},
    {"use": "tests/test_dynamic_sampling.py:half_dead_later", "preflight": False, "weight": 0.5},
    {"use": "tests/test_trainer.py:evenness", "weight": 0.0},
]
TWO_SETS = {
    "problems": MIXTURE["problems"],
    "rewards": [{**HALF_DEAD[0], "about": [CHAIN]}, {"use": "tests/test_trainer.py:knows_name", "about": [COURTESY]}],
}


def train(path, toy_model, **changes) -> dict:
    config = make_config(toy_model, **{"rewards": HALF_DEAD, "probe": None, "trainer": {"max_steps": 3}, **changes})
    return train_grpo(config, make_stage(path, config))


def total(row) -> float:
    return row["reward/half_dead"] + 0.5 * row["reward/half_dead_later"]


def groups_of(rows) -> list:
    return [rows[start : start + 4] for start in range(0, len(rows), 4)]


def steps_of(path) -> list:
    """Each step's metrics, and its rows: those in the batch, and those that were left out."""
    rows, found = rollout_rows(path), []
    for metrics in read_metrics(path / "metrics.jsonl"):
        mine = [row for row in rows if row["step"] == metrics["step"] - 1]
        in_batch = [row["advantage"] is not None for row in mine]
        assert in_batch == sorted(in_batch, reverse=True), "what was left out comes after the batch"
        found.append((metrics, mine[: sum(in_batch)], mine[sum(in_batch) :]))
    return found


@pytest.fixture(scope="module")
def sampled(toy_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("sampled")
    return path, train(path, toy_model, dynamic_sampling=2)


def test_more_groups_of_a_batch_of_the_same_size_have_signal(sampled, toy_model, tmp_path):
    train(tmp_path, toy_model)
    plain, steps = steps_of(tmp_path), steps_of(sampled[0])
    assert [len(batch) for _, batch, _ in steps] == [len(batch) for _, batch, _ in plain] == [16] * 3
    share, share_plain = ([metrics["frac_reward_zero_std"] for metrics, *_ in run] for run in (steps, plain))
    assert share[0] < share_plain[0] and sum(share) < sum(share_plain)
    first, mine = (
        {row["completion"] for row in plain[0][1]},
        {row["completion"] for rows in steps[0][1:] for row in rows},
    )
    assert first <= mine, "the groups that would have been the batch are sampled first"


def test_metrics_and_facts_agree_with_the_rows(sampled):
    path, facts = sampled
    steps = steps_of(path)
    assert any(left_out for *_, left_out in steps)
    for metrics, batch, left_out in steps:
        assert metrics["dynamic_sampling/groups_left_out"] * 4 == len(left_out)
        assert metrics["dynamic_sampling/tokens_left_out"] == sum(row["length"] for row in left_out)
        assert metrics["dynamic_sampling/rounds"] == len({row["seed"] for row in batch + left_out}) - 1 <= 2
        assert metrics["completions/mean_length"] == pytest.approx(sum(row["length"] for row in batch) / 16)
        assert metrics["reward"] == pytest.approx(sum(map(total, batch)) / 16)
        assert metrics["rewards/half_dead_later/mean"] == pytest.approx(
            sum(row["reward/half_dead_later"] for row in batch) / 16
        )
        assert 0 < metrics["half_dead/seen"] <= 16, "the mean over the rounds"
    assert facts["tokens_sampled"] == sum(row["length"] for row in rollout_rows(path))


def test_rows_are_whole_groups_of_different_problems_with_their_rewards(sampled):
    answers = {problem.id: problem.answer for problem in load_problems(CHAIN)}
    for _, batch, left_out in steps_of(sampled[0]):
        rows = batch + left_out
        assert [row["sample"] for row in rows] == [0, 1, 2, 3] * (len(rows) // 4)
        assert set(Counter(row["problem_id"] for row in rows).values()) == {4}
        for row in rows:
            text, answer = [row["completion"]], [answers[row["problem_id"]]]
            assert row["reward/half_dead"] == half_dead(text, answer, lambda *_: None)[0]
            assert row["reward/half_dead_later"] == asyncio.run(half_dead_later(text, answer))[0]
            assert row["reward/evenness"] == evenness(text)[0]
        for group in groups_of(batch):
            mean = sum(map(total, group)) / 4
            assert [row["advantage"] for row in group] == pytest.approx([total(row) - mean for row in group], abs=1e-6)
        chosen, others = ([len(set(map(total, group))) > 1 for group in groups_of(rows)] for rows in (batch, left_out))
        assert all(chosen) or not any(others)


@pytest.mark.parametrize(
    "changes",
    [{}, {"updates_per_rollout": 2}, {"stock": True}, TWO_SETS],
    ids=["plain", "updates", "stock", "mixture"],
)
def test_an_interrupted_run_resumed_is_the_uninterrupted_run(toy_model, tmp_path, monkeypatch, changes):
    mine = {"dynamic_sampling": 2, **changes, "trainer": {"max_steps": 4, "save_steps": 2}}
    train(tmp_path / "whole", toy_model, **mine)
    kind = RolloutTrainer if changes.get("stock") else PackedTrainer
    step = kind.training_step

    def crash_in_step_4(self, *arguments, **named):
        if self.state.global_step == 3:
            raise Crash
        return step(self, *arguments, **named)

    monkeypatch.setattr(kind, "training_step", crash_in_step_4)
    with pytest.raises(Crash):
        train(tmp_path / "torn", toy_model, **mine)
    monkeypatch.setattr(kind, "training_step", step)
    train(tmp_path / "torn", toy_model, **mine)

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert rollout_rows(torn) == rollout_rows(whole)
    assert any(row["advantage"] is None for row in rollout_rows(whole))
    expected, got = (load_file(path / "model/model.safetensors") for path in (whole, torn))
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    timeless = [[drop_times(row) for row in read_metrics(path / "metrics.jsonl")] for path in (whole, torn)]
    assert timeless[0] == timeless[1]


def test_each_set_of_a_mixture_keeps_its_share(toy_model, tmp_path):
    train(tmp_path, toy_model, dynamic_sampling=2, **TWO_SETS)
    sets = {problem.id: name for name in (CHAIN, COURTESY) for problem in load_problems(name)}
    steps = steps_of(tmp_path)
    for _, batch, _ in steps:
        asked = {row["problem_id"] for row in batch}
        assert sorted(sets[name] for name in asked) == [CHAIN] * 3 + [COURTESY]
    assert {sets[row["problem_id"]] for *_, left_out in steps for row in left_out} >= {CHAIN}


# MaxRL


@pytest.mark.parametrize("changes", [{}, {"dynamic_sampling": 2}, {"stock": True}], ids=["plain", "dynamic", "stock"])
def test_maxrl_divides_the_advantage_by_the_mean_of_the_group(toy_model, tmp_path, monkeypatch, changes):
    trained = []
    score = RolloutTrainer._generate_and_score_completions

    def remember(self, inputs):
        batch = score(self, inputs)
        trained.append(batch["advantages"].tolist())
        return batch

    monkeypatch.setattr(RolloutTrainer, "_generate_and_score_completions", remember)
    train(tmp_path, toy_model, maxrl=True, **changes)
    means = []
    for (_, batch, _), advantages in zip(steps_of(tmp_path), trained, strict=True):
        assert [row["advantage"] for row in batch] == advantages, "what is kept is what was trained with"
        for group, found in zip(groups_of(batch), groups_of(advantages), strict=True):
            means.append(mean := sum(map(total, group)) / 4)
            expected = [(total(row) - mean) / mean if mean else 0.0 for row in group]
            assert found == pytest.approx(expected, abs=1e-5)
    assert any(0 < mean < 1 for mean in means)
    assert 0 in means or changes.get("dynamic_sampling")


@pytest.mark.parametrize("rounds", [0, 2])
def test_maxrl_refuses_a_negative_reward(toy_model, tmp_path, rounds):
    rewards = [{"use": "tests/test_trainer.py:evenness", "weight": -1.0}]
    with pytest.raises(ValueError, match="maxrl: .* below 0"):
        train(tmp_path, toy_model, maxrl=True, dynamic_sampling=rounds, rewards=rewards)


def some_short(completions, **_):
    return [None if len(text) % 3 == 0 else float(len(text) % 2) for text in completions]


def test_maxrl_gives_completions_without_a_score_no_advantage(toy_model, tmp_path):
    train(tmp_path, toy_model, maxrl=True, rewards=[{"use": "tests/test_dynamic_sampling.py:some_short"}])
    rows = rollout_rows(tmp_path)
    assert any(row["reward/some_short"] is None for row in rows)
    for group in groups_of(rows):
        scores = [row["reward/some_short"] for row in group]
        mean = fmean([score for score in scores if score is not None] or [0.0])
        expected = [0.0 if score is None or not mean else (score - mean) / mean for score in scores]
        assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-5)


# Several rewards at once


@pytest.fixture(scope="module")
def loop():
    """Of a thread of its own, as TRL keeps one."""
    thread, loop, ready = start_event_loop_in_daemon("rewards")
    ready.wait()
    yield loop
    shutdown_event_loop_in_daemon(thread, loop)


def test_what_a_reward_keeps_between_calls_stays_usable(loop):
    gate = asyncio.Semaphore(1)

    async def one_at_a_time(completions):
        async def graded():
            async with gate:
                await asyncio.sleep(0)
            return 1.0

        return list(await asyncio.gather(*[graded() for _ in completions]))

    for _ in range(2):
        assert all_scores([one_at_a_time], loop, completions=["x", "y"]) == [[1.0, 1.0]]


def test_sync_and_async_rewards_keep_their_order(loop):
    async def slow(completions):
        await asyncio.sleep(0.01)
        return [1.0 for _ in completions]

    async def quick(completions):
        return [2.0 for _ in completions]

    def plain(completions):
        return [3.0 for _ in completions]

    found = all_scores([slow, plain, quick, plain, slow], loop, completions=["x", "y"])
    assert found == [[1.0] * 2, [3.0] * 2, [2.0] * 2, [3.0] * 2, [1.0] * 2]
    assert all_scores([plain], None, completions=["x"]) == [[3.0]]


def test_async_rewards_run_at_once(loop):
    here = {"one": asyncio.Event(), "other": asyncio.Event()}

    def meets(name, whom):
        async def reward(completions):
            here[name].set()
            await asyncio.wait_for(here[whom].wait(), 5)
            return [1.0 for _ in completions]

        return reward

    assert all_scores([meets("one", "other"), meets("other", "one")], loop, completions=["x"]) == [[1.0], [1.0]]
