"""Properties; how often the intervals hold the truth is in test_coverage.py."""

from math import sqrt
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.intervals import fit, maj_variances, over_problems, over_samples, pass_variance, t95
from r1lite.metrics import Votes

MIXED = [Votes(right, (8 - right,) if right < 8 else ()) for right in (0, 0, 1, 2, 3, 5, 8, 8, 7, 4)] * 10


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_over_problems_holds_the_mean_and_stays_within_0_and_1(values):
    low, high = over_problems(values)
    assert 0 <= low <= fmean(values) + 1e-9
    assert fmean(values) - 1e-9 <= high <= 1


def test_over_problems_of_a_known_sample():
    # Half of 100 problems right: Wilson's interval for 50 of 100, at t(99) = 1.984.
    t, n = 1.98422, 99  # the sample variance is that of a coin thrown 99 times
    half = t * sqrt(0.25 / n + (t / n) ** 2 / 4) / (1 + t * t / n)
    assert over_problems([0.0, 1.0] * 50) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_problems_that_all_agree_leave_room_for_one_that_does_not(value):
    low, high = over_problems([value] * 30)
    assert 0.85 < 1 - (high - low) < 0.95
    assert value in (low, high)


def test_a_single_problem_says_nothing():
    assert over_problems([0.5]) == (0.0, 1.0)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (2, 4.3027), (3, 3.1824), (7, 2.3646), (29, 2.0452)])
def test_quantiles_of_t_are_those_of_the_tables(freedom, value):
    assert t95(freedom) == pytest.approx(value, rel=2e-3)


def test_the_variance_of_pass_at_1_is_the_binomials():
    textbook = sum(v.right / 8 * (1 - v.right / 8) / 7 for v in MIXED) / len(MIXED) ** 2
    assert pass_variance(MIXED, 1, fit(MIXED)) == pytest.approx(textbook, rel=0.1)


def test_the_simulated_variance_is_that_of_the_closed_form():
    """With one sample to vote, a vote is a pass."""
    prior = fit(MIXED)
    (simulated,) = maj_variances(MIXED, [1], prior)
    assert simulated == pytest.approx(pass_variance(MIXED, 1, prior), rel=0.15)


def test_pass_at_n_has_a_variance_although_each_problem_is_seen_once():
    assert pass_variance(MIXED, 8, fit(MIXED)) > 0


def test_the_prior_finds_the_rates_that_made_the_samples():
    import numpy as np

    random = np.random.default_rng(0)
    rates = random.beta(2, 6, 4000)
    prior = fit([Votes(int(c), (16 - int(c),) if c < 16 else ()) for c in random.binomial(16, rates)])
    assert (prior.a, prior.b) == pytest.approx((2, 6), rel=0.2)
    assert prior.novelty < 0.2  # one wrong answer a problem


def test_many_different_mistakes_make_the_next_one_likely_to_be_new():
    scattered = [Votes(2, (1,) * 6)] * 50
    assert fit(scattered).novelty > 100


def test_over_samples_is_cut_to_0_and_1():
    assert over_samples(0.99, 0.01) == (pytest.approx(0.794, abs=1e-3), 1.0)
    assert over_samples(0.5, 0.0) == (0.5, 0.5)
