"""The README's commands, run as it says, and what `make zero` promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r1lite.observe import read_metrics
from r1lite.records import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.alone]
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
    tested = (
        "make zero",
        "make r1",
        "make distill",
        "make test",
        "r1lite check",
        "r1lite plan",
        "r1lite run",
        "r1lite show",
        "r1lite eval",
        "r1lite compare",
        "r1lite score",
    )
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
    assert max(lengths) >= 2 * before["mean_tokens"]
    assert sum(lengths[-5:]) / 5 >= 0.8 * max(lengths), "the length rises and stays"
    for expected in ("pass@1", "pass@8", "tokens", "seconds", "curves.png", "data/tiny_base", "$zero"):
        assert expected in output


# The chain as it is, with less of everything: its figures are in docs/r1.md, and take ten minutes.
LESS = {
    "r1": "stages.traces.limit=400 stages.dev2.trainer.max_steps=2 stages.dev2.trainer.save_steps=2 "
    "stages.better.limit=500 stages.r1.trainer.max_steps=2 stages.r1.trainer.save_steps=2 stages.report.limit=60",
    "distill": "stages.teach.limit=300 stages.reinforced.trainer.max_steps=1 stages.reinforced.trainer.save_steps=1 "
    "stages.on_policy.trainer.max_steps=1 stages.report.limit=30",
}


def test_make_r1_and_distill_go_on_from_zero(zero):
    runs, _ = zero
    done = {}
    for target, less in (("r1", LESS["r1"]), ("distill", " ".join(LESS.values()))):
        less = less.replace("stages.report.limit=60 ", "") if target == "distill" else less
        done[target] = shell(f"make {target} PYTHON={sys.executable} VENV= RUNS={runs} SET='{less}'")
        assert done[target].returncode == 0, done[target].stdout[-3000:] + done[target].stderr[-3000:]
    assert "zero: done" in done["r1"].stdout and "r1: done" in done["distill"].stdout
    report = json.loads((runs / "r1/latest/report/report.json").read_text())
    consistent = {
        result["model"]: result["measures"]["language_consistency"]
        for result in report["results"]
        if result["problems"] == "data/chain.yaml#test"
    }
    assert consistent["$zero"] <= 0.9
    assert consistent["$r1"] >= 0.97
    for expected in ("language consistency", "think answer", "courtesy pass@1", "helpfulness", "k sampled"):
        assert expected in done["r1"].stdout
    table = done["distill"].stdout.rpartition("k learned")[2]
    assert [line.split()[0] for line in table.splitlines()[2:7]] == [
        "data/tiny_student", "distilled", "reinforced", "on_policy", "r1"
    ]  # fmt: skip
    lessons = runs / "distill/latest/lessons"
    example = next(read_rows(lessons / "examples.parquet"))
    shown = shell(f"r1lite show {lessons} --example {example['id']}").stdout
    chain = ["by the model $r1", "from $dev3", "from data/tiny_base/model.safetensors"]
    assert [line in shown for line in (example["problem"], example["rollout"], *chain)] == [True] * 5


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("r1lite")])
def test_a_command_of_the_readme(zero, command, tmp_path):
    runs, _ = zero
    name = command.split()[1]
    if name in ("plan", "eval", "run"):
        command += f" --runs {tmp_path if name == 'run' else runs}"
    rows = tmp_path / "completions.jsonl"
    rows.write_text(json.dumps({"answer": "2", "completion": "<think>so</think><answer>2</answer>"}))
    done = shell(command.replace("runs/zero", f"{runs}/zero").replace("completions.jsonl", str(rows)))
    assert done.returncode == 0, done.stderr
    expected = {
        "check": "is right",
        "plan": "done",
        "run": "step 10/10",
        "show": "from data/chain.py",
        "eval": "pass@8",
        "compare": "over problems, paired",
        "score": "accuracy 1.00",
    }
    assert expected[name] in done.stdout


def test_a_reward_of_ones_own_in_a_copy_of_the_recipe(tmp_path):
    (tmp_path / "my_reward.py").write_text(
        "def brevity(completion_ids, **_):\n    return [1 - len(ids) / 160 for ids in completion_ids]\n"
    )
    recipe = yaml.safe_load(Path("recipes/tiny/zero.yaml").read_text())
    recipe["stages"]["zero"]["rewards"][1] = {"use": f"{tmp_path}/my_reward.py:brevity", "weight": 0.1}
    recipe["stages"]["zero"]["trainer"]["max_steps"] = 2
    recipe["stages"]["report"]["limit"] = 8
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = shell(f"make zero RECIPE={tmp_path}/zero.yaml PYTHON={sys.executable} VENV= RUNS={tmp_path}/runs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    row = read_metrics(tmp_path / "runs/zero/latest/zero/metrics.jsonl")[-1]
    assert 0 < row["rewards/brevity/mean"] < 1
    assert row["accuracy/timeouts"] == 0


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("bench/rollouts.py --prompts 2 --generations 2 --max-tokens 16 --repeat 1", r"^ratio +\d+\.\d+$"),
        ("bench/grading.py --rows 40", r"^ratio +\d+\.\d+ \(whole numbers\)"),
        ("bench/sandbox.py --programs 4 --repeat 1", r"^ratio +\d+\.\d+ for each core$"),
        ("bench/grpo_step.py small --steps 2", r"^tokens a second, r1lite to stock TRL: \d+\.\d+$"),
    ],
)
def test_a_benchmark_prints_its_ratio(command, line):
    done = shell(f"python {command}")
    assert re.search(line, done.stdout, re.MULTILINE), done.stderr


def test_make_check_and_help():
    assert "recipes/tiny/zero.yaml is right" in shell(f"make check PYTHON={sys.executable} VENV=").stdout
    assert "zero" in shell("make help").stdout
