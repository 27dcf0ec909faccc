import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.countdown import countdown


def answered(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "numbers", "target", "expected", "why"),
    [
        ("1 + 2 * 3", [1, 2, 3], 7, 1, "precedence"),
        ("(1 + 2) * 3", [1, 2, 3], 9, 1, "parentheses"),
        ("3*(2+1)", [1, 2, 3], 9, 1, "any order of the numbers"),
        ("(1+2)*3 = 9", [1, 2, 3], 9, 1, "the target after ="),
        ("(1+2)*3=9", [1, 2, 3], 9, 1, "without spaces"),
        ("\n (1+2)\n * 3 ", [1, 2, 3], 9, 1, "white space"),
        ("8/(3-8/3)", [3, 3, 8, 8], 24, 1, "through fractions, exactly"),
        ("1/3*3", [1, 3, 3], 1, 1, "no rounding"),
        ("3 − 5", [3, 5], -2, 1, "a minus in print, a target below 0"),
        ("3 × 4 ÷ 2", [2, 3, 4], 6, 1, "signs in print"),
        (r"3 \times 4 \div 2", [2, 3, 4], 6, 1, "LaTeX"),
        (r"\left(3 + 4\right) \cdot 2", [2, 3, 4], 14, 1, "LaTeX"),
        ("$3 + 4$", [3, 4], 7, 1, "in dollars"),
        (r"\boxed{3 + 4 = 7}", [3, 4], 7, 1, "in a box"),
        ("((((3))))", [3], 3, 1, "needless parentheses"),
        ("0 + 3", [0, 3], 3, 1, "zero is a number"),
        ("12 + 3", [3, 12], 15, 1, "two digits that were given"),
        ("100*75/25", [25, 75, 100], 300, 1, "large ones"),
        ("1 + 2 + 3", [1, 2, 3], 7, 0, "another value"),
        ("3 * 3", [1, 2, 3], 9, 0, "one twice, others not at all"),
        ("1 + 2", [1, 2, 3], 3, 0, "one left out"),
        ("3 + 4 + 0", [3, 4], 7, 0, "one added"),
        ("3 * 3 + 2", [2, 3], 11, 0, "one twice"),
        ("12", [1, 2], 12, 0, "digits glued together"),
        ("1 2", [1, 2], 12, 0, "with a space"),
        ("1$2", [1, 2], 12, 0, "with what is stripped"),
        (r"1\left2", [1, 2], 12, 0, "with what is stripped"),
        ("7", [3, 4], 7, 0, "the target itself"),
        ("3 + 4 = 8", [3, 4], 7, 0, "another target after ="),
        ("3 + 5 = 7", [3, 5], 7, 0, "= does not make it so"),
        ("7 = 3 + 4", [3, 4], 7, 0, "the target first"),
        ("3 + 4 = 7 = 7", [3, 4], 7, 0, "twice ="),
        ("3 + 4 =", [3, 4], 7, 0, "nothing after ="),
        ("-3 + 10", [3, 10], 7, 0, "a sign"),
        ("10 - -3", [3, 10], 13, 0, "a sign"),
        ("+3 + 4", [3, 4], 7, 0, "a sign"),
        ("3 ** 2", [2, 3], 9, 0, "a power"),
        ("3 * * 2", [2, 3], 9, 0, "no syntax"),
        ("7 // 2", [2, 7], 3, 0, "floor division"),
        ("7 % 4", [4, 7], 3, 0, "remainder"),
        ("3(4)", [3, 4], 12, 0, "a call"),
        ("3, 4", [3, 4], 7, 0, "a list"),
        ("()", [3], 3, 0, "empty parentheses"),
        ("(3 + 4", [3, 4], 7, 0, "not closed"),
        ("3 + 4)", [3, 4], 7, 0, "not opened"),
        ("3 +", [3], 3, 0, "unfinished"),
        ("3 / 0", [0, 3], 0, 0, "division by zero"),
        ("3 / (4 - 4)", [3, 4, 4], 0, 0, "division by zero"),
        ("03 + 4", [3, 4], 7, 0, "a leading zero"),
        ("00 + 3", [0, 3], 3, 0, "a leading zero"),
        ("3.0 + 4", [3, 4], 7, 0, "a decimal point"),
        ("1e1 + 2", [1, 2, 10], 12, 0, "an exponent"),
        ("1_0 + 2", [2, 10], 12, 0, "an underscore"),
        ("3j", [3], 3, 0, "complex"),
        ("0x3", [3], 3, 0, "hexadecimal"),
        ("True + 1", [1, 1], 2, 0, "a name"),
        ("__import__('os')", [1], 1, 0, "code"),
        ("３ + ４", [3, 4], 7, 0, "full-width digits"),
        ("3 + 4 is it", [3, 4], 7, 0, "words"),
        ("3 + 4; 3 + 4", [3, 4], 7, 0, "two expressions"),
        ("", [3, 4], 7, 0, "nothing"),
        ("(" * 95 + "3" + ")" * 95, [3], 3, 1, "as deep as it may be"),
        ("(" * 100 + "3" + ")" * 100, [3], 3, 0, "too long"),
        ("3 +" + " " * 200 + "4", [3, 4], 7, 0, "too long"),
    ],
)
def test_countdown(answer, numbers, target, expected, why):
    assert countdown([answered(answer)], [numbers], [target]) == [expected], why
    message = [{"role": "assistant", "content": answered(answer)}]
    assert countdown([message], numbers=[numbers], target=[target]) == [expected], why


@pytest.mark.parametrize(
    ("completion", "prefill", "expected", "why"),
    [
        (r"<think>so</think>\boxed{3 + 4}", "", 1, "in a box without tags"),
        ("so</think><answer>3 + 4</answer>", "<think>", 1, "the prompt opened the thinking"),
        ("<think>3 + 4</think>", "", 0, "only thought"),
        ("<answer>3 + 4</answer>", "<think>", 0, "within the thinking"),
        ("3 + 4", "", 0, "not marked as the answer"),
        (answered("3 * 4") + answered("3 + 4"), "", 1, "the last answer counts"),
    ],
)
def test_where_the_answer_stands(completion, prefill, expected, why):
    assert countdown([completion], [[3, 4]], [7], prefill=[prefill]) == [expected], why


def test_one_score_a_completion_and_extra_columns_ignored():
    both = [answered("3 + 4"), answered("3 * 4")]
    assert countdown(both, [[3, 4], [3, 4]], [7, 7], prompts=["p", "p"], level=[1, 2]) == [1.0, 0.0]


@given(st.one_of(st.text(max_size=10_000), st.text("0123456789+-*/() =", max_size=200)))
@example("<think>" * 2000)
@example("(" * 5000)
@example("9" * 10_000)
@example("9" * 200)
@example("-" * 199 + "1")
@example("(" * 200)
@example("1" + "-1" * 99)
@example("1" + "\u00f7" * 199)
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text):
    assert set(countdown([text, answered(text)], [[1, 2], [1, 2]], [3, 3])) <= {0.0, 1.0}


@given(st.lists(st.integers(0, 99), min_size=1, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_every_sum_that_is_right_scores_and_another_target_does_not(numbers, data):
    expression = " + ".join(map(str, data.draw(st.permutations(numbers))))
    assert countdown([answered(expression)] * 2, [numbers] * 2, [sum(numbers), sum(numbers) + 1]) == [1.0, 0.0]
