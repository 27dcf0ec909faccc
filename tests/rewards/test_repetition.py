import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.repetition import repetition


@pytest.mark.parametrize(
    ("completion", "n", "expected", "why"),
    [
        ("", 1, 0, "nothing"),
        ("   \n\t ", 1, 0, "white space"),
        ("a", 1, 0, "one word"),
        ("a a", 1, -1 / 2, "one of two is new"),
        ("a a a a", 1, -3 / 4, "one of four"),
        ("a b c d", 1, 0, "all new"),
        ("a b a b", 1, -1 / 2, "two of four"),
        ("a", 2, 0, "fewer than n words"),
        ("a a", 2, 0, "one pair"),
        ("a a a", 2, -1 / 2, "the same pair twice"),
        ("a b c a b", 2, -1 / 4, "one pair of four returns"),
        ("a b b a", 2, 0, "order counts"),
        ("a b a", 3, 0, "one triple"),
        ("a b a b a b", 3, -1 / 2, "two triples of four"),
        ("x y z x y z x y z", 3, -4 / 7, "a loop of three"),
        ("The the THE", 1, -2 / 3, "case aside"),
        ("a\nb\ta  b", 2, -1 / 3, "any white space"),
        ("so, so", 1, 0, "punctuation stays with its word"),
        ("1 + 2 1 + 2", 3, -1 / 4, "numbers and signs are words"),
        ("哈哈哈哈", 1, -3 / 4, "Han characters one by one"),
        ("我们我们我们", 2, -3 / 5, "pairs of Han characters"),
        ("我们相加", 2, 0, "all new"),
        ("あああ", 1, -2 / 3, "kana one by one"),
        ("我a我a", 1, -1 / 2, "scripts mixed without spaces"),
        ("é é", 1, -1 / 2, "other letters"),
        ("ответ ответ", 1, -1 / 2, "other scripts"),
        ("a" * 20, 1, 0, "a long word is one"),
        ("a" * 40, 1, -1 / 2, "what is longer is cut"),
        ("ha" * 100, 1, -9 / 10, "no hiding in a word without an end"),
        ("<think>a</think> <think>a</think>", 1, -1 / 2, "the whole completion counts, tags too"),
        (" ".join(map(str, range(100))), 20, 0, "a hundred words, all new"),
        ("wait " * 100, 20, -80 / 81, "a loop"),
        (" ".join(map(str, [*range(50), *range(50)])), 20, -31 / 81, "a passage copied"),
        ("the cat sat on the mat and the cat ran", 20, 0, "everyday repetition"),
    ],
)
def test_repetition(completion, n, expected, why):
    assert repetition([completion], n=n) == pytest.approx([expected]), why
    assert repetition([[{"role": "assistant", "content": completion}]], n=n, penalty=-0.5) == (
        pytest.approx([expected / 2])
    ), why


def test_one_score_a_completion_and_extra_columns_ignored():
    assert repetition(["a", "b"], prompts=["p", "p"], completion_ids=[[1], [2]], level=[1, 2]) == [0.0, 0.0]


def test_the_prefill_is_part_of_the_text():
    assert repetition(["a a"], n=1, prefill=["a "]) == pytest.approx([-2 / 3])


@pytest.mark.parametrize("arguments", [{"penalty": 0.1}, {"n": 0}, {"n": -3}])
def test_arguments_that_make_no_sense(arguments):
    with pytest.raises(ValueError, match=r"penalty of at most 0 and an n of at least 1; got"):
        repetition(["a"], **arguments)


@given(st.text(max_size=10_000), st.integers(1, 30), st.floats(-10, 0))
@example("<think>" * 2000, 20, -1.0)
@example("(" * 5000, 20, -1.0)
@example("9" * 10_000, 20, -1.0)
@example("哈" * 10_000, 20, -1.0)
@example("a " * 5000, 20, -1.0)
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text, n, penalty):
    assert penalty <= repetition([text], n=n, penalty=penalty)[0] <= 0.0
