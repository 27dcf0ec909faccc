"""Two results, problem by problem: how far apart are they, and could it be chance?"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from r1lite.intervals import Z95, Interval, t95
from r1lite.protocol import differences, facts

MOST_EXACT = 14  # problems with a difference, up to which all signs are tried
FLIPS = 20_000  # random signs beyond that


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

    Sets of problems are matched by their content, else by their name. Raises ValueError for unlike protocols, naming
    each difference, unless `anyway`; then the problems are compared that both have.
    """
    a, b = read_report(one), read_report(other)
    pairs = [(mine, its) for mine in a["results"] if (its := counterpart(a, mine, b))]
    faults = [
        f"{mine['problems']}: {difference}"
        for mine, its in pairs
        for difference in differences(facts(a, mine), facts(b, its))
    ]
    matched = [mine["problems"] for mine, _ in pairs]
    faults += [f"{each['problems']}: only in {one}" for each in a["results"] if each["problems"] not in matched]
    if faults and pairs and not anyway:
        raise ValueError(
            "\n".join([f"{one} and {other} were not measured alike (--anyway compares them all the same)", *faults])
        )
    pairs = [pair for pair in pairs if shared(*pair)]
    if not pairs:
        raise ValueError(f"{one} and {other} have no problem in common")
    return [paired(mine, its) for mine, its in pairs]


def read_report(reference: str) -> dict[str, Any]:
    """A report with the results of one model only."""
    name, _, model = (reference, "", "") if Path(reference).exists() else reference.rpartition("#")
    path = Path(name or reference)
    path = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        models = list(dict.fromkeys(result["model"] for result in report["results"]))
    except FileNotFoundError:
        raise ValueError(f"there is no report {path} (looked in {Path.cwd()})") from None
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        raise ValueError(f"{path} is no report of an evaluation") from None
    if (model and model not in models) or (not model and len(models) > 1):
        valid = ", ".join(f"{name or reference}#{each}" for each in models)
        raise ValueError(f"{reference}: name one of the models of this report: {valid}")
    return {**report, "results": [each for each in report["results"] if not model or each["model"] == model]}


def counterpart(a: dict[str, Any], mine: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    """The result on the same problems, else on a set of the same name, else on one that shares problems."""
    key = facts(a, mine)["problems"]
    tests = (
        lambda its: facts(b, its)["problems"] == key,
        lambda its: its["problems"] == mine["problems"],
        lambda its: bool(shared(mine, its)),
    )
    return next((its for test in tests for its in b["results"] if test(its)), None)


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
    half = t95(count - 1) * stdev(gains) / count**0.5 if count > 1 else 2.0
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
    half = Z95 * variance**0.5
    return max(-1.0, difference - half), min(1.0, difference + half)


def sign_flip_p(gains: list[float]) -> float:
    """Two-sided p-value of a paired randomization test: how often random signs give a mean at least as far from 0."""
    import numpy as np

    moved = np.array([gain for gain in gains if gain])
    if not len(moved):
        return 1.0
    exact = len(moved) <= MOST_EXACT
    if exact:
        numbers = np.arange(2 ** len(moved))
        signs = 1 - 2 * (numbers[:, None] >> np.arange(len(moved)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (FLIPS, len(moved)))
    as_far = np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9
    return float(as_far.mean() if exact else (as_far.sum() + 1) / (FLIPS + 1))
