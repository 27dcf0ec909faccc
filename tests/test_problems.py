import json
from collections import Counter
from pathlib import Path

import pytest

from r1lite.problems import fingerprint, load_problems, look_at
from r1lite.records import write_parquet

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def card(tmp_path, text: str) -> str:
    (tmp_path / "card.yaml").write_text(f"description: d\nlicense: none\n{text}")
    return f"{tmp_path / 'card.yaml'}#train"


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_generator_card_gives_the_generators_rows():
    problems = load_problems("data/chain.yaml#test", limit=20)
    assert len(problems) == 20
    assert all(problem.answer in "234567" for problem in problems)
    assert len({problem.id for problem in problems}) == 20


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_plain_file_needs_no_card(tmp_path, suffix):
    rows, path = (
        [{"problem": "1+1", "answer": 2, "level": 1}, {"problem": "1+2", "answer": "3"}],
        tmp_path / f"a.{suffix}",
    )
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        write_parquet(path, [{**row, "answer": str(row["answer"])} for row in rows])
    first, second = load_problems(str(path))
    assert (first.problem, first.answer, first.columns["level"], second.answer) == ("1+1", "2", 1, "3")


def test_a_card_maps_columns_and_takes_the_answer_after_a_marker(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"question": " q ", "solution": "so 1 #### is #### 72\n"}])
    columns = "columns: {problem: question, answer: solution, answer_after: '####'}\n"
    (problem,) = load_problems(card(tmp_path, f"{columns}splits: {{train: {{file: {tmp_path / 'a.jsonl'}}}}}"))
    assert (problem.problem, problem.answer) == ("q", "72")


def test_repeated_problems_are_asked_once(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1+1", "answer": "2"}] * 3)
    assert len(load_problems(str(path))) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no problems"),
        ([{"question": "1+1", "answer": "2"}], "has no column 'problem'; it has: question, answer"),
        ([{"problem": "1+1"}], "has no column 'answer'"),
        ([{"problem": "", "answer": "2"}], "row 1: the problem is ''"),
        ([{"problem": "a", "answer": "1"}, {"problem": "b", "answer": None}], "row 2: the answer is None"),
        ([{"problem": "a", "answer": True}], "the answer is True"),
        ([[1]], "line 1 is a list"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match="a.jsonl") as error:
        load_problems(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("splits: {train: {}}", "splits.train: needs exactly one of generator, file, hub"),
        ("splits: {train: {file: a, generator: b}}", "needs exactly one of"),
        ("splits: {train: {fiel: a}}", "unknown key, did you mean 'file'?"),
        ("splits: {test: {file: a.jsonl}}", "has no split 'train'"),
        ("splits: {train: {file: nowhere.jsonl}}", "there is no file nowhere.jsonl"),
        ("splits: {train: {hub: {id: a/b, revision: main, split: train}}}", "splits.train.hub.revision"),
        ("splits: {train: {generator: 'data/chain.py:nothing'}}", "has no function 'nothing'; it has"),
        ("columns: {answer_after: '#'}\nsplits: {train: {generator: 'data/chain.py:problems', args: {split: train, "
         "count: 1, seed: 0}}}", "has nothing after '#'"),
        ("splits: [", "malformed YAML"),
    ],
)  # fmt: skip
def test_bad_cards_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match="card.yaml|nowhere|chain") as error:
        load_problems(card(tmp_path, text))
    assert message in str(error.value)


def test_a_hub_card_without_network_says_what_to_do(tmp_path):
    pinned = "{id: openai/gsm8k, revision: " + "0a" * 20 + ", split: train}"
    with pytest.raises(ValueError, match="cannot load the data set openai/gsm8k from the hub"):
        load_problems(card(tmp_path, f"splits: {{train: {{hub: {pinned}}}}}"))


def test_the_fingerprint_follows_card_generator_and_file(tmp_path):
    assert set(fingerprint("data/chain.yaml#train")) >= {"data/chain.yaml", "data/chain.py"}
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1+1", "answer": "2"}])
    before = fingerprint(str(path))
    path.write_text(path.read_text().replace("2", "3"))
    assert fingerprint(str(path)) != before


@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("amc23", 40), ("gsm8k_test", 1319)])
def test_real_sets_load(tmp_path, name, count):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    after = "columns: {answer_after: '####'}\n" if name == "gsm8k_test" else ""
    problems = load_problems(card(tmp_path, f"{after}splits: {{train: {{file: {path}}}}}"))
    assert len(problems) == count


# --- What a card says is checked


def file_card(tmp_path, rows: list, top: str = "", source: str = "") -> str:
    """A card whose split `train` is these rows; `top` is more of the card, `source` more of the split."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return card(tmp_path, f"{top}\nsplits: {{train: {{file: {path}{source}}}}}")


def asked(*answers) -> list[dict]:
    return [{"problem": f"q{number}", "answer": answer} for number, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "accepted"),
    [
        ("kind: integer", ["7", "-3", "027", "27.0", "1,234", "1,234,567.00", 5, 5.0, " 8 "]),
        ("kind: integer, least: 0, most: 999", ["0", "000", "999", "999.0", 999]),
        ("kind: integer, least: 5", ["5", "123456"]),
        ("kind: integer, most: 5", ["5", "-123456"]),
        ("kind: number", ["7", "-2.5", "0.001", "1,234.5", 2.5]),
        ("kind: choice", ["A", "J"]),
        ("kind: math", ["x^2+1", "\\frac{1}{2}", "(1, 2)", "7", "A"]),
    ],
)
def test_answers_of_the_right_kind_load(tmp_path, answers, accepted):
    problems = load_problems(file_card(tmp_path, asked(*accepted), f"answers: {{{answers}}}"))
    assert [problem.answer for problem in problems] == [str(answer).strip() for answer in accepted]


@pytest.mark.parametrize(
    ("answers", "refused", "why"),
    [
        ("kind: integer", ["2.5", "27.01", -0.5], "is no integer"),
        ("kind: integer", ["x", "1/2", "+5", "1e3", "5.", ".5", "1,23", "5 cm", "1 000", "٣", "\\frac{4}{2}"], "is no plain number"),
        ("kind: integer, least: 0, most: 999", ["-1", "1000", "1,000", 1000], "is not within 0 and 999"),
        ("kind: number", ["x", "1/2", "\\pi", "50%", "nan"], "is no plain number"),
        ("kind: choice", ["a", "K", "AB", "A)", "7", "Paris"], "is no letter from A to J"),
    ],
)  # fmt: skip
def test_an_answer_of_another_kind_is_named(tmp_path, answers, refused, why):
    good = "A" if "choice" in answers else "1"
    for answer in refused:
        reference = file_card(tmp_path, asked(good, answer), f"answers: {{{answers}}}")
        with pytest.raises(ValueError, match="card.yaml#train, row 2") as error:
            load_problems(reference)
        assert f"the answer {str(answer)!r} {why}" in str(error.value)


def test_what_kind_an_answer_may_be_is_checked(tmp_path):
    with pytest.raises(ValueError, match="answers.kind"):
        load_problems(file_card(tmp_path, asked("1"), "answers: {kind: poem}"))


@pytest.mark.parametrize("rows", [2, 4])
def test_another_number_of_rows_is_an_error_with_both_counts(tmp_path, rows):
    reference = file_card(tmp_path, asked(1, 2, 3), source=f", rows: {rows}")
    with pytest.raises(ValueError, match=f"train has 3 rows, but its card says {rows}"):
        load_problems(reference)


def test_rows_are_counted_before_repeated_ones_are_left_out_and_not_under_a_limit(tmp_path):
    rows = [*asked(1, 2), *asked(1, 2)]
    assert len(load_problems(file_card(tmp_path, rows, source=", rows: 4"))) == 2
    assert len(load_problems(file_card(tmp_path, rows, source=", rows: 9, limit: 3"))) == 2
    assert len(load_problems(file_card(tmp_path, rows, source=", rows: 9"), limit=1)) == 1
    with pytest.raises(ValueError, match="has 0 rows, but its card says 9"):
        load_problems(file_card(tmp_path, [], source=", rows: 9"))


def test_dropped_answers_are_left_out_but_counted(tmp_path):
    reference = file_card(
        tmp_path, asked("1", "see above", "3", "1"), "answers: {kind: integer, drop: [see above, '3']}", ", rows: 4"
    )
    assert [problem.problem for problem in load_problems(reference)] == ["q0", "q3"]
    assert [problem.problem for problem in load_problems(reference, limit=2)] == ["q0", "q3"]


def test_a_list_of_answers_is_one_answer(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", asked(["1", "x+1"], [2, 3], ["7"]))
    assert [problem.answer for problem in load_problems(str(path))] == ["1, x+1", "2, 3", "7"]
    with pytest.raises(ValueError, match="row 1: the answer is ''"):
        load_problems(str(write_jsonl(tmp_path / "b.jsonl", asked([]))))


# --- Multiple choice

OPTIONS = "columns: {{wrong: [w1, w2, w3], seed: {seed}}}\nanswers: {{kind: choice}}"


def choices(count: int) -> list[dict]:
    return [
        {"problem": f"which? {n}", "answer": f"right {n}", "w1": f"one {n}", "w2": f"two {n}", "w3": f"three {n}", "level": n}
        for n in range(count)
    ]  # fmt: skip


def options_of(problem) -> dict[str, str]:
    """Letter to option, as they are listed below the problem."""
    stem, gap, *lines = problem.problem.split("\n")
    assert stem.startswith("which?") and gap == ""
    return dict(line.split(") ", 1) for line in lines)


def test_every_option_is_listed_once_and_the_letter_is_the_right_ones(tmp_path):
    problems = load_problems(file_card(tmp_path, choices(20), OPTIONS.format(seed=0)))
    for number, problem in enumerate(problems):
        options = options_of(problem)
        assert list(options) == ["A", "B", "C", "D"]
        assert sorted(options.values()) == sorted(f"{word} {number}" for word in ("right", "one", "two", "three"))
        assert options[problem.answer] == f"right {number}"
        assert problem.columns == {"level": number}


def test_the_right_option_stands_anywhere(tmp_path):
    problems = load_problems(file_card(tmp_path, choices(200), OPTIONS.format(seed=0)))
    places = Counter(problem.answer for problem in problems)
    assert set(places) == set("ABCD")
    assert all(0.15 < count / 200 < 0.35 for count in places.values())


def test_the_order_follows_from_the_seed_and_the_texts_alone(tmp_path):
    orders = [
        [list(options_of(problem).values()) for problem in load_problems(file_card(tmp_path, rows, OPTIONS.format(seed=seed)))]
        for rows, seed in (
            (choices(20), 0),
            (choices(20), 1),
            # The same questions and options, but another option is right, and the wrong ones come in another order.
            ([{**row, "answer": row["w2"], "w1": row["w3"], "w2": row["w1"], "w3": row["answer"]} for row in choices(20)], 0),
        )
    ]  # fmt: skip
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_an_option_that_is_wrong_twice_is_listed_once(tmp_path):
    (problem,) = load_problems(file_card(tmp_path, [{**choices(1)[0], "w2": " one 0 "}], OPTIONS.format(seed=0)))
    options = options_of(problem)
    assert list(options) == ["A", "B", "C"]
    assert sorted(options.values()) == ["one 0", "right 0", "three 0"]
    assert options[problem.answer] == "right 0"


@pytest.mark.parametrize("wrong", ["right 0", " right 0", "", "  ", None])
def test_a_wrong_option_that_is_right_or_empty_is_refused(tmp_path, wrong):
    reference = file_card(tmp_path, [{**choices(1)[0], "w2": wrong}], OPTIONS.format(seed=0))
    with pytest.raises(ValueError, match="row 1: a wrong option \\(.*\\) is missing or the right one"):
        load_problems(reference)


# --- A file that stands in for the hub


@pytest.fixture
def hub_card(tmp_path) -> str:
    """Three problems on the hub under columns of its own, with integer answers up to 9."""
    pinned = "{id: nobody/nothing, revision: " + "0a" * 20 + ", split: train}"
    rules = "columns: {problem: question, answer: solution}\nanswers: {kind: integer, least: 0, most: 9}"
    return card(tmp_path, f"{rules}\nsplits: {{train: {{hub: {pinned}, rows: 3}}}}")


def test_a_file_stands_in_for_the_hub(tmp_path, hub_card):
    path = write_jsonl(tmp_path / "mine.jsonl", asked(1, "2.0", "3"))
    problems = load_problems(f"{hub_card}@{path}")
    assert [(problem.problem, problem.answer) for problem in problems] == [("q0", "1"), ("q1", "2.0"), ("q2", "3")]
    look_at(f"{hub_card}@{path}")
    hashes = fingerprint(f"{hub_card}@{path}")
    assert set(hashes) == {str(tmp_path / "card.yaml"), str(path)}
    write_jsonl(path, asked(1, 2, 4))
    assert fingerprint(f"{hub_card}@{path}") != hashes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (asked(1, 2), "mine.jsonl has 2 rows, but its card says 3"),
        (asked(1, 2, 3, 4), "mine.jsonl has 4 rows, but its card says 3"),
        (asked(1, 2, 10), "mine.jsonl, row 3: the answer '10' is not within 0 and 9"),
        (asked(1, 2, "x"), "mine.jsonl, row 3: the answer 'x' is no plain number"),
        ([{"question": "q", "solution": "1"}], "has no column 'problem'; it has: question, solution"),
    ],
)
def test_what_stands_in_is_held_to_the_card(tmp_path, hub_card, rows, message):
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ValueError, match="card.yaml#train@") as error:
        load_problems(f"{hub_card}@{path}")
    assert message in str(error.value)


def test_a_missing_stand_in_is_named(tmp_path, hub_card):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.jsonl"):
        load_problems(f"{hub_card}@{tmp_path / 'nowhere.jsonl'}")


@pytest.mark.parametrize("load", [load_problems, look_at])
def test_without_a_hub_the_message_says_how_a_file_stands_in(hub_card, load):
    with pytest.raises(ValueError, match="nobody/nothing") as error:
        load(hub_card)
    assert f"let a file with problem, answer stand in: {hub_card}@FILE.jsonl" in str(error.value)


def shared_rows(name: str) -> list[dict]:
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("amc23", 40)])
def test_real_sets_stand_in_for_their_cards(name, count):
    rows = shared_rows(name)
    problems = load_problems(f"data/{name}.yaml#test@{SHARED / name}.jsonl")
    assert len(problems) == count
    assert [problem.answer for problem in problems] == [row["answer"] for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "has 29 rows, but its card says 30"),
        (
            lambda rows: [*rows[:-1], {**rows[-1], "answer": "1000"}],
            "row 30: the answer '1000' is not within 0 and 999",
        ),
        (lambda rows: [*rows[:-1], {**rows[-1], "answer": "1/2"}], "row 30: the answer '1/2' is no plain number"),
    ],
)
def test_a_changed_aime_is_refused(tmp_path, change, message):
    path = write_jsonl(tmp_path / "aime24.jsonl", change(shared_rows("aime24")))
    with pytest.raises(ValueError, match="data/aime24.yaml#test@") as error:
        load_problems(f"data/aime24.yaml#test@{path}")
    assert message in str(error.value)
