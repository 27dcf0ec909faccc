"""docs/rewards.md's examples, run as they stand."""

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
from r1lite.rubric import load_reward
from r1lite.stages.config import Reward

DOCS = Path("docs/rewards.md").read_text()
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
