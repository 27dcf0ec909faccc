"""A reward that says nothing: it has to be a fair coin, and the same one in a run that was interrupted."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.rubric import load_reward, scores_of
from r1lite.stages.config import Reward
from rewards.control import coin

PROMPTS = [f"User: {number}*?=4\nAssistant:" for number in range(50) for _ in range(8)]


def toss(step: int = 0, completions=None, **named) -> list[float]:
    state = SimpleNamespace(global_step=step)
    return coin(completions or ["so"] * len(PROMPTS), prompts=PROMPTS, trainer_state=state, **named)


def test_it_is_fair_and_says_nothing_about_the_completion():
    tosses = [toss(step) for step in range(20)]
    assert {score for each in tosses for score in each} == {0.0, 1.0}
    assert sum(map(sum, tosses)) / sum(map(len, tosses)) == pytest.approx(0.5, abs=0.02)  # 3.6 standard deviations
    assert toss(3, ["<answer>7</answer>"] * len(PROMPTS)) == tosses[3]


def test_completions_of_one_prompt_get_different_tosses():
    groups = [toss()[start : start + 8] for start in range(0, len(PROMPTS), 8)]
    assert sum(len(set(group)) == 2 for group in groups) > 45, "or there would be no advantage to learn from"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_toss_follows_from_seed_and_step_and_each_changes_it(step, seed):
    assert toss(step, seed=seed) == toss(step, seed=seed)
    assert toss(step, seed=seed) != toss(step + 1, seed=seed)
    assert toss(step, seed=seed) != toss(step, seed=seed + 1)


def test_trl_can_call_it_and_so_can_the_preflight_which_has_no_step():
    reward = load_reward(Reward(use="rewards.control:coin"))
    columns = {"prompts": PROMPTS, "completions": ["so"] * len(PROMPTS), "completion_ids": [[1]] * len(PROMPTS)}
    assert scores_of(reward, **columns, answer=["7"] * len(PROMPTS)) == toss(0)
    state = SimpleNamespace(global_step=4)
    called = reward(**columns, trainer_state=state, log_extra=None, log_metric=None)  # as GRPOTrainer does
    assert called == toss(4)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert len(set(coin(["so"] * len(chats), prompts=chats))) == 2
