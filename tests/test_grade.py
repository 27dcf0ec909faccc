"""`r1lite eval --rollouts`: completions that someone else made, from a file to a report."""

import json
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Hashable
from fractions import Fraction
from itertools import combinations
from math import gcd
from pathlib import Path
from typing import Any

import pytest
from test_cli import r1lite

from r1lite.records import read_rows, write_parquet
from r1lite.stages import grade
from r1lite.worker import Stage

DATA = Path(__file__).parents[2] / "shared" / "data"
SAMPLES = 8
WORDS = """
so the number of them is then what we want because each one has to be the same as before and this means that we can
write it as a sum of two parts first let us find how many there are in all wait that is not right since the total must
be larger now check this again by hand the other side gives exactly half of it hence both agree but maybe I made a
mistake somewhere therefore try a smaller case and see whether the pattern holds
"""


# An answer is known by what it means, which never passes through the code under test:
# ("number", Fraction), ("root", a, b) for a√b, ("poly", a, b) for (x+a)(x+b), ("point", a, b).
def surface_forms(answer: tuple) -> list[str]:
    """Ways to write an answer, in LaTeX and not, plainest first."""
    kind, *parts = answer
    if kind == "root":
        a, b = parts
        roots = [rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a} \cdot \sqrt{b}", f"{a}*sqrt({b})"]
        return [*roots, rf"\frac{{{2 * a}\sqrt{{{b}}}}}{{2}}", rf"${a}\sqrt{{{b}}}$", f"{a}√{b}"]
    if kind == "poly":
        a, b = parts
        return [
            f"x^2+{a + b}x+{a * b}",
            f"(x+{a})(x+{b})",
            f"(x + {b})(x + {a})",
            f"{a * b} + {a + b}x + x^2",
            rf"\left(x+{a}\right)\left(x+{b}\right)",
            f"x^{{2}} + {a + b} x + {a * b}",
        ]
    if kind == "point":
        a, b = parts
        return [f"({a},{b})", f"({a}, {b})", rf"\left({a}, {b}\right)", rf"$({a},\ {b})$"]
    (value,) = parts
    p, q = value.numerator, value.denominator
    if q == 1:
        comma = f"{p:,}"
        plain = [str(p), comma, comma.replace(",", "{,}"), f"{p}.0", f"{p}.00", f"${p}$", rf"\text{{{p}}}", f"00{p}"]
        return [*plain, rf"\${comma}", rf"{p}\text{{ units}}", f"{p} dollars", rf"{p}^\circ", f"x = {p}", f"{p}."]
    forms = [rf"\frac{{{p}}}{{{q}}}", f"{p}/{q}", rf"\dfrac{{{p}}}{{{q}}}", rf"\frac{{{3 * p}}}{{{3 * q}}}"]
    forms += [rf"$\frac{{{p}}}{{{q}}}$", rf"x = \frac{{{p}}}{{{q}}}", rf"\frac{{{p}}}{{{q}}}\text{{ hours}}"]
    if max(p, q) < 10:
        forms += [rf"\frac{p}{q}", rf"\tfrac{p}{q}"]
    if 1000 % q == 0:
        forms += [f"{float(value)}", f"{float(value)} miles"]
    return forms


def number(value: Fraction | int) -> tuple:
    return ("number", Fraction(value))


def data_rows(name: str) -> list[tuple[str, int]]:
    """Problem texts with whole-number answers of the shared data; invented ones where it is absent."""
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        return [(f"{name}: what is {n} times {n + 7}, less {n}?", n * (n + 7) - n) for n in range(11, 80)]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    golds = [row["answer"].rpartition("####")[2].strip().replace(",", "") for row in rows]
    return [(row["problem"], int(gold)) for row, gold in zip(rows, golds, strict=True) if gold.isdigit()]


def problem_set() -> list[tuple[str, tuple, list[tuple]]]:
    """100 problems, each with its right answer and wrong ones."""
    problems: list[tuple[str, tuple, list[tuple]]] = []
    for text, gold in data_rows("gsm8k_test")[:45] + data_rows("aime24")[:20]:
        wrong = [number(value) for value in (gold + 1, 3 * gold + 2, 1000 * gold + 1000, Fraction(2 * gold + 1, 2))]
        problems.append((text, number(gold), wrong))
    for n in range(12):
        a, b = Fraction(n + 1, 4), Fraction(1, 3 + n % 5)
        wrong = [number(value) for value in (a + b + 1, a * b, Fraction(a.numerator + 1, a.denominator + 1), b)]
        problems.append((f"What is {a} + {b}, variant {n}?", number(a + b), wrong))
    for n in range(2, 14):
        wrong = [("root", n, 3), ("root", 2 * n, 2), ("root", n + 1, 2), number(2 * n)]
        problems.append((f"How long is the diagonal of a square of side {n}?", ("root", n, 2), wrong))
    for n in range(1, 7):
        wrong = [("poly", n, n + 2), ("poly", n + 1, n + 3), number(n), ("poly", n, 9)]
        problems.append((f"Which monic quadratic has the roots -{n} and -{n + 1}?", ("poly", n, n + 1), wrong))
    for n in range(1, 6):
        wrong = [("point", n + 3, n), ("point", n, n), ("point", n, n + 4), number(n)]
        problems.append((f"Where do x = {n} and y = {n + 3} meet?", ("point", n, n + 3), wrong))
    assert len(problems) == 100 and len({text for text, *_ in problems}) == 100
    return problems


def reasoning(rng: random.Random, draft: str) -> str:
    """100 to 400 words, with sums and now and then an answer that is only thought."""
    words = rng.choices(WORDS.split(), k=rng.randint(100, 400))
    for at in range(7, len(words), rng.randint(9, 25)):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        words[at] = rng.choice(
            [f"${a} + {b} = {a + b}$.", f"{a} * {b} = {a * b},\n", rf"\[\frac{{{a}}}{{{b}}} < {a}\]"]
        )
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] = rf"perhaps \boxed{{{draft}}}?"
    return " ".join(words)


def completion_with(rng: random.Random, form: str, draft: str) -> str:
    thought = reasoning(rng, draft)
    box, tag = rf"\boxed{{{form}}}", f"<answer>{form}</answer>"
    end = rng.choice([box, f"The answer is {box}.", tag, f"<answer>\n{form}\n</answer>\n", f"<answer>{box}</answer>",
                      f"So it is {box}", rf"First \boxed{{{draft}}}, but no: {box}"])  # fmt: skip
    opened = rng.choice(["<think>\n", "<think>", ""])  # where the prompt has opened the thought, only its end is there
    return f"{opened}{thought}</think>\n\n{end}"


def completion_without(rng: random.Random, draft: str) -> str:
    thought = reasoning(rng, draft)
    return rng.choice(
        [
            f"<think>{thought}",
            rf"<think>{thought} so \boxed{{{draft}}} it is, I",
            f"<think>{thought}</think>",
            f"<think>{thought}</think>\n\nThe answer is {draft}.",
            rf"<think>{thought}</think>\n\n\boxed{{{draft}",
            f"<think>{thought}</think> <answer>{draft}",
        ]
    )


def generate(seed: int) -> tuple[list[dict[str, Any]], list[tuple[Hashable, list[Hashable]]]]:
    """Rows of a file, and for each the right answer with what its 8 completions answer, None where they do not."""
    rng = random.Random(seed)
    rows, record = [], []
    for text, gold, wrong in problem_set():
        ease, completions, given = rng.betavariate(0.7, 0.9), [], []
        for _ in range(SAMPLES):
            says = rng.choices([gold, *wrong, None], [ease, *((1 - ease) * w for w in (0.4, 0.2, 0.1, 0.1, 0.2))])[0]
            draft = surface_forms(rng.choice([gold, *wrong]))[0]
            given.append(says)
            completions.append(
                completion_without(rng, draft)
                if says is None
                else completion_with(rng, rng.choice(surface_forms(says)), draft)
            )
        rows.append({"problem": text, "answer": surface_forms(gold)[0], "completions": completions})
        record.append((gold, given))
    return rows, record


def by_enumeration(record: list[tuple[Hashable, list[Hashable]]], k: int) -> tuple[float, float]:
    """pass@k and maj@k: means over problems and all their subsets of k samples."""
    passed, elected = [], []
    for gold, given in record:
        for chosen in combinations(given, k):
            votes = Counter(answer for answer in chosen if answer is not None)
            winners = [answer for answer, count in votes.items() if count == max(votes.values())]
            passed.append(Fraction(gold in votes))
            elected.append(Fraction(gold in winners, max(len(winners), 1)))
    return float(sum(passed) / len(passed)), float(sum(elected) / len(elected))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_generator_writes_what_it_records():
    """Of the test itself: it repeats itself, has all that it should have, and no two answers of a problem are one."""
    rows, record = generate(0)
    assert (rows, record) == generate(0)
    texts = [text for row in rows for text in row["completions"]]
    assert min(len(text.split()) for text in texts) >= 100
    given = [answer for _, answers in record for answer in answers]
    assert 0.05 < given.count(None) / len(given) < 0.25
    right = sum(answers.count(gold) for gold, answers in record)
    assert 0.3 < right / len(given) < 0.6
    assert all(
        gcd(answer[1].numerator, answer[1].denominator) == 1 for answer in given if answer and answer[0] == "number"
    )


@pytest.mark.slow
def test_a_file_of_rollouts_is_graded_as_its_maker_knows(tmp_path):
    rows, record = generate(0)
    file = write_lines(tmp_path / "rollouts.jsonl", rows)
    start = time.monotonic()
    done = r1lite("eval", "--rollouts", str(file), "--json", "--runs", str(tmp_path / "runs"))
    print(f"graded {100 * SAMPLES} completions in {time.monotonic() - start:.1f} s")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["n_problems"], result["n_samples"]) == (100, SAMPLES)
    assert list(result["right_by_problem"].values()) == [given.count(gold) for gold, given in record]
    silent = sum(given.count(None) for _, given in record)
    assert result["no_answer"] == pytest.approx(silent / (100 * SAMPLES))
    for k in (1, 2, 4, 8):
        passed, elected = by_enumeration(record, k)
        assert result["pass@k"][str(k)]["mean"] == pytest.approx(passed, abs=1e-9)
        assert result["maj@k"][str(k)]["mean"] == pytest.approx(elected, abs=1e-9)
    assert result["pass@1"] == pytest.approx(by_enumeration(record, 1)[0], abs=1e-9)
    assert result["graders"]["accuracy/timeouts"] == result["graders"]["accuracy/crashes"] == 0

    again = r1lite("eval", "--rollouts", str(file), "--json", "--runs", str(tmp_path / "runs"))
    assert "report: done" in again.stderr
    assert json.loads(again.stdout)["results"] == [result]


def ends(answer: str) -> str:
    return rf"<think>so</think>\boxed{{{answer}}}"


# Two problems of three samples: p is right in 2 of 3, q in 1 of 3, with 2 and 4/2 the same wrong answer.
GIVEN = {"p": ("1/2", ["0.5", r"\frac12", "7"]), "q": ("1,000", ["2", "1000", "4/2"])}
LISTS = [{"problem": p, "answer": gold, "completions": [*map(ends, given)]} for p, (gold, given) in GIVEN.items()]
SINGLE = [{"problem": p, "answer": gold, "completion": ends(g)} for p, (gold, given) in GIVEN.items() for g in given]
CHATS = [
    {**row, "completion": [{"role": "user", "content": "?"}, {"role": "assistant", "content": row["completion"]}]}
    for row in SINGLE
]


def as_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["problem"], **{key: row[key] for key in row if key != "problem"}} for row in rows]


VARIANTS = {
    "lists": LISTS,
    "singles": SINGLE,
    "singles, the problems mixed": SINGLE[::2] + SINGLE[1::2],
    "chats": CHATS,
    "lists of chats": [
        {**row, "completions": [[{"role": "assistant", "content": c}] for c in row["completions"]]} for row in LISTS
    ],
    "both, one of them empty": [{**row, "completions": None} for row in SINGLE],
    "lists by id": as_ids(LISTS),
    "singles by id": as_ids(SINGLE),
    "chats by id": as_ids(CHATS),
    "ids that are numbers": [{**row, "id": "pq".index(row["id"])} for row in as_ids(SINGLE)],
    "more columns": [{**row, "level": n, "found": "9", "reward/accuracy": 0.0} for n, row in enumerate(SINGLE)],
    "columns named like what every reward gets": [
        {**row, "prompts": "?", "log_metric": n, "log_extra": "x", "trainer_state": 0.5} for n, row in enumerate(SINGLE)
    ],
    "lists with a number of tokens each": [
        {**row, "tokens": [3, 4, 5], "finish_reason": ["stop"] * 3} for row in LISTS
    ],
    "problems with ids of their own": [{**row, "id": n} for n, row in enumerate(SINGLE)],
    "columns that the caller of a reward uses": [
        {**row, "reward": 1.0, "completion_ids": [1], "function": "f"} for row in SINGLE
    ],
    "prefill that is not there": [{**row, "prefill": None} for row in SINGLE],
}
NUMBERS = [{**row, "answer": {"p": 0.5, "q": 1000.0}[row["problem"]]} for row in SINGLE]
NAMES = ("model", "problems", "fingerprint", "right_by_problem")  # what says which file and which ids


def graded_in(out: Path, *files: Path, **config: Any) -> list[dict[str, Any]]:
    """The results of grading files in this process, in the directory `out`."""
    grade.run(grade.Config(kind="grade", rollouts=list(map(str, files)), **config), Stage(out, None))  # type: ignore[arg-type]
    results: list[dict[str, Any]] = json.loads((out / "report.json").read_text())["results"]
    return results


@pytest.fixture
def graded(tmp_path):
    """graded(rows) -> their result, and the directory of the stage."""

    def run(rows: list[dict[str, Any]], name: str = "rollouts.jsonl") -> tuple[dict[str, Any], Path]:
        (write_parquet if name.endswith(".parquet") else write_lines)(tmp_path / name, rows)
        (result,) = graded_in(tmp_path / "stage", tmp_path / name)
        return result, tmp_path / "stage"

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("straight")
    (result,) = graded_in(path / "stage", write_lines(path / "rollouts.jsonl", LISTS))
    return result


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in NAMES}


@pytest.mark.parametrize("name", ["rollouts.jsonl", "rollouts.parquet"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_however_the_same_rollouts_are_written_the_report_is_the_same(graded, expected, variant, name):
    result, _ = graded(VARIANTS[variant], name)
    assert numbers(result) == numbers(expected)
    assert sorted(result["right_by_problem"].values()) == [1, 2]


def test_golds_may_be_numbers(graded, expected):
    result, _ = graded(NUMBERS)
    assert (result["pass@k"], result["maj@k"]) == (expected["pass@k"], expected["maj@k"])


def test_the_report_of_a_small_file(graded):
    result, out = graded(as_ids(LISTS))
    assert (result["n_problems"], result["n_samples"], result["right_by_problem"]) == (2, 3, {"p": 2, "q": 1})
    means = {kind: {k: each["mean"] for k, each in result[kind].items()} for kind in ("pass@k", "maj@k")}
    assert means["pass@k"] == pytest.approx({"1": 1 / 2, "2": (1 + 2 / 3) / 2, "3": 1})
    assert means["maj@k"] == pytest.approx(
        {"1": 1 / 2, "2": ((1 + 0.5 + 0.5) / 3 + (0.5 + 0.5 + 0) / 3) / 2, "3": 1 / 2}
    )
    assert (result["graders"]["accuracy"], result["graders"]["exact"], result["graders"]["disagree"]) == (0.5, 1 / 6, 2)
    assert (out / "curves.png").stat().st_size > 0
    rows = list(read_rows(out / "samples" / "0.parquet"))
    assert [(row["id"], row["sample"], row["found"], row["vote"]) for row in rows] == [
        ("p", 0, "0.5", 0),
        ("p", 1, r"\frac12", 0),
        ("p", 2, "7", 1),
        ("q", 0, "2", 1),
        ("q", 1, "1000", 0),
        ("q", 2, "4/2", 1),
    ]


def test_tokens_and_finish_reason_are_used_where_they_are(graded):
    told = [
        {**row, "tokens": 10 * (n + 1), "finish_reason": "length" if n == 2 else "stop"} for n, row in enumerate(SINGLE)
    ]
    result, _ = graded(told)
    assert (result["mean_tokens"], result["truncated"]) == (35, pytest.approx(1 / 6))
    # right are 0, 1 and 4
    assert (result["mean_tokens_right"], result["mean_tokens_wrong"]) == (pytest.approx(80 / 3), pytest.approx(130 / 3))


def test_tokens_and_finish_reason_are_null_where_they_are_not(graded):
    result, _ = graded(SINGLE)
    assert [result[key] for key in ("mean_tokens", "mean_tokens_right", "mean_tokens_wrong", "truncated")] == [None] * 4


def test_what_the_prompt_has_written_of_a_completion_counts(graded):
    unclosed, closed = r"so \boxed{7}", r"so</think>\boxed{7}"
    told = [("<think>", unclosed), ("<think>", closed), ("", unclosed), (None, closed)]
    result, out = graded([{"id": "a", "answer": "7", "completion": c, "prefill": before} for before, c in told])
    assert (result["pass@1"], result["no_answer"]) == (0.75, 0.25)
    assert (result["graders"]["exact"], result["graders"]["disagree"]) == (0.75, 0)
    rows = list(read_rows(out / "samples" / "0.parquet"))
    assert [row["found"] for row in rows] == [None, "7", "7", "7"]
    assert [row["prefill"] for row in rows] == ["<think>", "<think>", "", ""]


@pytest.mark.parametrize("key", ["completion", "completions"])
def test_half_a_character_in_a_completion_is_written_as_a_question_mark(graded, key):
    text = "<think>\ud83d</think>\\boxed{2} \ude00"
    result, out = graded([{"id": "a", "answer": "2", key: text if key == "completion" else [text]}])
    (row,) = read_rows(out / "samples" / "0.parquet")
    assert (result["pass@1"], row["found"], row["completion"]) == (1, "2", "<think>?</think>\\boxed{2} ?")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_what_only_unicode_calls_the_end_of_a_line_may_stand_in_a_text(tmp_path, separator):
    row = {"problem": f"1{separator}+1", "answer": "2", "completion": f"<think>{separator}</think>{ends('2')}"}
    file = tmp_path / "rollouts.jsonl"
    file.write_text(2 * (json.dumps(row, ensure_ascii=False) + "\n"), encoding="utf-8")
    assert separator in file.read_text(encoding="utf-8")
    (result,) = graded_in(tmp_path / "stage", file)
    assert (result["n_problems"], result["n_samples"], result["pass@1"]) == (1, 2, 1)


def test_an_empty_box_is_no_answer(graded):
    result, out = graded([{"id": "a", "answer": "2", "completions": [ends(""), ends("2")]}])
    assert (result["pass@1"], result["no_answer"], result["maj@k"]["2"]["mean"]) == (0.5, 0.5, 1)
    assert [row["vote"] for row in read_rows(out / "samples" / "0.parquet")] == [None, 0]


def test_several_files_are_several_results(tmp_path):
    files = [write_lines(tmp_path / "a.jsonl", as_ids(LISTS)), write_lines(tmp_path / "b.jsonl", as_ids(LISTS[:1]))]
    one, other = graded_in(tmp_path / "stage", *files)
    assert (one["model"], one["right_by_problem"]) == (str(files[0]), {"p": 2, "q": 1})
    assert (other["model"], other["right_by_problem"]) == (str(files[1]), {"p": 2})
    assert len(list(read_rows(tmp_path / "stage" / "samples" / "1.parquet"))) == 3


def test_what_graders_log_is_counted_for_each_file_alone(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, log_metric, **_):\n"
        "    log_metric('mine/n', float(len(completions)))\n"
        "    return [1.0] * len(completions)\n"
    )
    files = [write_lines(tmp_path / "a.jsonl", LISTS), write_lines(tmp_path / "b.jsonl", LISTS[:1])]
    results = graded_in(tmp_path / "stage", *files, reward={"use": f"{tmp_path}/mine.py:mine"})
    assert [result["graders"]["mine/n"] for result in results] == [6, 3]


def test_a_reward_gets_the_other_columns(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, answer, level, **_):\n"
        "    return [float(a == '2' and n > 1) for a, n in zip(answer, level)]\n"
    )
    rows = [{"id": str(n), "answer": 2, "completion": ends("2"), "level": n} for n in range(4)]
    reward = {"use": f"{tmp_path}/mine.py:mine", "preflight": False}  # it is not meant to pay for every gold
    (result,) = graded_in(tmp_path / "stage", write_lines(tmp_path / "a.jsonl", rows), reward=reward)
    assert result["right_by_problem"] == {"0": 0, "1": 0, "2": 1, "3": 1}


def test_multiple_choice(tmp_path):
    rows = [{"id": "a", "answer": "B", "completions": [ends("(B)"), ends(r"\text{B}"), ends("C"), ends("b) Paris")]}]
    file = write_lines(tmp_path / "a.jsonl", rows)
    (result,) = graded_in(tmp_path / "stage", file, reward={"use": "rewards.choice:choice"})
    assert (result["pass@1"], result["graders"]["choice"]) == (0.75, 0.75)
    assert [row["found"] for row in read_rows(tmp_path / "stage" / "samples" / "0.parquet")] == ["B", "B", "C", "B"]


def test_our_own_samples_can_be_graded_again(graded, tmp_path):
    told = [{**row, "tokens": n, "finish_reason": "stop"} for n, row in enumerate(as_ids(SINGLE))]
    first, out = graded(told)
    (second,) = graded_in(tmp_path / "again", out / "samples" / "0.parquet")
    assert numbers(second) == numbers(first)
    assert second["right_by_problem"] == first["right_by_problem"]


@pytest.mark.slow
def test_the_latest_samples_can_be_graded_again_by_the_command_line(tmp_path):
    """Grading moves the link by which the file is named, and the new directory has no samples/1.parquet."""
    files = [write_lines(tmp_path / name, as_ids(rows)) for name, rows in (("a.jsonl", LISTS[:1]), ("b.jsonl", LISTS))]
    both = [argument for file in files for argument in ("--rollouts", str(file))]
    first = r1lite("eval", *both, "--json", "--runs", str(tmp_path))
    assert first.returncode == 0, first.stderr
    latest = tmp_path / "eval" / "latest" / "report" / "samples" / "1.parquet"
    again = r1lite("eval", "--rollouts", str(latest), "--json", "--runs", str(tmp_path))
    assert again.returncode == 0, again.stderr
    (_, one), (other,) = (json.loads(done.stdout)["results"] for done in (first, again))
    assert numbers(other) == numbers(one)


@pytest.mark.slow
def test_the_samples_of_an_evaluation_can_be_graded_again(tmp_path):
    done = r1lite("eval", "data/tiny_base", "--problems", "data/chain.yaml#test", "--prompt", "plain", "--limit", "24",
                  "--samples", "3", "--max-tokens", "64", "--engine", "transformers", "--json", "--runs", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (first,) = json.loads(done.stdout)["results"]
    assert 0 < first["pass@1"] < 1
    (file,) = (tmp_path / "eval").glob("report-*/samples/*.parquet")
    again = r1lite("eval", "--rollouts", str(file), "--json", "--runs", str(tmp_path))
    assert again.returncode == 0, again.stderr
    (second,) = json.loads(again.stdout)["results"]
    assert "pass@1_by_budget" not in second  # it takes the model's tokenizer
    assert numbers(second) == {key: value for key, value in numbers(first).items() if key != "pass@1_by_budget"}
    assert second["right_by_problem"] == first["right_by_problem"]
    one, other = (json.loads(each.stdout)["protocol"]["problems"].values() for each in (done, again))
    assert [each["key"] for each in other] == [each["key"] for each in one]


RIGHT = {"problem": "1+1", "answer": "2", "completion": ends("2")}
BY_ID = {"id": "a", "answer": "2"}
NOT_TEXT = "a completion must be a text, or messages whose content is one; got "
NO_LIST = "`completions` must be a list of texts or messages; got "
NO_NUMBER = "`tokens` must be how many the completion has; got "
PARTS = [{"role": "assistant", "content": [{"type": "text", "text": ends("2")}]}]
# What follows the file's path.
WRONG_FILES = {
    "no rows": ([], " has no rows"),
    "no answer": ([RIGHT, {"problem": "1+2", "completion": "3"}], ", row 2: the answer is None"),
    "an empty answer": ([{**RIGHT, "answer": " "}], ", row 1: the answer is ' '"),
    "an answer that is a list": ([{**RIGHT, "answer": ["2"]}], ", row 1: the answer is ['2']"),
    "an answer that is true": ([{**RIGHT, "answer": True}], ", row 1: the answer is True"),
    "no problem and no id": ([RIGHT, {"answer": "2", "completion": "3"}], ", row 2 has neither a `problem` nor an `id`; it has: answer, completion"),
    "a completion that is a number": ([RIGHT, RIGHT, {**RIGHT, "completion": 3}], f", row 3: {NOT_TEXT}3"),
    "a completion among several that is a number": ([{**BY_ID, "completions": ["2", 3]}], f", row 1: {NOT_TEXT}3"),
    "a completion among several that is none": ([{**BY_ID, "completions": ["2", None]}], f", row 1: {NOT_TEXT}None"),
    "no completion": ([BY_ID], ", row 1 needs one of `completion` and `completions`; it has: id, answer"),
    "both kinds of completions": ([{**RIGHT, "completions": ["2"]}], ", row 1 needs one of `completion` and `completions`"),
    "a prefill that is a number": ([{**RIGHT, "prefill": 3}], ", row 1: `prefill` must be a text; got 3"),
    "a finish_reason that is a number": ([RIGHT, {**RIGHT, "finish_reason": 3}], ", row 2: `finish_reason` must be a text; got 3"),
    "fewer tokens than none": ([{**RIGHT, "tokens": -3}], f", row 1: {NO_NUMBER}-3"),
    "more tokens than there are": ([{**RIGHT, "tokens": 10**30}], f", row 1: {NO_NUMBER}{10**30}"),
    "half a token": ([{**RIGHT, "tokens": 2.5}], f", row 1: {NO_NUMBER}2.5"),
    "a blank problem": ([{**RIGHT, "problem": " "}], ", row 1: the problem is ' ', not a text"),
    "an answer that is no number": ([{**RIGHT, "answer": float("nan")}], ", row 1: the answer is nan"),
    "a chat without messages": ([{**BY_ID, "completion": []}], f", row 1: {NOT_TEXT}[]"),
    "a chat without content": ([{**BY_ID, "completion": [{"role": "assistant"}]}], f", row 1: {NOT_TEXT}[{{'role': 'assistant'}}]"),
    "a chat whose content is parts": ([RIGHT, {**RIGHT, "completion": PARTS}], f", row 2: {NOT_TEXT}{PARTS}"),
    "a chat among several whose content is parts": ([{**BY_ID, "completions": ["2", PARTS]}], f", row 1: {NOT_TEXT}{PARTS}"),
    "completions that are a text": ([{**BY_ID, "completions": "2"}], f", row 1: {NO_LIST}'2'"),
    "completions that are none": ([{**BY_ID, "completions": []}], f", row 1: {NO_LIST}[]"),
    "tokens in words": ([{**RIGHT, "tokens": 3}, {**RIGHT, "tokens": "many"}], f", row 2: {NO_NUMBER}'many'"),
    "tokens that are a list": ([{**RIGHT, "tokens": [3, 4]}], f", row 1: {NO_NUMBER}[3, 4]"),
    "tokens that are true": ([{**RIGHT, "tokens": True}], f", row 1: {NO_NUMBER}True"),
    "unequal numbers": ([RIGHT, RIGHT, {**RIGHT, "problem": "1+2"}], ": every problem needs as many completions as the others, but '1+2' has 1 and '1+1' has 2; drop or add some"),
    "unequal numbers by id": ([{**BY_ID, "completions": ["2"]}, {**BY_ID, "id": "b", "completions": ["2", "3"]}], ": every problem needs as many completions as the others, but 'a' has 1 and 'b' has 2; drop or add some"),
    "two answers for one problem": ([{**RIGHT, "id": "a"}, RIGHT, {**RIGHT, "id": "c", "answer": "3"}], ", row 3: the problem '1+1' has two answers, '2' and '3'"),
    "two answers for one id": ([{**BY_ID, "completion": "2"}, {**BY_ID, "answer": "3", "completion": "2"}], ", row 2: the problem 'a' has two answers, '2' and '3'"),
    "two answers for a long problem": ([{**RIGHT, "problem": "1+" * 99}, {**RIGHT, "problem": "1+" * 99, "answer": 3}], f", row 2: the problem '{'1+' * 30}' has two answers, '2' and '3'"),
}  # fmt: skip


def assert_fails(done: subprocess.CompletedProcess, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_what_is_wrong_in_a_file_is_named(tmp_path, wrong):
    rows, message = WRONG_FILES[wrong]
    file = write_lines(tmp_path / "rollouts.jsonl", rows)
    done = r1lite("eval", "--rollouts", str(file), "--json", "--runs", str(tmp_path / "runs"))
    assert_fails(done, 2, f"r1lite eval: stages.report.rollouts.0: {file}{message}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_what_is_wrong_in_a_file_is_a_value_error(tmp_path, wrong):
    rows, message = WRONG_FILES[wrong]
    file = write_lines(tmp_path / "rollouts.jsonl", rows)
    with pytest.raises(ValueError, match=re.escape(f"{file}{message}")):
        grade.read_rollouts(file)


def test_what_is_wrong_in_the_second_file_is_said_of_the_second(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [RIGHT])
    other = write_lines(tmp_path / "b.jsonl", [RIGHT, {**RIGHT, "answer": None}])
    done = r1lite("eval", "--rollouts", str(file), "--rollouts", str(other), "--runs", str(tmp_path / "runs"))
    assert_fails(done, 2, f"r1lite eval: stages.report.rollouts.1: {other}, row 2: the answer is None")
    assert "rollouts.0" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_gold_that_cannot_be_read_is_named(tmp_path):
    file = write_lines(tmp_path / "rollouts.jsonl", [RIGHT, {**RIGHT, "problem": "1/", "answer": r"\frac{"}])
    with pytest.raises(ValueError, match=r"rollouts.jsonl: 1 of 2 gold answers do not score 1 .* '\\\\frac\{'"):
        graded_in(tmp_path / "stage", file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollouts", "no.jsonl"], "there is no file no.jsonl"),
        (["--rollouts", "README.md"], "README.md is neither a .jsonl nor a .parquet file"),
        ([], "name models and --problems, or --rollouts"),
        (["--rollouts", "FILE", "data/tiny_base"], "name models and --problems, or --rollouts"),
        (["--rollouts", "FILE", "--problems", "data/chain.yaml#test"], "name models and --problems, or --rollouts"),
        (["--rollouts", "FILE", "--samples", "4"], "name models and --problems, or --rollouts alone"),
        (["--rollouts", "FILE", "--limit", "4"], "name models and --problems, or --rollouts alone"),
        (["--rollouts", "FILE", "--prompt", "chat", "--seed", "0"], "with it there is no use for: prompt, seed"),
        (["--rollouts", "FILE", "--rollouts", "no.parquet"], "there is no file no.parquet"),
        (["--rollouts", "FILE", "--reward", "rewards.math:nil"], "rewards.math has no function 'nil'"),
    ],
)
def test_a_wrong_request_runs_nothing(tmp_path, arguments, message):
    file = write_lines(tmp_path / "rollouts.jsonl", [RIGHT])
    given = [str(file) if each == "FILE" else each for each in arguments]
    done = r1lite("eval", *given, "--json", "--runs", str(tmp_path / "runs"))
    assert_fails(done, 2, message)
    assert not (tmp_path / "runs").exists()
