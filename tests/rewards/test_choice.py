import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.choice import choice


def answered(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "gold", "expected", "why"),
    [
        ("B", "B", 1, "the letter"),
        (" B\n", "B", 1, "white space"),
        ("b", "B", 1, "lower case"),
        ("B", " B ", 1, "white space in the gold answer"),
        ("A", "A", 1, "A alone is a letter"),
        ("a", "A", 1, "so is a"),
        ("I", "I", 1, "and I"),
        ("J", "J", 1, "the last letter"),
        ("(B)", "B", 1, "in parentheses"),
        ("( B )", "B", 0, "with spaces in them it is read as text"),
        ("(b)", "B", 1, "in parentheses"),
        ("B.", "B", 1, "a full stop"),
        ("B)", "B", 1, "one parenthesis"),
        ("b)", "B", 1, "one parenthesis"),
        ("B:", "B", 1, "a colon"),
        (r"\text{B}", "B", 1, "LaTeX"),
        (r"\textbf{(B)}", "B", 1, "LaTeX"),
        (r"\mathrm{B}", "B", 1, "LaTeX"),
        (r"\boxed{B}", "B", 1, "in a box"),
        (r"\boxed{\text{B}}", "B", 1, "in a box"),
        (r"\(B\)", "B", 1, "as mathematics"),
        ("$B$", "B", 1, "as mathematics"),
        ("**B**", "B", 1, "bold"),
        ("**B) Paris**", "B", 1, "bold with its text"),
        ('"B"', "B", 1, "quoted"),
        ("`B`", "B", 1, "as code"),
        ("B) Paris", "B", 1, "with its text"),
        ("B. Paris", "B", 1, "with its text"),
        ("(B) Paris", "B", 1, "with its text"),
        ("B: Paris", "B", 1, "with its text"),
        ("B - Paris", "B", 1, "with its text"),
        ("b) Paris", "B", 1, "with its text"),
        ("A) A dog", "A", 1, "an article in the text"),
        ("B) A dog", "B", 1, "an article in the text"),
        ("B) Vitamin C", "B", 1, "a letter in the text"),
        ("B) I think", "B", 1, "a pronoun in the text"),
        ("Option B", "B", 1, "option"),
        ("option (B)", "B", 1, "option"),
        ("Choice: B", "B", 1, "choice"),
        ("The answer is B", "B", 1, "a sentence"),
        ("The answer is A", "A", 1, "a sentence that ends in A"),
        ("The answer is (B).", "B", 1, "a sentence"),
        ("The answer is: B", "B", 1, "a sentence"),
        ("the correct answer is option B, Paris", "B", 1, "a sentence"),
        ("**Answer:** B", "B", 1, "a heading"),
        ("ANSWER: B", "B", 1, "a heading"),
        ("The answer is B because it fits", "B", 1, "with its reason"),
        ("B is correct", "B", 1, "a verdict"),
        ("A is correct", "A", 1, "a verdict"),
        ("B, not A", "B", 1, "what it is not"),
        ("The answer is\n\nB", "B", 1, "on a line of its own"),
        ("A", "B", 0, "another letter"),
        ("(C) Paris", "B", 0, "another letter"),
        ("A or B", "B", 0, "several"),
        ("A or B", "A", 0, "several"),
        ("A, B", "A", 0, "several"),
        ("A/B", "B", 0, "several"),
        ("A and B", "B", 0, "several"),
        ("Both A and B", "B", 0, "several"),
        ("Neither A nor B", "B", 0, "none"),
        ("A) or B)", "A", 0, "several"),
        ("A) London B) Paris", "A", 0, "all options copied"),
        ("A. London\nB. Paris", "B", 0, "all options copied"),
        ("Option A or option B", "A", 0, "several"),
        ("The answer is A or B", "B", 0, "several"),
        ("(A), (B)", "B", 0, "several"),
        ("A B C D", "A", 0, "several"),
        ("ABCD", "A", 0, "several"),
        ("not B", "B", 0, "a denial"),
        ("", "B", 0, "nothing"),
        ("()", "B", 0, "nothing"),
        ("Because", "B", 0, "a letter in a word"),
        ("Band", "B", 0, "a letter in a word"),
        ("For sure", "F", 0, "a letter in a word"),
        ("B2", "B", 0, "a name"),
        ("A dog", "A", 0, "an article"),
        ("The answer is A dog", "A", 0, "an article"),
        ("It is a dog", "A", 0, "an article"),
        ("I think so", "I", 0, "a pronoun"),
        ("I'd say so", "I", 0, "a pronoun"),
        ("Paris", "B", 0, "the text without the letter"),
        ("P(A) = 0.5", "A", 0, "mathematics"),
        ("2", "B", 0, "a number"),
        ("Ｂ", "B", 0, "full width"),
        ("D) Both A and B", "D", 0, "known to fall short: it names three letters"),
    ],
)
def test_choice(answer, gold, expected, why):
    assert choice([answered(answer)], [gold]) == [expected], why
    assert choice([[{"role": "assistant", "content": answered(answer)}]], answer=[gold]) == [expected], why


@pytest.mark.parametrize(
    ("completion", "prefill", "expected", "why"),
    [
        (r"<think>so</think>It is \boxed{B}.", "", 1, "in a box without tags"),
        ("so</think><answer>B</answer>", "<think>", 1, "the prompt opened the thinking"),
        ("<think>B</think>", "", 0, "only thought"),
        ("B", "", 0, "not marked as the answer"),
        (answered("A") + answered("B"), "", 1, "the last answer counts"),
    ],
)
def test_where_the_answer_stands(completion, prefill, expected, why):
    assert choice([completion], ["B"], prefill=[prefill]) == [expected], why


def test_one_score_a_completion_and_extra_columns_ignored():
    assert choice([answered("A"), answered("B")], ["A", "A"], prompts=["p", "p"], level=[1, 2]) == [1.0, 0.0]


@pytest.mark.parametrize("gold", ["K", "b", "", "AB", "(A)", "Paris", "1"])
def test_a_gold_answer_that_is_no_letter_is_named(gold):
    with pytest.raises(ValueError, match=r"is no letter from A to J") as error:
        choice([answered("A"), answered("B")], ["A", gold])
    assert repr(gold) in str(error.value)


@given(st.one_of(st.text(max_size=10_000), st.text("ABab()., \n:or", max_size=100)))
@example("<think>" * 2000)
@example("(" * 5000)
@example("A or " * 2000)
@example("answer is " * 1000)
@example(" " * 10_000 + "B")
@example("\\text" * 2000)
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text):
    assert sum(choice([answered(text)] * 10, list("ABCDEFGHIJ"))) in (0.0, 1.0)
