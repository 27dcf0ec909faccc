"""How sure one can be: two 95 % intervals, which answer two questions.

*Over samples*: if the same problems were sampled again, where would the mean come out? This is the noise of a benchmark
with a fixed set of problems, and it shrinks with more samples a problem. *Over problems*: if other problems of the same
kind were drawn? It holds the spread between problems besides, and shrinks with more problems only. docs/evaluation.md
has how often each covered the truth in simulations.
"""

from collections import Counter
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt
from statistics import fmean, variance
from typing import TYPE_CHECKING

from r1lite.metrics import Votes, maj_at_k, pass_at_k

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]
Z95 = 1.959964
PAIRS = 800  # simulated pairs of evaluations of a problem; the noise of a half-width is about 3 %


def over_problems(values: list[float]) -> Interval:
    """95 % interval of the mean of one value a problem, each in [0, 1], the problems taken as drawn from a larger pool.

    Wilson's interval with as many trials as would give the variance that the values have (Korn and Graubard 1998), and
    the t distribution's quantile, since there may be 30 problems only. Unlike mean +- 1.96 standard errors it keeps
    within [0, 1], and does not collapse to a point where all problems agree.
    """
    count, mean = len(values), fmean(values)
    if count == 1:
        return 0.0, 1.0
    spread = variance(values)
    trials = count * mean * (1 - mean) / spread if spread > 0 and 0 < mean < 1 else count
    t = t95(count - 1)
    center, scale = mean + t * t / (2 * trials), 1 + t * t / trials
    half = t * sqrt(max(0.0, mean * (1 - mean)) / trials + (t / trials) ** 2 / 4)
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def t95(freedom: int) -> float:
    """The 0.975 quantile of Student's t, within 0.2 % (Fisher and Cornish 1960, and exact below 3)."""
    if freedom <= 2:
        return (12.7062, 4.30265)[freedom - 1]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** order for order, term in enumerate(terms, 1))


def over_samples(mean: float, variance_of_mean: float) -> Interval:
    half = Z95 * sqrt(max(0.0, variance_of_mean))
    return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class Prior:
    """How the problems of a set differ, fitted to all of them: empirical Bayes.

    Success rates are Beta(a, b); a wrong sample gives an answer that has not been seen before with a weight of
    `novelty` against the wrong ones that have (Ewens). Without it pass@n would have no interval: from n samples with
    none right one cannot tell a problem that is never solved from one that had bad luck, but the other problems can.
    """

    a: float
    b: float
    novelty: float


def fit(problems: list[Votes]) -> Prior:
    """The likeliest prior on a grid, with its mean that of the samples."""
    n, total = problems[0].n, len(problems) * problems[0].n
    mean = min(max(sum(votes.right for votes in problems) / total, 0.5 / total), 1 - 0.5 / total)
    rights = Counter(votes.right for votes in problems)
    strength = max(
        (10 ** (power / 10) for power in range(-20, 41)),
        key=lambda s: sum(times * log_beta_binomial(c, n, mean * s, s - mean * s) for c, times in rights.items()),
    )
    kinds = Counter((len(votes.wrong) + (votes.silent > 0), votes.n - votes.right) for votes in problems)
    novelty = max(
        (10 ** (power / 10) for power in range(-20, 31)),
        key=lambda a: sum(
            times * (groups * log(a) + lgamma(a) - lgamma(a + wrong)) for (groups, wrong), times in kinds.items()
        ),
    )
    return Prior(mean * strength, strength - mean * strength, novelty)


def log_beta_binomial(c: int, n: int, a: float, b: float) -> float:
    choose = lgamma(n + 1) - lgamma(c + 1) - lgamma(n - c + 1)
    return choose + log_beta(a + c, b + n - c) - log_beta(a, b)


def log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def pass_variance(problems: list[Votes], k: int, prior: Prior) -> float:
    """The variance of the mean pass@k of these problems, were they sampled again.

    For each problem E[Var(estimate | p)] over what its own samples and the prior say of its success rate p, in closed
    form: the estimate's second moment is a sum over the beta-binomial, and E[(1 - p)^j] a ratio of beta functions.
    """
    n, total = problems[0].n, 0.0
    for right, times in Counter(votes.right for votes in problems).items():
        a, b = prior.a + right, prior.b + n - right
        second = sum(exp(log_beta_binomial(c, n, a, b)) * pass_at_k(n, c, k) ** 2 for c in range(n + 1))
        none, none_twice = (exp(log_beta(a, b + j) - log_beta(a, b)) for j in (k, 2 * k))
        total += times * (second - (1 - 2 * none + none_twice))
    return total / len(problems) ** 2


def maj_variances(problems: list[Votes], ks: list[int], prior: Prior) -> list[float]:
    """The variance of the mean maj@k of these problems, were they sampled again; by simulation with a fixed seed.

    Half the squared difference of two evaluations with the same success rate and the same wrong answers, both drawn
    from what the problem's samples and the prior say, has E[Var(estimate)] as its mean.
    """
    import numpy as np

    random = np.random.default_rng(0)
    repeats, totals = -(-PAIRS // len(problems)), [0.0] * len(ks)
    for votes in problems:
        for _ in range(repeats):
            rate = random.beta(prior.a + votes.right, prior.b + votes.n - votes.right)
            shares = random.dirichlet([*votes.wrong, prior.novelty, *([votes.silent] if votes.silent else [])])
            one, other = resampled(votes, rate, shares, random), resampled(votes, rate, shares, random)
            for index, k in enumerate(ks):
                totals[index] += (maj_at_k(one, k) - maj_at_k(other, k)) ** 2 / 2 / repeats
    return [total / len(problems) ** 2 for total in totals]


def resampled(votes: Votes, rate: float, shares: "np.ndarray", random: "np.random.Generator") -> Votes:
    right = int(random.binomial(votes.n, rate))
    counts = [int(count) for count in random.multinomial(votes.n - right, shares)]
    seen, new, silent = counts[: len(votes.wrong)], counts[len(votes.wrong)], sum(counts[len(votes.wrong) + 1 :])
    return Votes(right, tuple(sorted([*filter(None, seen), *[1] * new])), silent)
