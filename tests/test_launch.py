"""Stages in several processes: the same results, nothing lost or done twice, and a clear end of those that cannot go on.

All processes here are real ones, on the CPU, which `accelerate launch` starts.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_pipeline import REWARD, r1lite, stage_directory, workers_of

from r1lite import pipeline
from r1lite.artifacts import STOP, Artifact, Stopped
from r1lite.launch import (
    ALONE,
    RANK_LOGS,
    SAMPLES,
    TRAINS,
    Launch,
    Machine,
    command,
    environment,
    gpu_names,
    last_words,
)
from r1lite.observe import read_metrics
from r1lite.pipeline import StageFailed, plan
from r1lite.ranks import share
from r1lite.recipe import KINDS, RecipeError, load_recipe
from r1lite.records import read_rows
from r1lite.watchdog import SYNC_TIMEOUT

RECIPE = """
name: t
prompt: plain
launch: {{gpus: 2}}
stages:
  zero: {{kind: grpo, model: {model}, problems: data/chain.yaml#train, rewards: [{{use: "{folder}/reward.py:short"}}],
         prompts_per_step: 4, generations: 4, max_tokens: 8, temperature: 1.0,
         probe: {{problems: "data/chain.yaml#probe", limit: 1, samples: 2, every_steps: 2}},  # fewer than processes
         trainer: {{max_steps: 24, learning_rate: 1e-3, loss_type: dr_grpo, scale_rewards: none, beta: 0.0,
                    save_steps: 8, gradient_checkpointing: false}}}}
  traces: {{kind: sample, model: $zero, problems: ["data/chain.yaml#probe"], limit: 33, samples: 32, max_tokens: 8,
           rewards: [{{use: "{folder}/reward.py:said", preflight: false}}]}}
  chosen: {{kind: select, rollouts: $traces, keep: {{finished: false, least: {{said: 1}}, per_problem: 4}}}}
  tuned: {{kind: sft, model: {model}, examples: [$chosen], rows_per_step: 4, max_tokens: 64,
          trainer: {{max_steps: 4, learning_rate: 1e-2, gradient_checkpointing: false}}}}
  liked: {{kind: reward_model, model: {model}, pairs: data/courtesy.yaml#pairs, held_out: 50, pairs_per_step: 8,
          max_tokens: 40, trainer: {{max_steps: 4, learning_rate: 1e-3, gradient_checkpointing: false}}}}
  small: {{kind: distill, model: {model}, teacher: $tuned, problems: $traces, prompts_per_step: 4, max_tokens: 8,
          trainer: {{beta: 1.0, max_steps: 4, learning_rate: 1e-2, gradient_checkpointing: false}}}}
  report: {{kind: eval, models: [$zero, $small], problems: ["data/chain.yaml#probe"], limit: 7, samples: 2,
           max_tokens: 8}}
"""
SAID = "def said(completions, **_):\n    return [float(bool(c.strip())) for c in completions]\n"
# The tiny recipe, a third as long.
SETTINGS = ("launch={gpus: 2}", "stages.zero.trainer.max_steps=12", "stages.report.samples=2")
OPTIONS = [word for setting in SETTINGS for word in ("--set", setting)]
REPORT = """
Root Cause (first observed failure):
[0]:
  time      : 2026-11-26_06:23:45
  host      : here
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: 12)
"""


@pytest.fixture
def project(tmp_path, toy_model):
    (tmp_path / "reward.py").write_text(REWARD + SAID)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=toy_model, folder=tmp_path))
    return tmp_path


def only(project: Path, *stages: str) -> None:
    """Leave the recipe with these stages."""
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["stages"] = {name: recipe["stages"][name] for name in stages}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def start(project: Path, *options: str) -> "subprocess.Popen[str]":
    full = r1lite(project, "run", str(project / "recipe.yaml"), *options)
    return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(process: "subprocess.Popen[str]", line_of: str) -> None:
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if re.search(line_of, line):
            return
    raise AssertionError(process.stderr.read())


def finish(process: "subprocess.Popen[str]", code: int) -> str:
    """What it says from here on, once it has ended with this exit code."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, out[-2000:] + errors[-4000:]
    return out + errors


def weights(project: Path, stage: str) -> bytes:
    return (stage_directory(project, stage) / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("launch", "fault"),
    [
        ("{gpus: 0}", "launch.gpus: Input should be greater than 0"),
        ("{gpu: 2}", "launch.gpu: unknown key"),
        ("8", "launch: must be a mapping, such as {gpus: 8}; got 8"),
        ("{accelerate: nowhere.yaml}", "launch.accelerate: there is no file nowhere.yaml"),
        ("{accelerate: recipes/tiny/zero.yaml}", "launch.accelerate: recipes/tiny/zero.yaml must state"),
    ],
)
def test_what_is_wrong_with_a_launch_is_told_with_its_path(project, launch, fault):
    with pytest.raises(RecipeError) as raised:
        load_recipe(project / "recipe.yaml", [f"launch={launch}"])
    assert any(each.startswith(fault) for each in raised.value.faults), raised.value.faults


def zero(*absent, **changes):
    """recipes/accelerate/zero3.yaml with another deepspeed_config, or none."""
    settings = yaml.safe_load(Path("recipes/accelerate/zero3.yaml").read_text())
    settings["deepspeed_config"] = None if absent else settings["deepspeed_config"] | changes
    return yaml.safe_dump(settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            "distributed_type: MEGATRON_LM",
            "must state distributed_type: MULTI_GPU, with the whole model on each GPU, FSDP or DEEPSPEED; others",
        ),
        (
            "distributed_type: FSDP",
            "must state fsdp_config.fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does; got None",
        ),
        ("- 1", "got None"),
        ("distributed_type: [FSDP]", "others have not been proven with r1lite; got ['FSDP']"),
        (zero(None), "must state deepspeed_config.zero_stage: 2 or 3, as recipes/accelerate/zero3.yaml does; got None"),
        (
            zero(zero_stage=1),
            "must state deepspeed_config.zero_stage: 2 or 3, as recipes/accelerate/zero3.yaml does; got 1",
        ),
        (zero(zero3_init_flag=True), "must state deepspeed_config.zero3_init_flag: False"),
        (zero(zero3_save_16bit_model=False), "must state deepspeed_config.zero3_save_16bit_model: True"),
        (
            zero(deepspeed_multinode_launcher="pdsh"),
            "must state deepspeed_config.deepspeed_multinode_launcher: standard",
        ),
        (
            zero(offload_optimizer_device="cpu"),
            "must not state deepspeed_config.offload_optimizer_device, which has not",
        ),
        (zero(gradient_clipping=1.0), "must not state deepspeed_config.gradient_clipping"),
    ],
)
def test_a_config_that_is_not_proven_is_refused(tmp_path, settings, fault):
    (tmp_path / "config.yaml").write_text(settings)
    faults = list(Launch(accelerate=str(tmp_path / "config.yaml")).faults())
    assert fault in faults[0]


@pytest.mark.parametrize("file", sorted(Path("recipes/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_config_is_one_that_accelerate_reads(file):
    from accelerate.commands.config.config_args import load_config_from_file

    assert not list(Launch(accelerate=str(file)).faults())
    types = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert load_config_from_file(str(file)).distributed_type == types[file.stem]


def test_deepspeed_is_asked_for_where_it_is_needed_and_not_installed(monkeypatch):
    monkeypatch.setattr("r1lite.launch.find_spec", lambda _: None)
    Launch().refuse_missing()
    with pytest.raises(
        ValueError, match=r"needs DeepSpeed, which is not installed here; pip install r1lite\[deepspeed\]"
    ):
        Launch(accelerate="recipes/accelerate/zero2.yaml").refuse_missing()


def test_every_kind_of_stage_is_known_to_train_to_sample_or_to_be_alone():
    assert sorted([*TRAINS, *SAMPLES, *ALONE]) == sorted(KINDS)


def test_how_many_processes_there_are_is_in_no_key(project):
    one, two = (
        [item.spec.key for item in plan(load_recipe(project / "recipe.yaml", [override]), project / "runs")]
        for override in ("launch=null", "launch={gpus: 4, environment: {NCCL_DEBUG: INFO}}")
    )
    assert one == two


def test_without_a_launch_a_stage_is_one_process_with_one_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert command(None, "grpo", tmp_path, Machine())[1:] == ["-m", "r1lite.worker", str(tmp_path)]
    assert environment(None, "grpo", tmp_path)["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in environment(None, "eval", tmp_path)


def test_a_launch_takes_all_gpus_unless_it_says_how_many(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    launch = Launch(sync_timeout=20, environment={"NCCL_DEBUG": "WARN"})
    arguments = command(launch, "grpo", tmp_path, Machine())
    assert arguments[arguments.index("--num_processes") + 1] == "3"
    given = environment(launch, "grpo", tmp_path / "ranks")
    assert given["NCCL_DEBUG"] == "WARN" and float(given[SYNC_TIMEOUT]) == 20
    assert given[RANK_LOGS] == str(tmp_path / "ranks") and "CUDA_VISIBLE_DEVICES" not in given
    arguments = command(Launch(gpus=2), "eval", tmp_path, Machine())
    assert arguments[arguments.index("--num_processes") + 1] == "2"
    assert "accelerate.commands.launch" not in command(launch, "select", tmp_path, Machine()), (
        "it is one process in any case"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names() == [] and Launch().processes() == 1


@pytest.mark.parametrize(
    ("rank", "code", "told"),
    [(1, -9, "rank 1 was killed by signal 9"), (3, 1, "rank 3 ended with exit code 1"), (0, -11, "rank 0 was killed")],
)
def test_the_first_process_that_failed_has_the_last_word(tmp_path, rank, code, told):
    (tmp_path / "log").write_text(REPORT.format(rank=rank, code=code))
    (tmp_path / f"rank_{rank}.log").write_text("\n".join(f"line {n}" for n in range(100)))
    words = last_words(tmp_path / "log", tmp_path)
    assert words.startswith(told) and words.endswith("line 99") and "line 80" not in words


def test_what_the_main_process_has_told_is_not_told_twice(tmp_path):
    (tmp_path / "log").write_text(REPORT.format(rank=0, code=1))
    assert last_words(tmp_path / "log", tmp_path) == ""
    (tmp_path / "log").write_text("no report")
    assert last_words(tmp_path / "log", tmp_path) == ""


@pytest.mark.parametrize(
    ("stage", "code", "raised"),
    [("zero", 0, Stopped), ("zero", 1, StageFailed), ("traces", 1, Stopped), ("traces", 0, Stopped)],
)
def test_what_fails_after_it_was_asked_to_end_has_failed(project, monkeypatch, stage, code, raised):
    """A stage that trains ends by itself; what samples is ended, whatever its exit code is then."""
    asks = (
        f"import os, signal, sys; os.kill(os.getppid(), signal.SIGTERM); print('there', flush=True); sys.exit({code})"
    )
    monkeypatch.setattr(pipeline, "command", lambda *_: [sys.executable, "-c", asks])
    planned = plan(load_recipe(project / "recipe.yaml"), project / "runs")
    (asked,) = (item for item in planned if item.spec.stage == stage)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised):
        pipeline.run_stage(asked, None, Machine())
    assert (asked.artifact.path / STOP).exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.alone
def test_every_kind_of_stage_runs_in_two_processes_and_none_loses_or_repeats_anything(project):
    process = start(project)
    finish(process, 0)
    for stage in ("zero", "traces", "chosen", "tuned", "liked", "small", "report"):
        there = stage_directory(project, stage)
        alone = stage == "chosen"
        assert Artifact(there).manifest()["processes"] == (1 if alone else 2)
        ranks = sorted(path.name for path in there.glob("logs/attempt_1/*"))
        assert ranks == ([] if alone else ["rank_0.log", "rank_1.log"])
        assert not list(there.rglob("*.bin")), "no pickles are left"
    for stage, prompts in (("zero", 4), ("small", 4)):
        files = sorted((stage_directory(project, stage) / "rollouts").glob("*.parquet"))
        asked = [[row["problem_id"] for row in read_rows(file)] for file in files]
        per_prompt = {"zero": 4, "small": 1}[stage]
        assert all(set(Counter(ids).values()) == {per_prompt} and len(set(ids)) == prompts for ids in asked)
        if stage == "zero":
            assert len(asked) == 24 and len({id_ for ids in asked for id_ in ids}) == 24 * 4, "no prompt twice"
    metrics = [json.loads(line) for line in (stage_directory(project, "zero") / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(25)), "written once a step"
    assert sum("probe/pass@1" in row for row in metrics) == 13
    rows = list(read_rows(stage_directory(project, "traces") / "rollouts.parquet"))
    assert len(rows) == 33 * 32 == len({(row["problem_id"], row["sample"]) for row in rows})
    for file in (stage_directory(project, "report") / "samples").glob("*.parquet"):
        rows = list(read_rows(file))
        assert len(rows) == 7 * 2 == len({(row["id"], row["sample"]) for row in rows})


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("processes", [1, 2])
def test_asked_to_end_a_run_writes_a_checkpoint_and_goes_on_as_if_it_had_not_been(project, tmp_path, processes):
    only(project, "zero")
    options = ["--set", f"launch={'null' if processes == 1 else '{gpus: 2}'}"]
    process = start(project, *options)
    until(process, r"step 5/24")
    asked = [process.pid] if processes == 1 else workers_of(project)  # as Slurm does: the launcher and all ranks
    for pid in asked:
        os.kill(pid, signal.SIGTERM)
    said = finish(process, 0)
    (stopped,) = re.findall(r"stopped after step (\d+) of 24, with a checkpoint", said)
    assert int(stopped) < 8, "long before the checkpoint that is due"
    assert "the same command goes on with it" in said
    there = stage_directory(project, "zero")
    assert [path.name for path in there.glob("checkpoints/checkpoint-*")] == [f"checkpoint-{stopped}"]
    said = finish(start(project, *options), 0)
    assert f"resuming from step {stopped} of 24" in said
    if processes == 1:  # test_kill and test_trainer compare what one makes
        return
    resumed = weights(project, "zero")

    (project / "runs").rename(project / "resumed")
    finish(start(project, *options), 0)
    assert weights(project, "zero") == resumed


@pytest.mark.slow
@pytest.mark.alone
def test_a_process_that_dies_fails_its_stage_at_once_with_its_last_words(project):
    only(project, "zero", "traces")
    process = start(project)
    until(process, r"step 10/24")
    others = set(workers_of(project)) - {process.pid}
    victim = next(pid for pid in others if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    before = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    said = finish(process, 1)
    assert time.monotonic() - before < 60
    assert "error: rank 1 was killed by signal 9; the end of" in said and "rank_1.log" in said
    assert "The same command goes on from its last checkpoint" in said
    assert not workers_of(project), "the others are gone too"

    process = start(project)
    until(process, r"resuming from step 8 of 24")
    until(process, r"  512/544 samples")  # of its own share: what the other has made is kept as well
    for pid in set(workers_of(project)) - {process.pid}:
        os.kill(pid, signal.SIGKILL)
    finish(process, 1)
    there = {path: path.read_bytes() for path in stage_directory(project, "traces").glob("parts/part_*")}
    kept = sum(1 for path in there for _ in read_rows(path))
    assert kept >= 512
    finish(start(project), 0)
    rows = list(read_rows(stage_directory(project, "traces") / "rollouts.parquet"))
    assert len(rows) == 33 * 32 == len({(row["problem_id"], row["sample"]) for row in rows})


@pytest.mark.slow
@pytest.mark.alone
def test_the_pipelines_death_is_that_of_all_processes(project):
    only(project, "zero")
    process = start(project)
    until(process, r"step 2/24")
    assert len(workers_of(project)) == 4, "the pipeline, the launcher and two workers"
    process.kill()
    process.wait()
    until_gone = time.monotonic() + 20
    while workers_of(project) and time.monotonic() < until_gone:
        time.sleep(0.2)
    assert not workers_of(project)


def test_what_processes_cannot_share_evenly_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert share("prompts_per_step", 6) == 2
    with pytest.raises(
        ValueError, match="prompts_per_step: 4 cannot be shared evenly by 3 processes; set it to a mult"
    ):
        share("prompts_per_step", 4)


@pytest.mark.slow
@pytest.mark.alone
def test_the_tiny_recipe_runs_in_two_processes(project):
    """As docs/scale.md has it, a third as long."""
    assert "r1lite run recipes/tiny/zero.yaml --set 'launch={gpus: 2}'\n" in Path("docs/scale.md").read_text()
    process = subprocess.Popen(
        r1lite(project, "run", "recipes/tiny/zero.yaml", *OPTIONS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    finish(process, 0)
    before, after = json.loads((project / "runs/zero/latest/report/report.json").read_text())["results"]
    assert after["pass@1"] > before["pass@1"] + 0.3


SGD = "optim: sgd, max_grad_norm: 0.0, learning_rate: 0.05, gradient_checkpointing: false"
BATCHES = """
name: t
prompt: plain
stages:
  base: {{kind: base, corpus: [{{use: "data/chain.py:documents"}}], documents: 48, documents_per_step: 16,
         model: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
                 intermediate_size: 64, max_position_embeddings: 256}},
         trainer: {{{sgd}}}}}
  tuned: {{kind: sft, model: {model}, examples: ["{folder}/examples.jsonl"], rows_per_step: 8, max_tokens: 64,
          trainer: {{max_steps: 3, {sgd}}}}}
  liked: {{kind: reward_model, model: {model}, pairs: data/courtesy.yaml#pairs, held_out: 0, pairs_per_step: 8,
          max_tokens: 40, trainer: {{max_steps: 3, {sgd}}}}}
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_step_of_two_processes_learns_what_a_step_of_one_does(toy_model, tmp_path):
    rows = [{"problem": f"{n}*2", "completion": f"={2 * n}" * (1 + n % 7)} for n in range(10, 90)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(BATCHES.format(model=toy_model, folder=tmp_path, sgd=SGD))
    found = []
    for launch in ("null", "{gpus: 2}"):
        finish(start(tmp_path, "--set", f"launch={launch}"), 0)
        stages = [stage_directory(tmp_path, stage) for stage in ("base", "tuned", "liked")]
        found.append(
            [
                (
                    load_file(stage / "model/model.safetensors"),
                    [row["loss"] for row in read_metrics(stage / "metrics.jsonl")],
                )
                for stage in stages
            ]
        )
        (tmp_path / "runs").rename(tmp_path / f"runs-{len(found)}")
    for (one, losses), (two, same) in zip(*found, strict=True):
        assert len(losses) == 3 and same == pytest.approx(losses, rel=1e-4), "the mean over all of a step's tokens"
        assert all(torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-6) for name in one)
