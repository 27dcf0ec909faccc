"""Plan and run, with real processes for what has to survive a crash."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1lite import worker
from r1lite.artifacts import Artifact, link_latest
from r1lite.pipeline import plan
from r1lite.recipe import load_recipe
from r1lite.records import read_rows
from r1lite.report import lineage

RECIPE = """
name: t
prompt: plain
stages:
  zero:
    kind: grpo
    model: {model}
    problems: data/chain.yaml#probe
    rewards: [{{use: "{folder}/reward.py:short"}}]
    prompts_per_step: 4
    generations: 4
    max_tokens: 8
    temperature: 1.0
    trainer: {{max_steps: 8, learning_rate: 1e-3, loss_type: dr_grpo, scale_rewards: none, beta: 0.0, save_steps: 2,
               gradient_checkpointing: false}}
  report:
    kind: eval
    models: [$zero]
    problems: ["data/chain.yaml#probe"]
    limit: 4
    samples: 2
    max_tokens: 8
  other:
    kind: eval
    models: ["{model}"]
    problems: ["data/chain.yaml#probe"]
    limit: 4
    samples: 2
    max_tokens: 8
"""
REWARD = "def short(completions, **_):\n    return [float(len(c) < 20) for c in completions]\n"


@pytest.fixture
def project(tmp_path, toy_model):
    """A recipe with its own reward file; `runs` lies beside it."""
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=toy_model, folder=tmp_path))
    return tmp_path


def states(project: Path, *overrides: str) -> dict[str, tuple[str, str]]:
    planned = plan(load_recipe(project / "recipe.yaml", list(overrides)), project / "runs")
    return {item.spec.stage: (item.state, item.why) for item in planned}


def finish(project: Path, *overrides: str) -> None:
    """Make every stage of the recipe look done, as a run would leave it."""
    for item in plan(load_recipe(project / "recipe.yaml", list(overrides)), project / "runs"):
        item.artifact.prepare(item.spec)
        item.artifact.finish({"seconds": 1})


def test_a_new_recipe_runs_from_its_first_stage_on(project):
    assert states(project) == {
        "zero": ("run", "it has not run yet"),
        "report": ("run", "it waits for zero"),
        "other": ("run", "it has not run yet"),
    }


def test_what_is_done_stays_done(project):
    finish(project)
    assert {state for state, _ in states(project).values()} == {"done"}


def test_a_comment_in_a_reward_reruns_the_stages_that_used_it_and_no_other(project):
    finish(project)
    (project / "reward.py").write_text(REWARD + "# a comment\n")
    assert states(project) == {
        "zero": ("run", f"{project / 'reward.py'} has changed"),
        "report": ("run", "zero has changed"),
        "other": ("done", "all of its inputs are as they were"),
    }
    (project / "reward.py").write_text(REWARD)
    assert states(project)["zero"][0] == "done", "the old inputs still have their artifact"


def test_a_changed_value_is_named_with_both_values(project):
    finish(project)
    assert states(project, "stages.zero.trainer.max_steps=9")["zero"] == ("run", "trainer.max_steps: 8 -> 9")
    assert states(project, "stages.other.samples=3")["zero"][0] == "done"


def test_the_reason_is_the_difference_from_the_artifact_that_is_most_alike(project):
    finish(project, "seed=1")
    finish(project)
    finish(project, "seed=2")
    (project / "reward.py").write_text(REWARD + "# a comment\n")
    assert states(project)["zero"] == ("run", f"{project / 'reward.py'} has changed")


def test_another_models_weights_change_the_key(project, toy_model, tmp_path_factory):
    model = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(toy_model, model)
    override = f"stages.zero.model={model}"
    finish(project, override)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert states(project, override)["zero"] == ("run", f"{model}/model.safetensors has changed")


def test_an_interrupted_stage_is_resumed(project):
    (item, *_) = plan(load_recipe(project / "recipe.yaml"), project / "runs")
    item.artifact.prepare(item.spec)
    assert states(project)["zero"] == ("resume", "it was interrupted")


LATER = """
name: later
after: {folder}/recipe.yaml
prompt: plain
stages:
  traces: {{kind: sample, model: $zero, problems: ["data/chain.yaml#probe"], limit: 8, samples: 4, max_tokens: 8,
           rewards: [{{use: "{folder}/reward.py:short"}}]}}
  chosen: {{kind: select, rollouts: $traces, keep: {{least: {{short: 1}}}}}}
  tuned: {{kind: sft, model: {model}, examples: [$chosen], rows_per_step: 2, max_tokens: 64,
          trainer: {{max_steps: 2, learning_rate: 1e-3}}}}
  report: {{kind: eval, models: [$tuned, $zero], problems: ["data/chain.yaml#probe"], limit: 4, samples: 2, max_tokens: 8}}
"""


@pytest.fixture
def later(project, toy_model):
    """A project whose runs the first recipe has finished, and a recipe that comes after it."""
    finish(project)
    (project / "later.yaml").write_text(LATER.format(folder=project, model=toy_model))
    return project


def plan_later(project: Path, *overrides: str) -> dict:
    return {
        item.spec.stage: item for item in plan(load_recipe(project / "later.yaml", list(overrides)), project / "runs")
    }


def finish_later(project: Path) -> None:
    for item in plan_later(project).values():
        item.artifact.prepare(item.spec)
        item.artifact.finish({"seconds": 1})


def test_a_recipe_after_another_takes_what_is_done_and_keeps_its_own_apart(later):
    (zero, *_) = plan(load_recipe(later / "recipe.yaml"), later / "runs")
    planned = plan_later(later)
    assert list(planned) == ["zero", "traces", "chosen", "tuned", "report"]
    assert (planned["zero"].state, planned["zero"].spec) == ("done", zero.spec)
    assert planned["zero"].artifact.path == zero.artifact.path == later / "runs" / "t" / f"zero-{zero.spec.key}"
    for name in ("traces", "chosen", "tuned", "report"):
        item = planned[name]
        assert item.artifact.path == later / "runs" / "later" / f"{name}-{item.spec.key}"
    assert [planned[name].why for name in ("traces", "chosen", "report")] == [
        "it has not run yet", "it waits for traces", "it waits for tuned"
    ]  # fmt: skip


def test_a_seed_for_the_later_recipe_is_one_for_the_earlier_stages_too(later):
    assert plan_later(later, "seed=1")["zero"].why == "seed: 0 -> 1"
    assert plan_later(later, "stages.zero.max_tokens=9")["zero"].why == "max_tokens: 8 -> 9"
    assert plan_later(later, "stages.tuned.max_tokens=48")["zero"].state == "done"


def test_parents_in_another_recipe_are_found_wherever_one_starts(later):
    finish_later(later)
    planned = plan_later(later)
    assert {item.state for item in planned.values()} == {"done"}
    zero, report = planned["zero"].artifact.path, planned["report"]
    link = link_latest(later / "runs", "later", "report", report.artifact)
    for artifact in (report.artifact, Artifact(link)):
        assert artifact.parent("zero").path == zero
        assert artifact.parent("tuned").parent("chosen").parent("traces").parent("zero").path == zero
    shown = lineage(Artifact(link))
    assert f"from $zero (zero-{planned['zero'].spec.key})" in shown
    assert f"      from $zero (zero-{planned['zero'].spec.key})" in shown, "traces' own, below chosen and tuned"
    shutil.move(later / "runs", later / "moved")
    moved = later / "moved" / "later" / report.artifact.path.name
    assert Artifact(moved).parent("zero").path == later / "moved" / "t" / zero.name


def test_another_filter_selects_anew_and_samples_nothing_anew(later):
    finish_later(later)
    states = {
        name: (item.state, item.why) for name, item in plan_later(later, "stages.chosen.keep.per_problem=1").items()
    }
    assert states == {
        "zero": ("done", "all of its inputs are as they were"),
        "traces": ("done", "all of its inputs are as they were"),
        "chosen": ("run", "keep.per_problem: None -> 1"),
        "tuned": ("run", "chosen has changed"),
        "report": ("run", "tuned has changed"),
    }


def test_another_reward_grades_anew_and_all_that_follows(later):
    finish_later(later)
    (later / "reward.py").write_text(REWARD + "# a comment\n")
    assert {name: item.state for name, item in plan_later(later).items()} == dict.fromkeys(
        ["zero", "traces", "chosen", "tuned", "report"], "run"
    )


def r1lite(project: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1lite.cli", *arguments, "--runs", str(project / "runs")]


def run(project: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        r1lite(project, "run", str(project / "recipe.yaml"), *options), capture_output=True, text=True, check=False
    )


def workers_of(project: Path, module: str = "") -> list[int]:
    """Processes whose command line names this project's runs, and a module."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if str(project / "runs") in command and module in command:
                found.append(int(entry.name))
    return found


def stage_directory(project: Path, stage: str) -> Path:
    (path,) = (project / "runs" / "t").glob(f"{stage}-*")
    return path


def kill_after_step(project: Path, step: int, victim: str) -> None:
    """Start the run and kill -9 its pipeline or its worker once `step` is reported."""
    process = subprocess.Popen(r1lite(project, "run", str(project / "recipe.yaml")), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith(f"step {step}/"):
            break
    if victim == "pipeline":
        process.kill()
    else:
        for pid in workers_of(project):
            if pid != process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while workers_of(project) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_of(project), "no process may outlive the pipeline"


@pytest.fixture(scope="module")
def uninterrupted(toy_model, tmp_path_factory):
    project = tmp_path_factory.mktemp("uninterrupted")
    (project / "reward.py").write_text(REWARD)
    (project / "recipe.yaml").write_text(RECIPE.format(model=toy_model, folder=project))
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout


@pytest.mark.slow
@pytest.mark.alone
def test_a_run_ends_with_a_table_and_a_second_run_does_nothing(uninterrupted):
    project, output = uninterrupted
    for expected in ("step 8/8", "ETA", "pass@1", "pass@2", "over samples", "seconds", "curves.png"):
        assert expected in output
    start = time.monotonic()
    again = run(project)
    assert again.returncode == 0
    assert again.stdout.count(": done (") == 3
    assert "step" not in again.stdout
    assert time.monotonic() - start < 30, "it takes about 2 s on an idle machine"
    zero = stage_directory(project, "zero")
    assert not (zero / "checkpoints").exists()
    assert (project / "runs" / "t" / "latest" / "zero").resolve() == zero


@pytest.mark.slow
@pytest.mark.alone
def test_show_walks_back_to_the_model_and_shows_rollouts(uninterrupted):
    project, _ = uninterrupted
    latest = project / "runs" / "t" / "latest"
    shown = subprocess.run(
        [sys.executable, "-m", "r1lite.cli", "show", str(latest / "report")], capture_output=True, text=True, check=True
    ).stdout
    assert "from $zero" in shown
    assert "model.safetensors" in shown
    shown = subprocess.run(
        [sys.executable, "-m", "r1lite.cli", "show", str(latest / "zero"), "--step", "0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "rollouts of step_000000" in shown
    assert "short 1.0" in shown or "short 0.0" in shown


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("victim", ["pipeline", "worker"])
def test_kill_9_then_the_same_command_goes_on_to_the_same_result(project, uninterrupted, victim):
    kill_after_step(project, 5, victim)
    zero = stage_directory(project, "zero")
    assert not (zero / "manifest.json").exists()
    torn = zero / "checkpoints" / "checkpoint-6"  # as if the crash had come while this one was written
    shutil.copytree(zero / "checkpoints" / "checkpoint-4", torn, dirs_exist_ok=True)
    (torn / "complete.json").unlink()
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from step 4 of 8" in done.stdout
    expected = stage_directory(uninterrupted[0], "zero")
    assert (zero / "model" / "model.safetensors").read_bytes() == (
        expected / "model" / "model.safetensors"
    ).read_bytes()
    for file in sorted((expected / "rollouts").glob("*.parquet")):
        assert list(read_rows(zero / "rollouts" / file.name)) == list(read_rows(file))
    assert {path.name for path in (zero / "logs").iterdir()} == {"attempt_1.log", "attempt_2.log"}


@pytest.mark.slow
@pytest.mark.alone
def test_a_second_writer_is_refused(project):
    (item, *_) = plan(load_recipe(project / "recipe.yaml"), project / "runs")
    item.artifact.path.mkdir(parents=True)
    with item.artifact.lock():
        done = run(project)
    assert done.returncode == 2
    assert "is being written by process" in done.stderr


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("otherwise", "message"),
    [
        ("raise KeyError('gold')", "KeyError"),
        ("return [1.0]", "short"),
        ("return ['high'] * len(completions)", "short"),
    ],
)
def test_a_reward_that_fails_on_what_is_sampled_ends_the_run_with_a_line(project, otherwise, message):
    """It is right for whatever the preflight shows it."""
    proven = (
        "    if '<think>so' in completions[0] or not completions[0].strip():\n        return [1.0] * len(completions)\n"
    )
    (project / "reward.py").write_text(f"def short(completions, **_):\n{proven}    {otherwise}\n")
    done = run(project)
    assert done.returncode == 1, done.stderr
    assert "error:" in done.stdout
    assert message in done.stdout
    assert "its log is" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_full_disk_is_named(project, monkeypatch, capfd):
    def write_until_full(config, stage):
        Path("/dev/full").write_text("weights")

    monkeypatch.setitem(worker.RUN, "grpo", write_until_full)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    (item, *_) = plan(load_recipe(project / "recipe.yaml"), project / "runs")
    item.artifact.prepare(item.spec)
    with contextlib.redirect_stdout(sys.stdout):
        assert worker.main(item.artifact.path) == 1
    assert "the disk is full while writing" in capfd.readouterr().out
    assert not item.artifact.done


@pytest.mark.slow
@pytest.mark.alone
def test_damage_after_the_fact_is_named_and_nothing_is_lost(project, uninterrupted):
    shutil.copytree(uninterrupted[0] / "runs", project / "runs", symlinks=True)
    other = stage_directory(project, "other")
    (other / "manifest.json").write_text("{")
    done = run(project)
    assert done.returncode == 2
    assert f"{other / 'manifest.json'} is not valid JSON" in done.stderr
    assert "delete" in done.stderr
    assert Artifact(stage_directory(project, "zero")).done
