from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.metrics import Votes, maj_at_k, pass_at_k, reflective_words

SMALL = st.builds(
    lambda right, wrong, silent: Votes(right, tuple(sorted(wrong)), silent),
    st.integers(0, 4),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(0, 2),
).filter(lambda votes: votes.n > 0)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, correct, k = case
    samples = [True] * correct + [False] * (n - correct)
    assert pass_at_k(n, correct, k) == pytest.approx(fmean(any(subset) for subset in combinations(samples, k)))


def elects(answers: tuple) -> float:
    """The right answer's share of the victory in one vote, counted by hand; None does not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer in votes if votes[answer] == max(votes.values())]
    return winners.count("right") / len(winners) if winners else 0.0


@given(SMALL)
def test_maj_at_k_is_the_mean_vote_over_all_subsets(votes):
    wrong = [f"wrong {kind}" for kind, size in enumerate(votes.wrong) for _ in range(size)]
    samples = ["right"] * votes.right + wrong + [None] * votes.silent
    for k in range(1, votes.n + 1):
        by_hand = fmean(elects(subset) for subset in combinations(samples, k))
        assert maj_at_k(votes, k) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [
        (Votes(2, (2,)), 4, 0.5),  # a tie is half a victory, whichever came first
        (Votes(1, (1, 1)), 3, 1 / 3),
        (Votes(0, (), 4), 4, 0.0),  # nobody answers
        (Votes(1, (), 3), 4, 1.0),  # the only vote decides
        (Votes(64, ()), 64, 1.0),
        (Votes(20, (44,)), 64, 0.0),
        (Votes(40, (1,) * 24), 32, 1.0),  # scattered mistakes do not win
    ],
)
def test_maj_at_k_of_known_votes(votes, k, expected):
    assert maj_at_k(votes, k) == pytest.approx(expected, abs=1e-4)


@given(SMALL)
def test_one_vote_is_one_sample(votes):
    assert maj_at_k(votes, 1) == pytest.approx(pass_at_k(votes.n, votes.right, 1))


@pytest.mark.parametrize(
    ("text", "count"),
    [("wait, let me check", 2), ("awaiting a checkmate", 0), ("Wait. But WAIT!", 3), ("try 8*7=6-5=1 no wait", 1)],
)
def test_reflective_words_are_whole_words_in_any_case(text, count):
    assert reflective_words(text) == count
