"""Every gold answer of the shared data is right for itself, however it is written, and wrong for another problem."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from rewards.math import accuracy

DATA = Path(__file__).parents[3] / "shared" / "data"


def ans(x: str) -> str:
    return f"<think>so</think><answer>{x}</answer>"


def zeros(gold: str) -> str:
    """The same number with more zeros: behind decimals and thousands, before other integers."""
    if "." in gold:
        return gold + "00"
    if "," in gold:
        return gold + ".00"
    return re.sub(r"^-?", r"\g<0>00", gold)


FORMS = {
    "plain": ans,
    "boxed": lambda gold: ans(rf"\boxed{{{gold}}}"),
    "boxed, no tags": lambda gold: rf"So it is \boxed{{{gold}}}.",
    "sentence": lambda gold: ans(f"So the final answer is {gold}."),
    "dollars": lambda gold: ans(f"${gold}$"),
    "inline": lambda gold: ans(rf"\({gold}\)"),
    "units": lambda gold: ans(rf"{gold}\text{{ units}}"),
    "zeros": lambda gold: ans(zeros(gold)),
}


@pytest.fixture(scope="module", params=["aime24", "amc23", "gsm8k_test"])
def golds(request) -> list[str]:
    path = DATA / f"{request.param}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    return [answer.rpartition("####")[2].strip() for answer in answers]


def number(gold: str) -> Fraction:
    return Fraction(gold.replace(",", ""))


def test_there_are_as_many_golds_as_problems_and_all_are_numbers(golds):
    assert len(golds) in (30, 40, 1319)
    assert [gold for gold in golds if not re.fullmatch(r"-?[\d,]+(\.\d+)?", gold)] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_gold_is_right_for_itself(golds, form):
    completions = [FORMS[form](gold) for gold in golds]
    scores = accuracy(completions, golds)
    assert [(text, gold) for text, gold, score in zip(completions, golds, scores, strict=True) if score != 1] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_gold_is_wrong_for_the_next_problem(golds, form):
    others = golds[1:] + golds[:1]
    expected = [float(number(gold) == number(other)) for gold, other in zip(golds, others, strict=True)]
    scores = accuracy([FORMS[form](gold) for gold in golds], others)
    pairs = zip(golds, others, scores, expected, strict=True)
    assert [(gold, other, score) for gold, other, score, right in pairs if score != right] == []


@pytest.mark.parametrize(
    ("gold", "more"), [("204", "00204"), ("-3", "-003"), ("27.0", "27.000"), ("-1.0", "-1.000"), ("1,234", "1,234.00")]
)
def test_zeros_respect_signs_points_and_thousands(gold, more):
    assert zeros(gold) == more
