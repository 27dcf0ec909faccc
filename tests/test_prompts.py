import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.models import load_tokenizer
from r1lite.prompts import Parsed, encode, parse, render, text_of

GOOD = "<think>a</think><answer>7</answer>"


@pytest.mark.parametrize(
    ("completion", "expected", "why"),
    [
        (GOOD, Parsed("a", "7"), "the shape itself"),
        (" <think> a </think>\n\n<answer> 7 </answer>\n", Parsed("a", "7"), "white space around and within"),
        ("<think></think><answer>7</answer>", Parsed("", "7"), "thinking may be empty"),
        ("<think>a\nb</think><answer>x\ny</answer>", Parsed("a\nb", "x\ny"), "several lines"),
        ("<think>a < b</think><answer>b > a</answer>", Parsed("a < b", "b > a"), "angle brackets that are no tags"),
        ("", None, "nothing"),
        ("7", None, "no tags"),
        (GOOD + " 8", None, "text after the answer"),
        (GOOD + GOOD, None, "twice"),
        ("I think " + GOOD, None, "text before"),
        ("<think>a</think> so <answer>7</answer>", None, "text between"),
        ("<think>a<answer>7</answer></think>", None, "answer inside the thinking"),
        ("<think>a</think><answer>7", None, "answer not closed"),
        ("<think>a<answer>7</answer>", None, "thinking not closed"),
        ("<think><think>a</think></think><answer>7</answer>", None, "nested"),
        ("<think>a</think><answer>7</answer><answer>8</answer>", None, "two answers"),
        ("<think>a</think><think>b</think><answer>7</answer>", None, "thought twice"),
        ("<answer>7</answer><think>a</think>", None, "the wrong order"),
        ("<THINK>a</THINK><ANSWER>7</ANSWER>", None, "upper case"),
        ("<think>a</think><answer><answer>7</answer></answer>", None, "answer in the answer"),
    ],
)
def test_parse(completion, expected, why):
    assert parse(completion) == expected, why


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "7", " ", "\n"]), max_size=12))
def test_parse_accepts_nothing_but_one_thought_and_one_answer(pieces):
    completion = "".join(pieces)
    parsed = parse(completion)
    if parsed is not None:
        outside = completion.replace("<think>", "|").replace("</think>", "|").replace("<answer>", "|")
        before, _, between, _, after = outside.replace("</answer>", "|").split("|")
        assert not (before + between + after).strip()


@given(st.text(max_size=300))
def test_parse_never_raises(completion):
    parse(completion)


def test_parse_is_linear_in_hostile_text():
    assert parse("<think>" + "</think>" * 200_000) is None
    assert parse("<think>" + " " * 1_000_000 + "</think><answer>7</answer>") == Parsed("", "7")


def test_render_leaves_braces_of_the_problem_alone():
    assert render("plain", "{problem} {x}") == "User: {problem} {x}\nAssistant:"
    assert render("chat", "{x}") == [{"role": "user", "content": "{x}"}]


def test_r1_zero_template_ends_where_the_model_begins():
    assert render("r1_zero", "1+1?").endswith("User: 1+1?\nAssistant:")


def test_encode_gives_the_ids_that_the_template_spells(toy_model):
    tokenizer = load_tokenizer(toy_model)
    prompt = render("plain", "8*?-9*3=5")
    assert tokenizer.decode(encode(tokenizer, prompt)) == prompt
    tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}{% endfor %}{{ '\n' }}Assistant:"
    assert encode(tokenizer, render("chat", "8*?-9*3=5")) == encode(tokenizer, prompt)


def test_text_of_takes_strings_and_messages():
    assert text_of("a") == text_of([{"role": "assistant", "content": "a"}]) == "a"
