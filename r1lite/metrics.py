"""What samples say about a model: pass@1, pass@k, and how sure one can be."""

import re
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, stdev

Z95 = 1.959964

# The reflective words that R1-Zero was watched for (arXiv 2501.12948v2, C.2).
REFLECTIVE = re.compile(r"\b(wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems, in [0, 1], with its 95 % interval over problems."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from n samples of which `correct` were.

    1 - C(n - c, k) / C(n, k); Codex, arXiv 2107.03374, equation 1.
    """
    assert 0 <= correct <= n and 1 <= k <= n
    return 1 - comb(n - correct, k) / comb(n, k)


def estimate(values: list[float]) -> Estimate:
    """Mean of one value a problem and its normal 95 % interval, cut to [0, 1].

    The problems are taken as drawn from a larger pool, so the spread between problems and that between the samples of a
    problem are both in it (clustered standard error; Miller 2024, arXiv 2411.00640, equation 1).
    """
    mean = fmean(values)
    half = Z95 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 1.0
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def reflective_words(completion: str) -> int:
    return len(REFLECTIVE.findall(completion))


def mean_or_none(values: list[float]) -> float | None:
    return fmean(values) if values else None
