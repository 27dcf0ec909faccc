from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.metrics import estimate, pass_at_k, reflective_words


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, correct, k = case
    samples = [True] * correct + [False] * (n - correct)
    assert pass_at_k(n, correct, k) == pytest.approx(fmean(any(subset) for subset in combinations(samples, k)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_interval_holds_the_mean_and_stays_within_0_and_1(values):
    result = estimate(values)
    assert 0 <= result.low <= result.mean + 1e-9
    assert result.mean - 1e-9 <= result.high <= 1


def test_interval_of_a_known_sample():
    # 100 problems, half of them always right: standard error sqrt(0.25 * 100 / 99) / 10 = 0.05025
    result = estimate([0.0, 1.0] * 50)
    assert (result.low, result.high) == pytest.approx((0.5 - 1.96 * 0.050252, 0.5 + 1.96 * 0.050252), abs=1e-4)


def test_a_single_problem_says_nothing():
    assert (estimate([0.5]).low, estimate([0.5]).high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [("wait, let me check", 2), ("awaiting a checkmate", 0), ("Wait. But WAIT!", 3), ("try 8*7=6-5=1 no wait", 1)],
)
def test_reflective_words_are_whole_words_in_any_case(text, count):
    assert reflective_words(text) == count
