"""The examples of docs/rewards.md and docs/evaluation.md, run as they stand."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from r1lite.plugins import load_function
from r1lite.problems import resolve
from r1lite.rubric import load_reward
from r1lite.stages.config import Reward

DOCS = Path("docs/rewards.md").read_text()
EVALUATION = Path("docs/evaluation.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)\n```", DOCS, re.DOTALL)
ROW = {"answer": "2", "completion": "<think>1+1=2</think><answer>2</answer>"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What a reader has made: a folder with the recipes and data beside their reward."""
    for name in ("recipes", "data"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    (tmp_path / "my_reward.py").write_text(PYTHON[0])
    (tmp_path / "completions.jsonl").write_text(json.dumps(ROW))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", SHELL)
def test_a_command_of_the_docs(folder, command):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    if "brevity" in command:
        assert "./my_reward.py:brevity" in done.stdout
    else:
        assert "accuracy 1.00  think_answer 1.00" in done.stdout


def test_the_commands_about_evaluation(folder):
    """One after the other, since the last ones speak of what the first ones make."""
    (folder / "rollouts.jsonl").write_text(json.dumps({**ROW, "problem": "1+1"}))
    blocks = re.findall(r"```sh\n(.*?)\n```", EVALUATION, re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over samples") == 4
    assert "over problems, paired" in done.stdout
    assert "rollouts.jsonl (1 x 1)" in done.stdout


def test_the_cards_of_the_docs_are_as_they_say():
    rows = re.findall(r"^\| (`data/.*?) \| ([\d,]+).*? \| .* \| (\d+|say it) \|$", EVALUATION, re.MULTILINE)
    named = {reference: row for row in rows for reference in re.findall(r"`(data/\S+?)`", row[0])}
    assert {name.partition("#")[0] for name in named} == {
        str(path) for path in Path("data").glob("*.yaml") if path.name != "references.yaml"
    }
    for reference, (_, count, samples) in named.items():
        source, card = resolve(reference)
        assert card.samples == (None if samples == "say it" else int(samples))
        assert source.rows in (int(count.replace(",", "")), None)


def test_the_rewards_of_the_docs(folder):
    (folder / "sums.py").write_text(PYTHON[1])
    brevity = load_reward(Reward(use="./my_reward.py:brevity", args={"most": 4}))
    assert brevity(completions=["a", "b"], completion_ids=[[1], [1] * 9]) == [0.75, 0.0]
    shows = load_reward(Reward(use="./sums.py:shows_a_sum"))
    assert shows(completions=["1+1=2", "two"]) == [1.0, 0.0]


def test_every_reward_of_the_table_is_there_and_takes_what_it_says():
    rows = re.findall(r"^\| (`rewards\..*?) \| .*\| (.*?) \|$", DOCS, re.MULTILINE)
    assert {cell.split(":")[0].strip("`") for cell, _ in rows} == {
        f"rewards.{path.stem}" for path in Path(rewards.__file__).parent.glob("*.py")
    } - {"rewards.__init__", "rewards.answers", "rewards.equality"}
    for cell, asks in rows:
        module, name = re.findall(r"`(rewards\.\w+):(\w+)`", cell)[0]
        for function in [name, *re.findall(r"`:(\w+)`", cell)]:
            parameters = inspect.signature(load_function(f"{module}:{function}")).parameters
            assert set(re.findall(r"`(\w+):?`", asks)) <= set(parameters)
