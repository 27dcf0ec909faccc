"""Graded samples of one model on one set of problems become the numbers of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1lite.curves import draw_evaluation
from r1lite.intervals import fit, maj_variances, over_problems, over_samples, pass_variance
from r1lite.judging import Row, is_right, vote
from r1lite.metrics import Votes, maj_at_k, mean_or_none, pass_at_k, reflective_words
from r1lite.protocol import facts, short
from r1lite.records import write_json


def summarize(problems: dict[str, list[Row]], graders: list[str], measures: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of judged rows, by problem id; the first of `graders` decides what is right, `measures` only tell.

    Every problem has the same number of samples. Shares and means are over samples, None where there is nothing to
    average; tokens are counted with the end token.
    """
    right_by = graders[0]
    votes = vote(list(problems.values()), right_by)
    rows = [row for mine in problems.values() for row in mine]
    pass_at, maj_at = estimates(votes)
    verdicts = {name: [is_right(row, name) for row in rows] for name in graders}
    return {
        "n_problems": len(votes),
        "n_samples": votes[0].n,
        "pass@1": pass_at["1"]["mean"],
        "pass@1_ci_samples": pass_at["1"]["ci_samples"],
        "pass@1_ci_problems": pass_at["1"]["ci_problems"],
        "pass@k": pass_at,
        "maj@k": maj_at,
        "truncated": mean_or_none([row["finish_reason"] == "length" for row in rows if row["finish_reason"]]),
        "no_answer": mean_or_none([row["found"] is None for row in rows]),
        "mean_tokens": mean_tokens(rows),
        "mean_tokens_right": mean_tokens([row for row in rows if is_right(row, right_by)]),
        "mean_tokens_wrong": mean_tokens([row for row in rows if not is_right(row, right_by)]),
        "reflective_words": mean_or_none([float(reflective_words(row["completion"])) for row in rows]),
        "graders": {
            **{name: mean_or_none(list(map(float, mine))) for name, mine in verdicts.items()},
            "disagree": sum(len(set(mine)) > 1 for mine in zip(*verdicts.values(), strict=True)),
        },
        "measures": {
            name: mean_or_none([row[f"reward/{name}"] for row in rows if row[f"reward/{name}"] is not None])
            for name in measures
        },
        "right_by_problem": {name: mine.right for name, mine in zip(problems, votes, strict=True)},
    }


def estimates(votes: list[Votes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """pass@k and maj@k for k = 1, 2, 4, ... n, each with its mean and both 95 % intervals.

    With one sample a problem nothing says how much another would differ, so there is no interval over samples.
    """
    n = votes[0].n
    ks = sorted({n, *(2**power for power in range(n.bit_length()) if 2**power <= n)})
    prior = fit(votes)
    passed = {k: [pass_at_k(n, each.right, k) for each in votes] for k in ks}
    elected = {k: [maj_at_k(each, k) for each in votes] for k in ks}
    pass_variances = [pass_variance(votes, k, prior) for k in ks]
    return stated(passed, pass_variances), stated(elected, maj_variances(votes, ks, prior))


def stated(values: dict[int, list[float]], variances: list[float]) -> dict[str, Any]:
    result = {}
    for (k, each), variance in zip(values.items(), variances, strict=True):
        mean = sum(each) / len(each)
        result[str(k)] = {
            "mean": mean,
            "ci_samples": list(over_samples(mean, variance)) if max(values) > 1 else None,
            "ci_problems": list(over_problems(each)),
        }
    return result


def mean_tokens(rows: list[Row]) -> float | None:
    return mean_or_none([float(row["tokens"]) for row in rows if row["tokens"] is not None])


def write_report(folder: Path, protocol: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """report.json and curves.png of an evaluation; returns what the manifest says of it."""
    report = {"protocol": protocol, "results": results}
    for result in results:
        result["fingerprint"] = short(facts(report, result))
    write_json(folder / "report.json", report)
    draw_evaluation(folder, results)
    return {"results": [{key: result[key] for key in ("model", "problems", "pass@1")} for result in results]}
