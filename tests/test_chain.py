import re
from itertools import islice

from r1lite.plugins import load_module
from r1lite.stages.base import build_tokenizer
from rewards.math import accuracy

chain = load_module("data/chain.py")


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


def test_styles_and_slips_are_as_often_as_stated():
    rows = list(chain.documents(8000, 0))
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


def test_a_search_that_ends_with_ok_is_right_unless_it_slipped():
    closed = [row for row in chain.documents(4000, 0) if row["completion"].endswith("</answer>")]
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
