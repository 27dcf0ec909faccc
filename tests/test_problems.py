import json
from pathlib import Path

import pytest

from r1lite.problems import fingerprint, load_problems
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
