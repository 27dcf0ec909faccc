"""The numbers of a report, from judged rows made by hand."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.summary import summarize

GRADERS = ["accuracy", "exact"]


def row(found: str | None, exact: bool | None = None, tokens=None, finish_reason=None, completion="so") -> dict:
    """A judged sample; the right answer is 1."""
    right = found == "1"
    return {
        "found": found,
        "reward/accuracy": float(right),
        "reward/exact": float(right if exact is None else exact),
        "tokens": tokens,
        "finish_reason": finish_reason,
        "completion": completion,
    }


def rows(*found: str | None) -> list[dict]:
    return [row(each) for each in found]


ANSWERS = st.sampled_from(["1", "1", "2", "3", "6/3", None])  # 6/3 is 2
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7))


def problems_of(answers):
    return SHAPES.flatmap(
        lambda s: st.lists(st.lists(answers, min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
    )


def summary_of(problems: list[list[str | None]]) -> dict:
    return summarize({f"p{number}": rows(*found) for number, found in enumerate(problems)}, GRADERS)


@settings(deadline=None, max_examples=30)
@given(problems_of(ANSWERS))
def test_properties_of_any_summary(problems):
    result = summary_of(problems)
    n = len(problems[0])
    json.dumps(result, allow_nan=False)
    assert (result["n_problems"], result["n_samples"]) == (len(problems), n)
    share = sum(found.count("1") for found in problems) / (len(problems) * n)
    assert result["pass@1"] == result["pass@k"]["1"]["mean"] == pytest.approx(share)
    assert result["graders"]["accuracy"] == pytest.approx(share)
    means = [each["mean"] for each in result["pass@k"].values()]
    assert means == sorted(means)
    assert result["pass@k"][str(n)]["mean"] == pytest.approx(sum("1" in found for found in problems) / len(problems))
    assert result["maj@k"]["1"]["mean"] == pytest.approx(share)  # who does not answer does not win either
    assert result["pass@1_ci_samples"] == result["pass@k"]["1"]["ci_samples"]
    assert result["pass@1_ci_problems"] == result["pass@k"]["1"]["ci_problems"]
    for kind in ("pass@k", "maj@k"):
        assert result[kind].keys() == result["pass@k"].keys()
        for k, each in result[kind].items():
            assert result["maj@k"][k]["mean"] <= result["pass@k"][k]["mean"] + 1e-9
            for low, high in filter(None, (each["ci_samples"], each["ci_problems"])):
                assert -1e-9 <= low <= each["mean"] + 1e-9 and each["mean"] - 1e-9 <= high <= 1 + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.data(), problems_of(ANSWERS))
def test_neither_the_order_of_samples_nor_of_problems_matters(data, problems):
    mixed = [data.draw(st.permutations(found)) for found in data.draw(st.permutations(problems))]
    one, other = summary_of(problems), summary_of(mixed)
    for kind in ("pass@k", "maj@k"):
        for k, each in one[kind].items():
            assert other[kind][k]["mean"] == pytest.approx(each["mean"])
            assert other[kind][k]["ci_problems"] == pytest.approx(each["ci_problems"])


@pytest.mark.parametrize(
    ("n", "ks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_ks_are_the_powers_of_two_and_n(n, ks):
    result = summary_of([["1"] * n])
    assert list(result["pass@k"]) == list(result["maj@k"]) == list(map(str, ks))


def test_one_sample_has_no_interval_over_samples():
    result = summary_of([["1"], ["2"], [None]])
    assert result["pass@1"] == pytest.approx(1 / 3)
    assert result["pass@1_ci_samples"] is None
    assert [each["ci_samples"] for kind in ("pass@k", "maj@k") for each in result[kind].values()] == [None, None]
    low, high = result["pass@1_ci_problems"]
    assert 0 <= low < 1 / 3 < high <= 1


def test_several_samples_have_one():
    low, high = summary_of([["1", "2"], ["1", "1"]])["pass@1_ci_samples"]
    assert 0 <= low < 0.75 < high <= 1


def test_the_vote_takes_equal_answers_together():
    # 2 and 6/3 have two votes of four, the right answer one, so only the pairs and singles with it elect it
    result = summary_of([["1", "2", "6/3", None]])
    assert result["maj@k"]["4"]["mean"] == 0
    # pairs: 1 with 2, 1 with 6/3 a tie each, 1 with None won, three without 1 lost
    assert result["maj@k"]["2"]["mean"] == pytest.approx((0.5 + 0.5 + 1) / 6)
    assert result["pass@k"]["2"]["mean"] == pytest.approx(3 / 6)


def test_truncated_silent_and_tokens_of_right_and_wrong():
    samples = [
        row("1", tokens=10, finish_reason="stop"),
        row("1", tokens=20, finish_reason="stop"),
        row("2", tokens=40, finish_reason="stop"),
        row(None, tokens=110, finish_reason="length"),
    ]
    result = summarize({"p": samples}, GRADERS)
    assert (result["truncated"], result["no_answer"]) == (0.25, 0.25)
    assert (result["mean_tokens"], result["mean_tokens_right"], result["mean_tokens_wrong"]) == (45, 15, 75)


def test_an_empty_answer_is_one():
    assert summarize({"p": rows("", None, "1", "1")}, GRADERS)["no_answer"] == 0.25


def test_what_is_not_known_is_none_and_what_is_known_of_some_is_of_those():
    unknown = summary_of([["1", "2"]])
    assert [unknown[key] for key in ("truncated", "mean_tokens", "mean_tokens_right", "mean_tokens_wrong")] == [
        None
    ] * 4
    some = summarize({"p": [row("1", tokens=7, finish_reason="length"), row("1"), row("2")]}, GRADERS)
    assert (some["truncated"], some["mean_tokens"], some["mean_tokens_right"], some["mean_tokens_wrong"]) == (
        1,
        7,
        7,
        None,
    )


def test_tokens_of_none_are_none():
    all_right = summarize({"p": [row("1", tokens=0)]}, GRADERS)
    assert (all_right["mean_tokens_right"], all_right["mean_tokens_wrong"]) == (0, None)


def test_graders_and_the_rows_on_which_they_differ():
    samples = [row("1"), row("1", exact=False), row("2"), row("2", exact=True), row(None)]
    graders = summarize({"p": samples[:5], "q": rows(*["2"] * 5)}, GRADERS)["graders"]
    assert graders == {"accuracy": 0.2, "exact": 0.2, "disagree": 2}


def test_the_first_grader_decides():
    samples = [row("1", exact=False), row("2", exact=True), row("2", exact=True)]
    assert summarize({"p": samples}, ["exact", "accuracy"])["pass@1"] == pytest.approx(2 / 3)
    assert summarize({"p": samples}, ["accuracy", "exact"])["pass@1"] == pytest.approx(1 / 3)


def test_one_grader_alone_never_disagrees():
    assert summarize({"p": rows("1", "2")}, ["exact"])["graders"] == {"exact": 0.5, "disagree": 0}


def test_right_answers_by_problem_in_their_order():
    result = summarize({"b": rows("1", "1"), "a": rows("2", None), "c": rows("2", "1")}, GRADERS)
    assert list(result["right_by_problem"].items()) == [("b", 2), ("a", 0), ("c", 1)]


def test_reflective_words_are_the_mean_of_all_samples():
    samples = [row("1", completion="Wait, let me check."), row("2", completion="so"), row(None, completion="but no")]
    assert summarize({"p": samples}, GRADERS)["reflective_words"] == 1.0
