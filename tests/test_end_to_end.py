"""The README's commands, run as it says, and what `make zero` promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1lite.observe import read_metrics

pytestmark = pytest.mark.slow
README = Path("README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [re.split(r"\s+#", line)[0] for block in BLOCKS for line in block.splitlines()]


def shell(command: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """`make zero`, with its runs in a folder of its own."""
    runs = tmp_path_factory.mktemp("runs")
    done = shell(f"make zero PYTHON={sys.executable} VENV= RUNS={runs}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs, done.stdout


def test_the_readmes_commands_are_those_that_are_tested_here():
    tested = ("make zero", "make test", "r1lite check", "r1lite plan", "r1lite run", "r1lite show", "r1lite eval")
    assert COMMANDS
    assert all(command.startswith(tested) for command in COMMANDS), COMMANDS


def test_make_zero_shows_an_r1_zero_curve(zero):
    runs, output = zero
    assert "Running recipes/tiny/zero.yaml, since" in output
    assert len(re.findall(r"step \d+/\d+  reward [\d.]+  pass [\d.]+  length [\d.]+  signal \d+%", output)) >= 20
    before, after = json.loads((runs / "zero/latest/report/report.json").read_text())["results"]
    assert before["n_problems"] == after["n_problems"] >= 500
    assert before["pass@1"] <= 0.30
    assert after["pass@1"] >= 0.85
    lengths = [
        row["completions/mean_length"] for row in read_metrics(runs / "zero/latest/zero/metrics.jsonl") if row["step"]
    ]
    assert max(lengths) >= 2 * before["mean_length"]
    assert sum(lengths[-5:]) / 5 >= 0.8 * max(lengths), "the length rises and stays"
    for expected in ("pass@1", "pass@8", "mean length", "seconds", "curves.png", "data/tiny_base", "$zero"):
        assert expected in output


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("r1lite")])
def test_a_command_of_the_readme(zero, command, tmp_path):
    runs, _ = zero
    name = command.split()[1]
    if name in ("plan", "eval", "run"):
        command += f" --runs {tmp_path if name == 'run' else runs}"
    done = shell(command.replace("runs/zero", f"{runs}/zero"))
    assert done.returncode == 0, done.stderr
    expected = {
        "check": "is right",
        "plan": "done",
        "run": "step 10/10",
        "show": "from data/chain.py",
        "eval": "pass@8",
    }
    assert expected[name] in done.stdout


def test_the_benchmark_prints_its_ratio():
    done = shell("python bench/rollouts.py --prompts 2 --generations 2 --max-tokens 16 --repeat 1")
    assert re.search(r"^ratio +\d+\.\d+$", done.stdout, re.MULTILINE), done.stderr


def test_make_check_and_help():
    assert "recipes/tiny/zero.yaml is right" in shell(f"make check PYTHON={sys.executable} VENV=").stdout
    assert "zero" in shell("make help").stdout
