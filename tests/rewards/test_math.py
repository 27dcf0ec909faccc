import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.math import accuracy


def answered(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("completion", "gold", "expected", "why"),
    [
        (answered("42"), "42", 1, "the gold itself"),
        (answered(" 42\n"), "42", 1, "white space"),
        (answered("042"), "42", 1, "a leading zero, as AIME writes it"),
        (answered("42.0"), "42", 1, "a trailing zero"),
        (answered("$1,234.50"), "1234.5", 1, "money"),
        (answered("18."), "18", 1, "a full stop"),
        (answered("-7"), "-7", 1, "a sign"),
        (answered("no solution"), "no  solution", 1, "text, white space folded"),
        (answered("43"), "42", 0, "wrong"),
        (answered("7"), "-7", 0, "the sign counts"),
        (answered("No solution"), "no solution", 0, "case counts in text"),
        (answered("1e2"), "100", 0, "no notation but plain numbers"),
        (answered("４２"), "42", 0, "full-width digits are other text"),
        (answered("9" * 5000), "42", 0, "a huge number"),
        (answered(""), "42", 0, "nothing"),
        (answered("42 or 43"), "42", 0, "two answers"),
        (answered("42") + " 42", "42", 0, "text after the answer"),
        ("42", "42", 0, "no tags"),
        ("<think>42</think>", "42", 0, "only thought"),
        ("<think>a</think><answer>42", "42", 0, "not closed"),
        ("<answer>42</answer>", "42", 0, "no thinking"),
    ],
)
def test_accuracy(completion, gold, expected, why):
    assert accuracy([completion], [gold]) == [expected], why


def test_one_score_a_completion_and_extra_columns_ignored():
    assert accuracy([answered("1"), answered("2")], ["1", "1"], level=[1, 2]) == [1.0, 0.0]


@given(st.text(max_size=200), st.text(min_size=1, max_size=20))
def test_accuracy_never_raises_and_stays_in_range(completion, gold):
    assert accuracy([completion, answered(completion)], [gold, gold])[0] in (0.0, 1.0)
