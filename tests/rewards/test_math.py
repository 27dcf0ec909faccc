from collections import Counter

import pytest
from accuracy_table import ROWS, ans, box
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.hacks import HACKS, filled
from rewards.format import think_answer
from rewards.math import accuracy

few = settings(max_examples=50, deadline=None)  # a call may wait for a process that is killed after seconds


@pytest.fixture(scope="module")
def scores() -> list[float]:
    """All rows in one batch, as a trainer would score them."""
    return accuracy([row[0] for row in ROWS], [row[1] for row in ROWS])


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{row}-{why}" for row, (_, _, _, why) in enumerate(ROWS)])
def test_row(scores, index):
    completion, gold, expected, why = ROWS[index]
    assert scores[index] == expected, f"{completion[:200]!r} for {gold[:200]!r}: {why}"


def test_the_table_is_large_balanced_and_has_no_row_twice():
    assert len(ROWS) >= 250
    assert sum(expected == 0 for _, _, expected, _ in ROWS) >= 0.4 * len(ROWS)
    assert [row for row, times in Counter(row[:2] for row in ROWS).items() if times > 1] == []


def test_a_gold_that_was_matched_is_right_for_itself():
    golds = sorted({gold for _, gold, expected, _ in ROWS if expected == 1})
    scores = accuracy([box(gold) for gold in golds], golds)
    assert [gold for gold, score in zip(golds, scores, strict=True) if score != 1] == []


@pytest.mark.parametrize("gold", ["42", "7", "-3"])
def test_no_hack_is_paid(gold):
    assert len(HACKS) >= 25
    problem = "What is 6 times 7?"
    completions = [filled(template, problem, gold) for template, _ in HACKS]
    right = accuracy(completions, [gold] * len(HACKS))
    shaped = think_answer(completions)
    paid = [hack for hack, a, b in zip(HACKS, right, shaped, strict=True) if a * b != 0]
    assert paid == []
    assert accuracy([ans(gold)], [gold]) == think_answer([ans(gold)]) == [1.0], "an honest answer is"


def test_one_score_a_completion_and_extra_columns_ignored():
    assert accuracy([ans("1"), ans("2")], ["1", "1"], level=[1, 2]) == [1.0, 0.0]
    assert accuracy([], []) == []


def test_messages_are_read_as_their_last_text():
    messages = [{"role": "user", "content": ans("41")}, {"role": "assistant", "content": ans("42")}]
    assert accuracy([messages, [{"role": "assistant", "content": None}]], ["42", "42"]) == [1.0, 0.0]


def test_what_the_prompt_has_written_belongs_to_the_completion():
    written = ["<think>"] * 3
    completions = ["so</think><answer>42</answer>", "so <answer>42</answer>", r"so \boxed{42}"]
    assert accuracy(completions, ["42"] * 3, prefill=written) == [1.0, 0.0, 0.0]
    assert accuracy(completions, ["42"] * 3, prefill=[""] * 3) == [1.0, 1.0, 1.0]


@few
@given(st.text(max_size=10_000))
def test_any_text_gets_a_score(text):
    scores = accuracy([text, box(text), ans(text)], ["42"] * 3)
    assert len(scores) == 3
    assert set(scores) <= {0.0, 1.0}


@few
@given(st.integers(), st.integers(), st.integers(0, 20))
def test_integers_are_equal_by_value_only(one, other, zeros):
    sign, digits = "-" * (one < 0), str(abs(one))
    same = sign + "0" * zeros + digits
    assert accuracy([box(same), ans(same)], [str(one)] * 2) == [1.0, 1.0]
    assert accuracy([box(str(one)), ans(str(one))], [str(other)] * 2) == [float(one == other)] * 2


@few
@given(st.integers(-1000, 1000), st.integers(1, 1000), st.integers(2, 1000))
def test_fractions_are_equal_by_value_only(p, q, k):
    forms = [f"{k * p}/{k * q}", rf"\frac{{{k * p}}}{{{k * q}}}", rf"\dfrac{{{-k * p}}}{{{-k * q}}}"]
    assert accuracy([box(form) for form in forms], [f"{p}/{q}"] * 3) == [1.0] * 3
    assert accuracy([box(form) for form in forms], [f"{k * p + 1}/{k * q}"] * 3) == [0.0] * 3
