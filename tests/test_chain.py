import re
from itertools import islice

import pytest

from r1lite.filters import goes_round
from r1lite.plugins import load_module
from r1lite.stages.base import build_tokenizer
from rewards.language import language_consistency
from rewards.math import accuracy

chain = load_module("data/chain.py")


@pytest.fixture(scope="module")
def corpus():
    return list(chain.documents(8000, 0))


def candidates_that_fit(problem: str) -> list[int]:
    """The answers by another road: Python's own arithmetic on the whole chain."""
    expression, target = problem.split("=")
    fitting = []
    for digit in chain.CANDIDATES:
        total = int(expression[0])
        for operator, operand in re.findall(r"([-+*])([2-9?])", expression[1:]):
            number = digit if operand == "?" else int(operand)
            total = total + number if operator == "+" else total - number if operator == "-" else total * number
        if total % 10 == int(target):  # taking the last digit once is the same as after every step
            fitting.append(digit)
    return fitting


def test_exactly_one_digit_fits_and_it_is_the_answer():
    for row in chain.problems("train", 2000, 0):
        assert candidates_that_fit(row["problem"]) == [int(row["answer"])]


def test_train_and_test_are_disjoint_whatever_the_seed():
    train = {row["problem"] for seed in range(3) for row in chain.problems("train", 3000, seed)}
    test = {row["problem"] for seed in range(3) for row in chain.problems("test", 500, seed)}
    assert not train & test
    assert {chain.split_of(problem) for problem in train} == {"train"}


def test_no_document_is_about_a_test_problem():
    assert {chain.split_of(row["problem"]) for row in chain.documents(3000, 0)} == {"train"}


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    first, again, other = (list(chain.documents(50, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_styles_and_slips_are_as_often_as_stated(corpus):
    rows = corpus
    for style, share in chain.STYLES.items():
        mine = [row for row in rows if row["style"] == style]
        assert abs(len(mine) / len(rows) - share) < 0.02
        assert all((chain.tries(row["completion"]) == 0) == (style == "direct") for row in mine)
    lines = re.findall(r" try (\S+)", " ".join(row["completion"] for row in rows))
    wrong = [line for line in lines if not line_holds(line)]
    assert 0 < len(wrong) / len(lines) < 4 * chain.SLIP


def line_holds(line: str) -> bool:
    total, *steps = re.findall(r"^\d|[-+*]\d=\d", line)
    value = int(total)
    for step in steps:
        value = eval_step(value, step)
        if value != int(step[-1]):
            return False
    return True


def eval_step(value: int, step: str) -> int:
    digit = int(step[1])
    return {"+": value + digit, "-": value - digit, "*": value * digit}[step[0]] % 10


def test_a_search_that_ends_with_ok_is_right_unless_it_slipped(corpus):
    closed = [row for row in corpus[:4000] if row["completion"].endswith("</answer>")]
    sure = [row for row in closed if " ok" in row["completion"] and "<think>" in row["completion"]]
    golds = [str(candidates_that_fit(row["problem"])[0]) for row in sure]
    right = accuracy([row["completion"] for row in sure], golds)
    assert len(sure) > 100
    assert sum(right) / len(right) > 0.97


def test_the_tokenizer_reads_and_writes_every_document():
    tokenizer = build_tokenizer(chain.TOKENS)
    for row in islice(chain.documents(500, 0), 500):
        text = f"User: {row['problem']}\nAssistant:{row['completion']}"
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_what_thinks_does_so_in_one_language_or_in_any_for_every_marker(corpus):
    """Each document's languages, told by its markers; a mixture that happens to show one language counts for that."""
    used = []
    for row in corpus:
        shown = {name for name, words in chain.MARKERS.items() for word in words.values() if word in row["completion"]}
        assert bool(shown) == (row["style"] != "direct")
        markers = sum(row["completion"].count(word) for words in chain.MARKERS.values() for word in words.values())
        if markers > 8:  # so that nearly every mixture shows both
            used.append(tuple(sorted(shown)))
    for languages, share in chain.LANGUAGES.items():
        assert used.count(languages) / len(used) == pytest.approx(share, abs=0.06), languages


def test_the_two_languages_are_what_the_reward_reads(corpus):
    rows = [row["completion"] for row in corpus[:2000] if row["style"] == "patient"]
    scores = {"en": set(), "zh": set(), "both": set()}
    for text, score in zip(rows, language_consistency(rows), strict=True):
        shown = [name for name, words in chain.MARKERS.items() if any(word in text for word in words.values())]
        scores[shown[0] if len(shown) == 1 else "both"].add(score)
    assert (scores["en"], scores["zh"]) == ({1.0}, {0.0})
    assert all(0 < score < 1 for score in scores["both"])


def test_stutters_are_there_and_are_what_the_filter_finds(corpus):
    rows = [row["completion"] for row in corpus[:4000]]
    waits = [marker["wait"] for marker in chain.MARKERS.values()]
    alike = "|".join(re.escape(wait) for wait in waits)
    runs = [[len(re.findall(alike, run)) for run in re.findall(rf"(?:{alike})+", text)] for text in rows]
    lengths = [length for mine in runs for length in mine]
    assert set(lengths) == {1, *chain.STUTTERS}
    assert sum(length > 1 for length in lengths) / len(lengths) == pytest.approx(chain.STUTTER, abs=0.03)
    stutters = [(text, max(mine, default=0) > 1) for text, mine in zip(rows, runs, strict=True)]
    assert 30 < sum(stutter for _, stutter in stutters) < len(rows) / 10
    assert {goes_round(text, 4) for text, stutter in stutters if stutter} == {True}
    assert {goes_round(text, 4) for text, stutter in stutters if not stutter} == {False}
