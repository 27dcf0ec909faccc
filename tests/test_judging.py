"""What a completion answers, which answers are the same, and how a problem's samples vote."""

from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.judging import ACCURACY, CHOICE, Judge, group_equal, vote
from r1lite.metrics import Votes
from r1lite.pool import Lost
from r1lite.records import Problem
from r1lite.rubric import Asked
from r1lite.stages.config import Reward
from rewards.answers import LONGEST, clean


def asked(answer: str, prefill: str = "") -> Asked:
    return Asked(Problem("what?", answer), "what?", prefill)


# completion, gold, prefill, found, accuracy, exact
COMPLETIONS = [
    (r"<think>a</think>\boxed{7}", "7", "", "7", 1, 1),
    ("<think>a</think><answer>7</answer>", "7", "", "7", 1, 1),
    (r"<think>a</think><answer>so \boxed{7}.</answer>", "7", "", "7", 1, 1),
    (r"\boxed{8} or rather \boxed{7}", "7", "", "7", 1, 1),
    (r"<think>\boxed{7}</think>\boxed{8}", "7", "", "8", 0, 0),
    ("<think>a</think><answer>0.5</answer>", r"\frac12", "", "0.5", 1, 0),
    ("<think>a</think><answer>1,000</answer>", "1000", "", "1,000", 1, 1),
    (r"<think>a</think>\boxed{x+1}", "1+x", "", "x+1", 1, 0),
    (r"<think>so \boxed{7}", "7", "", None, 0, 0),
    (r"so \boxed{7}", "7", "", "7", 1, 1),
    (r"so \boxed{7}", "7", "<think>", None, 0, 0),
    (r"so</think>\boxed{7}", "7", "<think>", "7", 1, 1),
    ("so</think><answer>7</answer>", "7", "<think>", "7", 1, 1),
    (r"<think>a</think>\boxed{7", "7", "", None, 0, 0),
    ("<think>a</think><answer>7", "7", "", None, 0, 0),
    ("<think>a</think>It is 7.", "7", "", None, 0, 0),
    (r"<think>a</think>\boxed{}", "7", "", None, 0, 0),
    (r"<think>a</think>\boxed{ }", "7", "", None, 0, 0),
    (r"<think>a</think>\boxed{7} or \boxed{}", "7", "", None, 0, 0),
    ("<think>a</think><answer>\n</answer>", "7", "", None, 0, 0),
    (r"<think>a</think>\boxed{0}", "0", "", "0", 1, 1),
    ("", "7", "", None, 0, 0),
]


@pytest.mark.parametrize(("completion", "gold", "prefill", "found", "accuracy", "exact"), COMPLETIONS)
def test_the_judge_says_what_is_answered_and_whether_it_is_right(completion, gold, prefill, found, accuracy, exact):
    (verdict,) = Judge(ACCURACY)([asked(gold, prefill)], [completion])
    assert verdict == {"found": found, "reward/accuracy": accuracy, "reward/exact": exact}


def test_many_completions_are_judged_as_one_at_a_time():
    texts, golds, prefills, *_ = zip(*COMPLETIONS, strict=True)
    verdicts = Judge(ACCURACY)(list(map(asked, golds, prefills)), list(texts))
    assert [(v["found"], v["reward/accuracy"], v["reward/exact"]) for v in verdicts] == [
        each[3:] for each in COMPLETIONS
    ]


@pytest.mark.parametrize(
    ("answer", "found", "score"),
    [
        ("B", "B", 1),
        ("(B)", "B", 1),
        ("b) Paris", "B", 1),
        (r"\text{B}", "B", 1),
        ("Option B", "B", 1),
        ("C", "C", 0),
        ("B or C", "B or C", 0),
        ("Paris", "Paris", 0),
    ],
)
def test_of_a_choice_the_letter_is_read(answer, found, score):
    (verdict,) = Judge(CHOICE)([asked("B")], [rf"<think>a</think>\boxed{{{answer}}}"])
    assert (verdict["found"], verdict["reward/choice"]) == (found, score)


@pytest.mark.parametrize("completion", ["<think>B", r"<think>B</think>\boxed{}", "<think>B</think><answer></answer>"])
def test_without_an_answer_no_letter_is_read(completion):
    (verdict,) = Judge(CHOICE)([asked("B")], [completion])
    assert (verdict["found"], verdict["reward/choice"]) == (None, 0)


@pytest.fixture
def mine(tmp_path) -> Reward:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, log_metric, **_):\n"
        "    log_metric('mine/completions', float(len(completions)))\n"
        "    log_metric('mine/empty', float(sum(not text for text in completions)))\n"
        "    return [len(text) if text else None for text in completions]\n"
    )
    return Reward(use=f"{tmp_path}/mine.py:mine")


def test_what_graders_log_adds_up_over_calls(mine):
    judge = Judge(mine)
    assert judge.counts == {}
    judge([asked("7")] * 3, ["", "ab", ""])
    judge([asked("7")] * 2, ["abc", "d"])
    assert judge.counts == {"mine/completions": 5, "mine/empty": 2}


def test_accuracy_counts_its_timeouts_and_crashes():
    judge = Judge(ACCURACY)
    judge([asked("7")], [r"\boxed{7}"])
    assert judge.counts == {"accuracy/timeouts": 0, "accuracy/crashes": 0}


def test_no_score_is_0(mine):
    verdicts = Judge(mine)([asked("7")] * 2, ["", "ab"])
    assert [verdict["reward/mine"] for verdict in verdicts] == [0.0, 2.0]
    assert Judge(mine).names == ["mine", "exact"]


# Equal answers stand in one tuple.
CLASSES = [
    [("1/2", "0.5", r"\frac{1}{2}", r"\frac12", "2/4", r"\dfrac{2}{4}"), ("1/3",), ("-1/2", r"-\frac12")],
    [("x+1", "1+x", "x + 1", r"\frac{2x+2}{2}"), ("x-1", "-1+x"), ("y+1",)],
    [("10^3", "{10}^{3}", "1000", "1,000", "1000.0", "10^{3}"), ("100", "10^2"), ("10",)],
    [(r"\sqrt{8}", r"2\sqrt{2}", "2*sqrt(2)", r"2 \cdot \sqrt2"), (r"2\sqrt{3}", r"\sqrt{12}"), ("4",)],
    [("(1,2)", "(1, 2)", r"\left(1, 2\right)"), ("(2,1)",), ("(1,2,3)",)],
    [("Paris", "paris", r"\text{Paris}"), ("London",)],
    [("x = 5", "5", "$5$", "5 dollars"), ("y = 6", "6")],
    [(r"\frac{",), (r"\sqrt{",), ("3",)],  # what cannot be read is equal to itself alone
]


def cleaned(classes) -> list[str]:
    """Every answer once, the classes mixed: first members first."""
    longest = max(map(len, classes))
    return list(dict.fromkeys(clean(each[n]) for n in range(longest) for each in classes if n < len(each)))


def partition(groups: dict[str, int]) -> set[frozenset[str]]:
    return {frozenset(answer for answer in groups if groups[answer] == number) for number in groups.values()}


@pytest.mark.parametrize("classes", CLASSES, ids=lambda classes: classes[0][0])
@pytest.mark.parametrize("order", [list, lambda answers: answers[::-1], sorted], ids=["mixed", "reversed", "sorted"])
def test_equal_answers_are_one_group_and_others_are_not(classes, order):
    (groups,) = group_equal([order(cleaned(classes))])
    assert partition(groups) == {frozenset(map(clean, each)) for each in classes}
    assert sorted(set(groups.values())) == list(range(1, len(classes) + 1))


DECIMALS = [("0.3333333", "1/3"), ("-0.6666667", r"-\frac{2}{3}"), ("0.142857143", r"\frac17")]


@pytest.mark.parametrize(("decimal", "value"), DECIMALS)
def test_a_decimal_joins_the_fraction_it_stands_for_in_either_order(decimal, value):
    """As a gold the decimal would be equal to itself alone."""
    for answers in permutations([decimal, value, "2"]):
        (groups,) = group_equal([list(answers)])
        assert partition(groups) == {frozenset([decimal, value]), frozenset(["2"])}


def test_a_short_decimal_is_not_the_fraction_in_either_order():
    assert group_equal([["0.33333", "1/3"], ["1/3", "0.33333"]]) == [
        {"0.33333": 1, "1/3": 2},
        {"1/3": 1, "0.33333": 2},
    ]


def test_many_problems_at_once_are_as_one_at_a_time():
    problems = [[], *(cleaned(classes) for classes in CLASSES), ["7"], cleaned(CLASSES[0])[::-1]]
    assert group_equal(problems) == [groups for problem in problems for groups in group_equal([problem])]
    assert group_equal([]) == []


def test_answers_too_long_to_compare_are_equal_to_themselves_alone():
    long, other = "0" * LONGEST + "5", "0" * (LONGEST + 1) + "5"
    assert group_equal([["5", long, other]]) == [{"5": 1, long: 2, other: 3}]
    longest = "0" * (LONGEST - 1) + "5"
    assert group_equal([["5", longest]]) == [{"5": 1, longest: 1}]


def test_answers_whose_comparison_was_lost_are_not_equal(monkeypatch):
    monkeypatch.setattr("r1lite.judging.compare", lambda pairs: dict.fromkeys(pairs, Lost.TIMEOUT))
    assert group_equal([["x+1", "1+x"]]) == [{"x+1": 1, "1+x": 2}]


VALUES = st.builds(Fraction, st.integers(-4, 4), st.integers(1, 5))


@st.composite
def written(draw) -> tuple[Fraction, str]:
    """A number and one of the ways to write it, without what is cleaned away."""
    value = draw(VALUES)
    n, d = value.numerator, value.denominator
    sign = "-" if n < 0 else ""
    forms = [f"{sign}\\frac{{{abs(n)}}}{{{d}}}", f"{n}/{d}", f"{2 * n}/{2 * d}"]
    if d in (1, 2, 4, 5):
        forms.append(str(n / d))
    else:
        forms.append(f"{n / d:.9f}")  # stands for the fraction
    return value, draw(st.sampled_from(forms))


@settings(deadline=None)
@given(st.data(), st.lists(st.lists(written(), max_size=8, unique_by=lambda pair: pair[1]), max_size=4))
def test_groups_are_values_whatever_the_order_and_whatever_else_is_asked(data, problems):
    orders = [data.draw(st.permutations(problem)) for problem in problems]
    for pairs, groups in zip(orders, group_equal([[text for _, text in pairs] for pairs in orders]), strict=True):
        value = {text: value for value, text in pairs}
        assert groups.keys() == value.keys()
        assert partition(groups) == {
            frozenset(text for text in value if value[text] == each) for each in value.values()
        }


def row(found: str | None, right: bool = False) -> dict:
    return {"found": found, "reward/accuracy": float(right), "reward/exact": 0.0}


def test_right_rows_are_one_group_whatever_they_look_like():
    rows = [row("1/2", True), row("7", True), row("banana", True), row(None, True)]
    assert vote([rows], "accuracy") == [Votes(4)]
    assert [each["vote"] for each in rows] == [0, 0, 0, 0]


def test_wrong_rows_are_grouped_by_what_they_mean_and_silent_ones_are_counted():
    rows = [
        row("2/4"),
        row("5", True),
        row("0.5"),
        row(None),
        row(r"\boxed"),
        row("$1/2$"),
        row(None),
        row("9"),
        row("9.0"),
    ]
    assert vote([rows], "accuracy") == [Votes(1, (1, 2, 3), 2)]
    by_vote = [each["vote"] for each in rows]
    assert (by_vote[1], by_vote[3], by_vote[6]) == (0, None, None)
    assert by_vote[0] == by_vote[2] == by_vote[5] and by_vote[7] == by_vote[8]
    assert len(set(by_vote)) == 5


@pytest.mark.parametrize("order", [1, -1])
def test_a_wrong_decimal_and_its_fraction_are_one_vote(order):
    rows = [row("0.3333333"), row("1/3"), row("5", True)][::order]
    assert vote([rows], "accuracy") == [Votes(1, (2,))]


def test_another_grader_decides():
    rows = [
        {"found": "5", "reward/accuracy": 1.0, "reward/exact": 0.0},
        {"found": "6", "reward/accuracy": 0.0, "reward/exact": 1.0},
    ]
    assert vote([rows], "exact") == [Votes(1, (1,))]
    assert [each["vote"] for each in rows] == [1, 0]


def test_only_a_full_score_is_right():
    rows = [{"found": "5", "reward/mine": score} for score in (0.99, 1.0, 2.0, -1.0)]
    assert vote([rows], "mine") == [Votes(2, (2,))]


def test_each_problem_votes_for_itself():
    assert vote([[row("5"), row("5.0")], [row("5", True), row("6")], [row(None), row(None)]], "accuracy") == [
        Votes(0, (2,)),
        Votes(1, (1,)),
        Votes(0, (), 2),
    ]


ROWS = [
    row("3", True),
    row("3.0", True),
    row("1/2"),
    row("0.5"),
    row("1/4"),
    row("0.25"),
    row("4"),
    row(None),
    row(None),
    row("$4$"),
]


@settings(deadline=None)
@given(st.permutations(range(len(ROWS))))
def test_the_order_of_rows_does_not_matter(order):
    straight, mixed = [dict(each) for each in ROWS], [dict(each) for each in ROWS]
    assert (
        vote([[mixed[index] for index in order]], "accuracy")
        == vote([straight], "accuracy")
        == [Votes(2, (2, 2, 2), 2)]
    )
    assert mixed == straight  # the same row has the same number
