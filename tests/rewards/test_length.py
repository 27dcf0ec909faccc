import inspect
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.length import cosine, kimi, overlong

RIGHT = "<think>so</think><answer>7</answer>"
WRONG = "<think>so</think><answer>8</answer>"
PAPER = {"right": [2, 1], "wrong": [-10, 0], "exceeded": -10}  # arXiv 2502.03373


def ids(*lengths: int) -> list[list[int]]:
    return [[1] * length for length in lengths]


@pytest.mark.parametrize(
    ("completion", "length", "arguments", "expected", "why"),
    [
        (RIGHT, 0, {}, 1.0, "right and short"),
        (RIGHT, 50, {}, 0.75, "half-way"),
        (RIGHT, 25, {}, 0.75 + 0.25 * math.sqrt(0.5), "a quarter"),
        (RIGHT, 75, {}, 0.75 - 0.25 * math.sqrt(0.5), "three quarters"),
        (RIGHT, 99, {}, 0.5 + 0.5 * (1 + math.cos(0.99 * math.pi)) / 2, "right and long"),
        (RIGHT, 100, {}, -1.0, "as long as may be: cut off, right or not"),
        (RIGHT, 101, {}, -1.0, "longer"),
        (RIGHT, 5000, {}, -1.0, "much longer"),
        (WRONG, 0, {}, -1.0, "wrong and short"),
        (WRONG, 50, {}, -0.75, "half-way"),
        (WRONG, 25, {}, -0.75 - 0.25 * math.sqrt(0.5), "a quarter"),
        (WRONG, 75, {}, -0.75 + 0.25 * math.sqrt(0.5), "three quarters"),
        (WRONG, 100, {}, -1.0, "as long as may be"),
        (WRONG, 5000, {}, -1.0, "much longer"),
        ("7", 0, {}, -1.0, "no answer is a wrong one"),
        ("", 50, {}, -0.75, "no answer is a wrong one"),
        (RIGHT, 0, PAPER, 2, "r_0^c"),
        (RIGHT, 50, PAPER, 1.5, "half-way"),
        (WRONG, 0, PAPER, -10, "r_0^w"),
        (WRONG, 50, PAPER, -5, "half-way"),
        (RIGHT, 100, PAPER, -10, "r_e"),
        (WRONG, 100, PAPER, -10, "r_e"),
        (RIGHT, 60, {"right": [1, 1]}, 1, "a flat one is the accuracy"),
        (RIGHT, 50, {"right": [0.5, 1]}, 0.75, "it may rise"),
        (RIGHT, 0, {"max_tokens": 1}, 1, "the least maximum"),
        (RIGHT, 1, {"max_tokens": 1}, -1, "the least maximum"),
        ("so</think><answer>7</answer>", 0, {"prefill": ["<think>"]}, 1, "the prompt opened the thinking"),
    ],
)
def test_cosine(completion, length, arguments, expected, why):
    arguments = {"max_tokens": 100, **arguments}
    assert cosine([completion], ids(length), ["7"], **arguments) == pytest.approx([expected]), why
    message = [{"role": "assistant", "content": completion}]
    assert cosine([message], ids(length), ["7"], **arguments) == pytest.approx([expected]), why


def test_a_right_answer_is_always_worth_more_and_falls_while_a_wrong_one_rises():
    right = cosine([RIGHT] * 100, ids(*range(100)), ["7"] * 100, max_tokens=100)
    wrong = cosine([WRONG] * 100, ids(*range(100)), ["7"] * 100, max_tokens=100)
    assert right == sorted(right, reverse=True) and wrong == sorted(wrong) and min(right) > max(wrong)


@pytest.mark.parametrize(
    ("length", "max_tokens", "buffer", "expected", "why"),
    [
        (0, 100, 20, 0, "nothing"),
        (79, 100, 20, 0, "short enough"),
        (80, 100, 20, 0, "just short enough"),
        (81, 100, 20, -0.05, "one token over"),
        (85, 100, 20, -0.25, "a quarter of the buffer"),
        (90, 100, 20, -0.5, "half the buffer"),
        (99, 100, 20, -0.95, "almost all of it"),
        (100, 100, 20, -1, "all of it"),
        (101, 100, 20, -1, "beyond"),
        (10_000, 100, 20, -1, "far beyond"),
        (100, 100, 0, 0, "no buffer: all that fits is fine"),
        (101, 100, 0, -1, "no buffer: a cliff"),
        (50, 100, 100, -0.5, "all of it is buffer"),
        (0, 100, 100, 0, "all of it is buffer"),
        (0, 100, 200, -0.5, "a buffer beyond the maximum"),
        (16_384, 20_480, 4096, 0, "DAPO's numbers"),
        (18_432, 20_480, 4096, -0.5, "DAPO's numbers"),
        (20_480, 20_480, 4096, -1, "DAPO's numbers"),
    ],
)
def test_overlong(length, max_tokens, buffer, expected, why):
    assert overlong(ids(length), max_tokens, buffer) == pytest.approx([expected]), why
    assert overlong(completion_ids=ids(length), completions=["a"], max_tokens=max_tokens, buffer=buffer) == (
        pytest.approx([expected])
    ), why


@pytest.mark.parametrize(
    ("rows", "expected", "why"),
    [
        ([("p", RIGHT, 10)], [0], "alone"),
        ([("p", RIGHT, 10), ("p", RIGHT, 10)], [0, 0], "all of a length"),
        ([("p", WRONG, 10), ("p", RIGHT, 10)], [0, 0], "all of a length, right or wrong"),
        ([("p", RIGHT, 10), ("p", RIGHT, 30)], [0.5, -0.5], "the shortest and the longest"),
        ([("p", RIGHT, 30), ("p", RIGHT, 10)], [-0.5, 0.5], "in any order"),
        ([("p", WRONG, 10), ("p", WRONG, 30)], [0, -0.5], "a wrong one earns nothing for being short"),
        ([("p", WRONG, 10), ("p", RIGHT, 30)], [0, -0.5], "a long right one is not spared"),
        ([("p", RIGHT, 10), ("p", WRONG, 30)], [0.5, -0.5], "right and short, wrong and long"),
        ([("p", RIGHT, 10), ("p", RIGHT, 20), ("p", RIGHT, 30)], [0.5, 0, -0.5], "half-way is 0"),
        ([("p", RIGHT, 0), ("p", RIGHT, 1), ("p", RIGHT, 4)], [0.5, 0.25, -0.5], "in between"),
        ([("p", WRONG, 0), ("p", WRONG, 3), ("p", WRONG, 4)], [0, -0.25, -0.5], "in between and wrong"),
        ([("p", RIGHT, 10), ("q", RIGHT, 30)], [0, 0], "other prompts are other groups"),
        (
            [("p", RIGHT, 10), ("q", RIGHT, 5), ("p", RIGHT, 30), ("q", RIGHT, 7)],
            [0.5, 0.5, -0.5, -0.5],
            "groups by prompt, not by place",
        ),
        ([("p", "", 10), ("p", RIGHT, 30)], [0, -0.5], "no answer is a wrong one"),
    ],
)
def test_kimi(rows, expected, why):
    prompts, completions, lengths = map(list, zip(*rows, strict=True))
    answer = ["7"] * len(rows)
    assert kimi(completions, ids(*lengths), answer, prompts) == pytest.approx(expected), why
    prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    completions = [[{"role": "assistant", "content": completion}] for completion in completions]
    assert kimi(completions, ids(*lengths), answer, prompts) == pytest.approx(expected), why


def test_kimi_with_a_prefill():
    texts = ["so</think><answer>7</answer>", "so</think><answer>7</answer>"]
    assert kimi(texts, ids(1, 2), ["7", "7"], ["p", "p"], prefill=["<think>", "<think>"]) == [0.5, -0.5]


@pytest.mark.parametrize(
    ("reward", "arguments"), [(cosine, {"max_tokens": 9}), (kimi, {}), (overlong, {"max_tokens": 9, "buffer": 3})]
)
def test_one_score_a_completion_and_extra_columns_ignored(reward, arguments):
    columns = {"completions": [RIGHT, WRONG], "completion_ids": ids(3, 5), "answer": ["7", "7"], "prompts": ["p", "p"]}
    assert len(reward(**columns, **arguments, level=[1, 2], trainer_state=None)) == 2
    assert inspect.signature(reward).parameters["_"].kind is inspect.Parameter.VAR_KEYWORD


@given(st.text(max_size=10_000), st.lists(st.integers(0, 300), min_size=2, max_size=2))
@example("<think>" * 2000, [1, 2])
@example("(" * 5000, [1, 2])
@example("9" * 10_000, [1, 2])
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text, lengths):
    texts, answer = [text, f"<think>so</think><answer>{text}</answer>"], ["7", "7"]
    assert all(-1 <= score <= 1 for score in cosine(texts, ids(*lengths), answer, max_tokens=100))
    assert all(-0.5 <= score <= 0.5 for score in kimi(texts, ids(*lengths), answer, prompts=[text, text]))


@given(st.lists(st.integers(0, 300)), st.integers(1, 200), st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_overlong_stays_in_its_range_and_never_rises_with_the_length(lengths, max_tokens, buffer):
    scores = overlong(ids(*sorted(lengths)), max_tokens, buffer)
    assert scores == sorted(scores, reverse=True) and all(-1 <= score <= 0 for score in scores)
