"""kill -9 in every kind of stage that is not GRPO's or an evaluation's: the same command goes on to the same result.

One recipe has them all. What an uninterrupted run makes is made here, in this process, from the same inputs.
"""

import io
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from test_pipeline import r1lite, stage_directory, workers_of

from r1lite.artifacts import Artifact
from r1lite.recipe import KINDS
from r1lite.records import read_rows
from r1lite.report import print_example
from r1lite.worker import RUN, Stage

RECIPE = """
name: t
prompt: plain
stages:
  traces: {{kind: sample, model: {model}, problems: ["data/chain.yaml#probe"], samples: 32, max_tokens: 8,
           rewards: [{{use: "{folder}/reward.py:even", preflight: false}}]}}
  chosen: {{kind: select, rollouts: $traces, pass_rate: [0.1, 0.9],
           keep: {{finished: false, least: {{even: 1}}, per_problem: 4}}}}
  tuned: {{kind: sft, model: {model}, examples: [$chosen], rows_per_step: 4, max_tokens: 64,
          trainer: {{max_steps: 12, learning_rate: 1e-2, save_steps: 2, gradient_checkpointing: false}}}}
  liked: {{kind: reward_model, model: {model}, pairs: data/courtesy.yaml#pairs, held_out: 50, pairs_per_step: 8,
          max_tokens: 40, trainer: {{max_steps: 12, learning_rate: 1e-3, save_steps: 2, gradient_checkpointing: false}}}}
  small: {{kind: distill, model: {model}, teacher: $tuned, problems: $chosen, prompts_per_step: 4, max_tokens: 8,
          trainer: {{beta: 1.0, max_steps: 12, learning_rate: 1e-2, save_steps: 2, gradient_checkpointing: false}}}}
"""
REWARD = """
import time

def even(completions, **_):
    time.sleep(0.3)  # so that a part takes longer than it takes to be killed
    return [float(len(text.strip()) % 2 == 0 < len(text.strip())) for text in completions]
"""
# By stage: the line upon which its worker is killed, and what the next attempt says of what is there.
KILLS = {
    "traces": (r"  \d+/2048 samples", r": \d+ samples to make, (512|1024|1536) are there"),
    "chosen": (r"2,048 rollouts of", r"2,048 rollouts of"),
    "tuned": (r"  step 5/12", r"resuming from step \d+ of 12"),
    "liked": (r"  step 5/12", r"resuming from step \d+ of 12"),
    "small": (r"  step 5/12", r"resuming from step \d+ of 12"),
}


def run_until(project: Path, stage: str, line_of: str) -> tuple[list[str], str]:
    """Run the recipe, and kill the stage's worker once it says such a line. Returns what was said, and stderr."""
    command = r1lite(project, "run", str(project / "recipe.yaml"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        reached = any(each.startswith(f"{stage}: ") and ": done" not in each for each in said)
        if reached and re.search(line_of, line):
            for pid in set(workers_of(project)) - {process.pid}:
                os.kill(pid, signal.SIGKILL)
            break
    said += process.stdout.read().splitlines()
    error = process.stderr.read()
    assert process.wait() == 1, error
    return said, error


@pytest.fixture(scope="module")
def killed(toy_model, tmp_path_factory):
    """A project whose run was killed once in every stage, and what each attempt has said."""
    project = tmp_path_factory.mktemp("killed")
    (project / "reward.py").write_text(REWARD)
    (project / "recipe.yaml").write_text(RECIPE.format(model=toy_model, folder=project))
    attempts = []
    for stage, (line_of, _) in KILLS.items():
        said, error = run_until(project, stage, line_of)
        assert f"stage {stage} was killed by signal 9" in error
        assert "The same command goes on from its last checkpoint" in error
        assert not Artifact(stage_directory(project, stage)).done
        attempts.append(said)
    command = r1lite(project, "run", str(project / "recipe.yaml"))
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    return project, [*attempts, last.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("stage", KILLS)
def test_killed_once_in_each_stage_the_run_ends_as_if_it_had_not_been(killed, stage):
    project, attempts = killed
    place = list(KILLS).index(stage)
    again = attempts[place + 1]
    (start,) = (number for number, line in enumerate(again) if line.startswith(f"{stage}: "))
    assert "because it was interrupted" in again[start]
    assert any(re.search(KILLS[stage][1], line) for line in again[start:])
    assert all(f"{earlier}: done (" in "\n".join(again) for earlier in list(KILLS)[:place]), "nothing else runs again"

    got = stage_directory(project, stage)
    assert {path.name for path in (got / "logs").iterdir()} == {"attempt_1.log", "attempt_2.log"}
    assert not (got / "checkpoints").exists() and not (got / "parts").exists()
    assert Artifact(got).manifest()["outputs"]
    spec = Artifact(got).spec
    whole = got.with_name(f"whole_{stage}")  # beside it, where its parents are found as well
    Artifact(whole).prepare(spec)
    RUN[spec.kind](KINDS[spec.kind].model_validate(spec.config), Stage(whole, spec))
    weights = "model/model.safetensors"
    assert (whole / weights).exists() == (stage in ("tuned", "liked", "small"))
    if (whole / weights).exists():
        assert (got / weights).read_bytes() == (whole / weights).read_bytes()
    tables = sorted(path.relative_to(whole) for path in whole.rglob("*.parquet"))
    assert bool(tables) == (stage in ("traces", "chosen", "small"))
    for table in tables:
        assert list(read_rows(got / table)) == list(read_rows(whole / table)), table


@pytest.mark.slow
@pytest.mark.alone
def test_an_example_of_that_run_walks_back_to_the_model(killed, toy_model):
    chosen = Artifact(stage_directory(killed[0], "chosen"))
    *_, example = read_rows(chosen.path / "examples.parquet")
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_example(console, [chosen], example["id"])
    shown = console.file.getvalue()
    assert f"from the rollout {example['rollout']} in {stage_directory(killed[0], 'traces').name}" in shown
    assert f"by the model {toy_model} at temperature 1.0" in shown
    assert "model.safetensors" in shown
