"""Two results, problem by problem: how far apart are they, and could it be chance?"""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from r1lite.artifacts import read_json
from r1lite.intervals import Interval, t95
from r1lite.protocol import differences, facts

FLIPS = 20_000  # random signs; with at most 14 problems all of them are taken
NORMAL = NormalDist()


@dataclass(frozen=True)
class Comparison:
    """B minus A in pass@1, over the problems that both have; positive where B is better.

    `ci_problems`: 95 % interval over problems, from the spread of the differences. `ci_samples`: over samples on these
    problems, None with one sample a problem. `p`: two-sided, the chance of a difference as large if A and B could
    change places on every problem. `lost`, `won`: problems that go from at least half right to less, and back.
    """

    a: str
    b: str
    problems: str
    n_problems: int
    pass_at_1: tuple[float, float]
    difference: float
    ci_problems: Interval
    ci_samples: Interval | None
    p: float
    lost: list[str]
    won: list[str]


def compare(one: str, other: str, anyway: bool = False) -> list[Comparison]:
    """Compare what is in two reports, each a stage's directory or a report.json, perhaps with `#MODEL` behind it.

    Sets of problems are matched by their content, not by their name. Raises ValueError for unlike protocols, naming
    each difference, unless `anyway`; then sets are matched by name where their content differs.
    """
    a, b = read_report(one), read_report(other)
    pairs = matched(a, b, anyway)
    if not pairs:
        raise ValueError(f"{one} and {other} have no set of problems in common")
    faults = [
        f"{mine['problems']}: {difference}"
        for mine, its in pairs
        for difference in differences(facts(a, mine), facts(b, its))
    ]
    if faults and not anyway:
        raise ValueError(
            "\n".join([f"{one} and {other} were not measured alike (--anyway compares them all the same)", *faults])
        )
    return [paired(mine, its) for mine, its in pairs]


def read_report(reference: str) -> dict[str, Any]:
    """A report with the results of one model only."""
    name, _, model = reference.partition("#")
    path = Path(name) / "report.json" if Path(name).is_dir() else Path(name)
    report: dict[str, Any] = read_json(path)
    models = list(dict.fromkeys(result["model"] for result in report["results"]))
    if (model and model not in models) or (not model and len(models) > 1):
        valid = ", ".join(f"{name}#{each}" for each in models)
        raise ValueError(f"{reference}: name one of the models of this report: {valid}")
    return {**report, "results": [each for each in report["results"] if not model or each["model"] == model]}


def matched(a: dict[str, Any], b: dict[str, Any], anyway: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of results on the same problems; where no set is the same, those that share problems or a name."""
    pairs = [(mine, its) for mine in a["results"] for its in b["results"]]
    same = [pair for pair in pairs if facts(a, pair[0])["problems"] == facts(b, pair[1])["problems"]]
    return same or [pair for pair in pairs if shared(*pair)]


def shared(mine: dict[str, Any], its: dict[str, Any]) -> list[str]:
    return [name for name in mine["right_by_problem"] if name in its["right_by_problem"]]


def paired(mine: dict[str, Any], its: dict[str, Any]) -> Comparison:
    names = shared(mine, its)
    rates = [
        (mine["right_by_problem"][name] / mine["n_samples"], its["right_by_problem"][name] / its["n_samples"])
        for name in names
    ]
    gains = [after - before for before, after in rates]
    difference, count = fmean(gains), len(gains)
    half = t95(count - 1) * stdev(gains) / count**0.5 if count > 1 else 1.0
    return Comparison(
        a=mine["model"],
        b=its["model"],
        problems=mine["problems"],
        n_problems=count,
        pass_at_1=(fmean(before for before, _ in rates), fmean(after for _, after in rates)),
        difference=difference,
        ci_problems=(max(-1.0, difference - half), min(1.0, difference + half)),
        ci_samples=over_both_samples(mine, its, rates, difference),
        p=sign_flip_p(gains),
        lost=[name for name, (before, after) in zip(names, rates, strict=True) if before >= 0.5 > after],
        won=[name for name, (before, after) in zip(names, rates, strict=True) if after >= 0.5 > before],
    )


def over_both_samples(
    mine: dict[str, Any], its: dict[str, Any], rates: list[tuple[float, float]], difference: float
) -> Interval | None:
    if min(mine["n_samples"], its["n_samples"]) < 2:
        return None
    variance = (
        sum(a * (1 - a) / (mine["n_samples"] - 1) + b * (1 - b) / (its["n_samples"] - 1) for a, b in rates)
        / len(rates) ** 2
    )
    half = NORMAL.inv_cdf(0.975) * variance**0.5
    return max(-1.0, difference - half), min(1.0, difference + half)


def sign_flip_p(gains: list[float]) -> float:
    """Two-sided p-value of a paired randomization test: how often random signs give a mean at least as far from 0."""
    import numpy as np

    moved = np.array([gain for gain in gains if gain])
    if not len(moved):
        return 1.0
    if len(moved) <= 14:
        signs = np.array(
            [[1 - 2 * (number >> bit & 1) for bit in range(len(moved))] for number in range(2 ** len(moved))]
        )
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (FLIPS, len(moved)))
    as_far = np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9
    return float(as_far.mean() if len(moved) <= 14 else (as_far.sum() + 1) / (FLIPS + 1))
