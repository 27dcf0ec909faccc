import json

import pytest
from test_cli import r1lite

from r1lite.records import write_parquet

ROWS = [
    {"problem": "1+1", "answer": "2", "completion": "<think>a</think><answer>2</answer>"},
    {"problem": "1/2", "answer": "\\frac12", "completion": "<think>a</think><answer>0.5</answer>"},
    {"problem": "1+2", "answer": "3", "completion": [{"role": "assistant", "content": "\\boxed{4}"}]},
]


@pytest.fixture
def file(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        if name.endswith(".parquet"):
            write_parquet(path, rows)
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


def test_json_is_a_line_a_row(file):
    done = r1lite(
        "score", file(ROWS), "--reward", "rewards.math:accuracy", "--reward", "rewards.format:think_answer", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"row": 0, "scores": {"accuracy": 1.0, "think_answer": 1.0}},
        {"row": 1, "scores": {"accuracy": 1.0, "think_answer": 1.0}},
        {"row": 2, "scores": {"accuracy": 0.0, "think_answer": 0.0}},
    ]
    assert "accuracy and exact disagree on 1 of 3 rows" in done.stderr


def test_the_graders_disagreements_and_a_summary_are_printed(file):
    done = r1lite("score", file(ROWS), "--reward", "rewards.math:accuracy")
    assert "row 1  accuracy 1.00" in done.stdout
    assert "row 1: answer '0.5', gold '\\\\frac12'" in done.stdout
    assert "0.67" in done.stdout


def test_parquet_args_and_a_reward_from_a_file(file, tmp_path):
    (tmp_path / "mine.py").write_text("def most(completions, limit, **_):\n    return [float(limit), None]\n")
    rows = [{"completion": "a"}, {"completion": "b"}]
    reward = f'{{use: "{tmp_path}/mine.py:most", args: {{limit: 3}}}}'
    done = r1lite("score", file(rows, "rows.parquet"), "--reward", reward, "--json")
    assert [json.loads(line)["scores"] for line in done.stdout.splitlines()] == [{"most": 3.0}, {"most": None}]
    assert "disagree" not in done.stderr


@pytest.mark.parametrize(
    ("rows", "reward", "message"),
    [
        (ROWS, "rewards.math:nil", "rewards.math has no function 'nil'"),
        (ROWS, "rewards.countdown:countdown", "row 0 has no 'numbers', which rewards.countdown:countdown asks for"),
        (ROWS, "{use: 3}", "--reward {use: 3}: use"),
        ([{"text": "a"}], "rewards.format:think_answer", "row 0: `completion` must be a text or messages; got None"),
        ([{"completion": []}], "rewards.format:think_answer", "row 0: `completion` must be a text or messages"),
        ([], "rewards.format:think_answer", "has no rows"),
    ],
)
def test_what_is_wrong_is_named(file, rows, reward, message):
    done = r1lite("score", file(rows), "--reward", reward)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file(tmp_path):
    done = r1lite("score", str(tmp_path / "no.jsonl"), "--reward", "rewards.math:accuracy")
    assert (done.returncode, "there is no file" in done.stderr) == (2, True)
