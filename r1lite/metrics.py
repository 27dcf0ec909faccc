"""What the samples of a problem say: pass@k and maj@k, each without bias from all subsets of k samples at once."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# The reflective words that R1-Zero was watched for (arXiv 2501.12948v2, C.2).
REFLECTIVE = {"wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check"}
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Votes:
    """A problem's n samples: how many are right, the sizes of the groups of equal wrong answers, how many gave none.

    Example: of six samples 7, 7, 8, 8, 9 and one without an answer, with 7 right: Votes(2, (1, 2), 1).
    """

    right: int
    wrong: tuple[int, ...] = ()
    silent: int = 0

    @property
    def n(self) -> int:
        return self.right + sum(self.wrong) + self.silent


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from n samples of which `correct` were.

    1 - C(n - c, k) / C(n, k); Codex, arXiv 2107.03374, equation 1.
    """
    assert 0 <= correct <= n and 1 <= k <= n
    return 1 - comb(n - correct, k) / comb(n, k)


@lru_cache(maxsize=1 << 16)
def maj_at_k(votes: Votes, k: int) -> float:
    """Unbiased chance that a vote among k samples elects the right answer (cons@k of R1, D.1), in [0, 1].

    Samples without an answer do not vote. Where several answers have the most votes, each wins with the same chance, so
    the order of the samples does not matter. Counts, for each number x of right votes, the subsets of k samples in
    which no wrong answer has more than x, by how many have x as well.
    """
    assert 1 <= k <= votes.n
    most_wrong = max(votes.wrong, default=0)
    if k == votes.n:
        return won_share(votes.right, most_wrong, votes.wrong.count(votes.right))
    won = 0.0
    for x in range(1, min(votes.right, k) + 1):
        if x > most_wrong:  # then every choice of the others will do
            won += comb(votes.right, x) * comb(votes.n - votes.right, k - x)
        else:
            won += comb(votes.right, x) * lost_votes(votes, x, k - x)
    return won / comb(votes.n, k)


def won_share(right: int, most_wrong: int, tied: int) -> float:
    return 1 / (1 + tied) if right >= max(most_wrong, 1) else 0.0


def lost_votes(votes: Votes, most: int, count: int) -> float:
    """Ways to choose `count` samples that are not right, no wrong answer more than `most` times.

    A way in which t answers are chosen `most` times counts 1 / (1 + t): they share the victory with the right answer.
    """
    import numpy as np

    ways = np.zeros((count // most + 1, count + 1))  # by how many answers have `most` votes, and votes given
    ways[0, 0] = 1
    for size, times in Counter(votes.wrong).items():
        fewer = choices(size)[:most]
        for _ in range(times):
            added = np.array([np.convolve(row, fewer)[: count + 1] for row in ways])
            if most <= min(size, count):
                added[1:, most:] += ways[:-1, : count + 1 - most] * comb(size, most)
            ways = added
    silent = choices(votes.silent)[: count + 1]
    given = ways[:, count + 1 - len(silent) :][:, ::-1]  # the silent make up for the votes that are missing
    return float(sum(row @ silent / (1 + tied) for tied, row in enumerate(given)))


@lru_cache(maxsize=1024)
def choices(size: int) -> "np.ndarray":
    """Ways to choose 0, 1, ... `size` of as many."""
    import numpy as np

    return np.array([float(comb(size, count)) for count in range(size + 1)])


def reflective_words(completion: str) -> int:
    return sum(word in REFLECTIVE for word in WORD.findall(completion.lower()))


def mean_or_none(values: list[float]) -> float | None:
    return fmean(values) if values else None
