"""How often a stated 95 % interval holds the truth, for a policy whose truth is known (docs/evaluation.md has the table).

`pytest tests/test_coverage.py -s` prints it.
"""

from itertools import product
from math import factorial, prod

import numpy as np
import pytest

from r1lite.metrics import Votes
from r1lite.summary import estimates

EVALUATIONS = 1000
ANSWERS = 4  # right, a common mistake, another one, and no answer


def policy(problems: int, random: np.random.Generator) -> np.ndarray:
    """Chances of each answer for each problem, (problems, ANSWERS); the success rates are U-shaped, as AIME's are."""
    rate = random.beta(0.5, 0.8, problems)
    mistakes = random.dirichlet([3, 1.5, 0.7], problems)
    return np.concatenate([rate[:, None], (1 - rate)[:, None] * mistakes], 1)


def expected_maj(chances: np.ndarray, k: int) -> np.ndarray:
    """The chance of each problem that a vote among k samples is right: all counts of k samples, with their chance."""
    counts = np.array([c for c in product(range(k + 1), repeat=ANSWERS) if sum(c) == k])
    ways = np.array([factorial(k) / prod(factorial(int(c)) for c in row) for row in counts])
    rivals = counts[:, 1:3]
    tied = (rivals == counts[:, :1]).sum(1)
    won = np.where((counts[:, 0] > 0) & (counts[:, :1] >= rivals).all(1), 1 / (1 + tied), 0.0)
    return np.concatenate(
        [
            (ways * won * np.prod(part[:, None, :] ** counts[None], 2)).sum(1)
            for part in np.array_split(chances, -(-len(chances) // 500))
        ]
    )


def expected_pass(chances: np.ndarray, k: int) -> np.ndarray:
    return 1 - (1 - chances[:, 0]) ** k


def draw(chances: np.ndarray, n: int, random: np.random.Generator) -> list[Votes]:
    drawn = random.multinomial(n, chances)
    return [Votes(int(r), tuple(sorted(int(w) for w in (a, b) if w)), int(s)) for r, a, b, s in drawn]


def coverage(problems: int, n: int, seed: int) -> dict[str, dict[str, float]]:
    """By metric, the share of evaluations whose interval holds the truth: on their problems, and on all such problems."""
    random = np.random.default_rng(seed)
    ks = [2**power for power in range(n.bit_length()) if 2**power <= n]
    everything = policy(40_000, random)
    population = {f"{name}@{k}": of(everything, k).mean() for name, of in TRUTHS for k in ks}
    held: dict[str, list[tuple[bool, bool]]] = {name: [] for name in population}
    for _ in range(EVALUATIONS):
        chances = policy(problems, random)
        results = dict(zip(("pass", "maj"), estimates(draw(chances, n, random)), strict=True))
        for name, of in TRUTHS:
            for k in ks:
                stated = results[name][str(k)]
                here, everywhere = of(chances, k).mean(), population[f"{name}@{k}"]
                held[f"{name}@{k}"].append(
                    (within(here, stated["ci_samples"]), within(everywhere, stated["ci_problems"]))
                )
    return {
        name: dict(zip(("samples", "problems"), map(float, np.mean(values, axis=0)), strict=True))
        for name, values in held.items()
        if name != "maj@1"  # the same as pass@1
    }


TRUTHS = (("pass", expected_pass), ("maj", expected_maj))


def within(truth: float, interval: list[float]) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "n"), [(100, 8), (30, 16)])
def test_each_interval_holds_the_truth_about_95_times_in_100(problems, n):
    found = coverage(problems, n, seed=0)
    print(f"\n{problems} problems x {n} samples, {EVALUATIONS} evaluations")
    for name, shares in found.items():
        print(f"{name:8} over samples {shares['samples']:.3f}  over problems {shares['problems']:.3f}")
    for name, shares in found.items():
        for kind, share in shares.items():
            assert 0.93 <= share <= 0.97, f"{name} over {kind}: {share}"


def test_the_simulations_truth_is_that_of_its_draws():
    random = np.random.default_rng(1)
    chances = policy(3, random)
    for k in (2, 3):
        votes = [draw(np.repeat(chances[i : i + 1], 20_000, 0), k, random) for i in range(3)]
        seen = [np.mean([estimate_of(vote) for vote in mine]) for mine in votes]
        assert seen == pytest.approx(expected_maj(chances, k), abs=0.015)
    assert expected_pass(chances, 2) == pytest.approx(2 * chances[:, 0] - chances[:, 0] ** 2)


def estimate_of(votes: Votes) -> float:
    most = max(votes.wrong, default=0)
    return 1 / (1 + votes.wrong.count(votes.right)) if votes.right and votes.right >= most else 0.0
