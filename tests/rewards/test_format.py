import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.format import tag_count, think_answer

GOOD = "<think>a</think><answer>b</answer>"


@pytest.mark.parametrize(
    ("completion", "prefill", "expected", "why"),
    [
        (GOOD, "", 1, "the shape itself"),
        ("<think>a</think><answer></answer>", "", 1, "an empty answer is shaped well"),
        ("<think></think><answer>b</answer>", "", 1, "so is an empty thought"),
        (f"\n {GOOD}\n", "", 1, "white space around"),
        ("<think>a</think>\n\n<answer>b</answer>", "", 1, "white space between"),
        ("<think>a\nb</think><answer>x\ny</answer>", "", 1, "several lines"),
        ("<think>1 < 2</think><answer>2 > 1</answer>", "", 1, "angle brackets that are no tags"),
        ("<think>思考</think><answer>答</answer>", "", 1, "another script"),
        ("<think><b>a</b></think><answer>b</answer>", "", 1, "other tags are text"),
        ("a</think><answer>b</answer>", "<think>", 1, "the prompt opened the thinking"),
        ("\na\n</think>\n<answer>b</answer>", "<think>\n", 1, "the prompt opened it with a new line"),
        (GOOD, "<think>", 0, "opened by the prompt and again"),
        ("a</think><answer>b</answer>", "", 0, "not opened by anyone"),
        ("a", "<think>", 0, "only opened"),
        (f"{GOOD}!", "", 0, "text after"),
        (f"So: {GOOD}", "", 0, "text before"),
        ("<think>a</think> b <answer>b</answer>", "", 0, "text between"),
        ("<think>a</think> b", "", 0, "no answer"),
        ("<answer>b</answer>", "", 0, "no thinking"),
        ("<think>a</think><answer>b", "", 0, "answer cut off"),
        ("<think>a", "", 0, "thinking cut off"),
        ("<think>a<answer>b</answer></think>", "", 0, "answer inside the thinking"),
        ("<answer>b</answer><think>a</think>", "", 0, "the wrong order"),
        (GOOD + GOOD, "", 0, "twice"),
        ("<think><think>a</think></think><answer>b</answer>", "", 0, "nested"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "", 0, "two answers"),
        ("<Think>a</Think><Answer>b</Answer>", "", 0, "other case"),
        ("< think>a</think><answer>b</answer>", "", 0, "a space in a tag"),
        ("", "", 0, "nothing"),
        ("b", "", 0, "no tags"),
    ],
)
def test_think_answer(completion, prefill, expected, why):
    assert think_answer([completion], prefill=[prefill]) == [expected], why
    assert think_answer([[{"role": "assistant", "content": completion}]], prefill=[prefill]) == [expected], why


@pytest.mark.parametrize(
    ("completion", "prefill", "expected", "why"),
    [
        (GOOD, "", 1.0, "all four"),
        (f"So: {GOOD}!", "", 1.0, "text around costs nothing"),
        ("<think></think><answer></answer>", "", 1.0, "nor do empty parts"),
        ("<think>a</think> so <answer>b</answer>", "", 1.0, "nor text between"),
        ("", "", 0.0, "nothing"),
        ("b", "", 0.0, "no tags"),
        ("<think>", "", 0.25, "one tag"),
        ("</think>", "", 0.25, "any one"),
        ("<answer>", "", 0.25, "any one"),
        ("</answer>", "", 0.25, "any one"),
        ("<think>a</think>", "", 0.5, "half"),
        ("<answer>b</answer>", "", 0.5, "the other half"),
        ("<think>a<answer>b", "", 0.5, "nothing closed"),
        ("a</think>b</answer>", "", 0.5, "nothing opened"),
        ("<think>a</think><answer>b", "", 0.75, "cut off"),
        ("a</think><answer>b</answer>", "", 0.75, "not opened"),
        ("<think>a<answer>b</answer>", "", 0.75, "thinking not closed"),
        ("<think>a</think>b</answer>", "", 0.75, "answer not opened"),
        ("", "<think>", 0.25, "the prompt's tag counts"),
        ("a</think><answer>b</answer>", "<think>", 1.0, "and makes the whole"),
        (GOOD, "<think>", 0.75, "opened by the prompt and again"),
        ("</think><think>", "", 0.25, "reversed: only what is in its place"),
        ("</answer><answer>", "", 0.25, "reversed"),
        ("</answer><answer></think><think>", "", 0.25, "all reversed: only the first of the list"),
        ("<answer>b</answer><think>a</think>", "", 0.5, "the answer first"),
        ("<think><answer>b</answer></think>", "", 0.5, "the answer inside: not after </think>"),
        ("<think><answer></think></answer>", "", 0.75, "crossed: only <answer> is out of its place"),
        ("<think>a<think>b</think><answer>c</answer>", "", 0.75, "one tag twice"),
        ("<think>a</think></think><answer>c</answer>", "", 0.75, "one tag twice"),
        ("<think>a</think><answer>b</answer></answer>", "", 0.75, "one tag twice"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "", 0.5, "two answers"),
        ("<think>a</think><think>b</think><answer>c</answer>", "", 0.5, "two thoughts"),
        (GOOD + GOOD, "", 0.0, "everything twice"),
        ("<think>" * 100, "", 0.0, "repeating earns nothing"),
        (GOOD + "<think>", "", 0.0, "a tag at the end takes the others out of their place"),
        ("<THINK>a</THINK>", "", 0.0, "other case"),
        ("<think >a</ think>", "", 0.0, "a space in a tag"),
        ("<think<think>>", "", 0.25, "broken text around a tag"),
    ],
)
def test_tag_count(completion, prefill, expected, why):
    assert tag_count([completion], prefill=[prefill]) == [expected], why
    assert tag_count([[{"role": "assistant", "content": completion}]], prefill=[prefill]) == [expected], why


@pytest.mark.parametrize("reward", [think_answer, tag_count])
def test_one_score_a_completion_and_extra_columns_ignored(reward):
    assert reward([GOOD, "", GOOD], prompts=["p"] * 3, completion_ids=[[1]] * 3, level=[1, 2, 3]) == [1.0, 0.0, 1.0]


@given(st.text(max_size=10_000))
@example("<think>" * 2000)
@example("<think>" + "</think>" * 2000)
@example("<" * 10_000)
@example(GOOD * 300)
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text):
    assert think_answer([text, text], prefill=["", "<think>"])[0] in (0.0, 1.0)
    assert set(tag_count([text, text], prefill=["", "<think>"])) <= {0.0, 0.25, 0.5, 0.75, 1.0}


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a"]), max_size=8))
@settings(max_examples=200, deadline=None)
def test_what_is_shaped_as_asked_has_all_tags_in_their_place(pieces):
    text = "".join(pieces)
    assert think_answer([text]) <= tag_count([text])
