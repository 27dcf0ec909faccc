"""What `r1lite launch` says of each machine, what those commands would start there, and how Slurm is asked."""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from test_pipeline import r1lite

from r1lite.cluster import by_hand
from r1lite.launch import Launch, Machine, Servers

LAUNCH = (
    "launch={num_machines: 2, gpus: 8, main_process_ip: 10.0.0.1, rollouts: {nodes: 1, tensor_parallel: 2, "
    "data_parallel: 4}}"
)

SCALE = Path("docs/scale.md").read_text()


@pytest.fixture
def beside(tmp_path, toy_model, monkeypatch):
    """A folder in which recipes/r1.yaml finds small things of the names that it asks for."""
    for name in ("recipes", "rewards"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen/Qwen2.5-1.5B").symlink_to(toy_model)
    (tmp_path / "data").mkdir()
    for file in Path("data").iterdir():
        here = {"gsm8k.yaml": "chain.yaml", "general.yaml": "courtesy.yaml"}.get(file.name, file.name)
        (tmp_path / "data" / file.name).symlink_to(Path("data", here).resolve())
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    for name in (
        "SLURM_NODEID",
        "SLURM_STEP_NUM_NODES",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def said(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "r1lite.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_r1_on_two_nodes_that_train_and_one_that_serves(beside, monkeypatch):
    """Each printed command, run dry, says what that machine would start, and the parts make a whole."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    lines = said(beside, "launch", "recipes/r1.yaml", "--print", "--set", LAUNCH).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# machine 0 trains; the others reach it at 10.0.0.1",
        "# machine 1 trains",
        "# machine 2 serves rollouts",
    ]
    of_machine = {}
    for rank, line in enumerate(line for line in lines if not line.startswith("#")):
        program, *words = shlex.split(line)
        assert program == "r1lite" and words[-2:] == ["--machine-rank", str(rank)]
        starts = [each.partition(": ") for each in said(beside, *words, "--dry").splitlines()]
        of_machine[rank] = [(stage, shlex.split(command)) for stage, _, command in starts]
    assert not (beside / "runs").exists(), "nothing is started, and nothing written"

    launched = {rank: [] for rank in (0, 1)}
    for rank in (0, 1):
        for stage, words in of_machine[rank]:
            if "accelerate.commands.launch" in words:
                options = launch_command_parser().parse_args(words[3:])
                assert (options.num_processes, options.num_machines, options.machine_rank) == (16, 2, rank)
                assert (options.main_process_ip, options.main_process_port) == ("10.0.0.1", 29500)
                assert options.module and options.training_script == "r1lite.worker"
                launched[rank].append((stage, options.training_script_args))
    assert launched[0] == launched[1]
    stages = [stage for stage, _ in launched[0]]
    assert {"zero", "dev1", "dev2", "r1", "report"} <= set(stages)
    alone = [(stage, words) for stage, words in of_machine[0] if "accelerate.commands.launch" not in words]
    assert {stage for stage, _ in alone} >= {"cold"} and all(words[2] == "r1lite.worker" for _, words in alone)
    assert "cold" not in [stage for stage, _ in of_machine[1]], "it is one process in any case"

    of_stage = {}
    for stage, words in of_machine[2]:
        gpus, module, folder, name, peer = words[0], *words[3:]
        assert module == "r1lite.rollout_server" and peer == "10.0.0.1"
        of_stage.setdefault(stage, []).append((gpus.removeprefix("CUDA_VISIBLE_DEVICES="), name))
        assert any(folder.startswith(args[0]) for each, args in launched[0] if each == stage)
    assert set(of_stage) == {"zero", "dev2", "r1"}, "those that train with rollouts"
    for servers in of_stage.values():
        assert servers == [(f"{2 * n},{2 * n + 1}", f"rollout_server_2_{n}") for n in range(4)]


def test_one_machine_with_servers_beside_starts_both(beside, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    setting = "launch={rollouts: {data_parallel: 1}}"
    (line,) = [line for line in by_hand(Launch(rollouts=Servers()), ["r.yaml"]) if not line.startswith("#")]
    assert line == "r1lite run r.yaml --machine-rank 0"
    starts = said(beside, "run", "recipes/zero.yaml", "--set", setting, "--dry").splitlines()
    mine = [shlex.split(line.partition(": ")[2]) for line in starts if line.startswith("zero:")]
    assert [words[0] for words in mine] == ["CUDA_VISIBLE_DEVICES=3", sys.executable]
    assert mine[0][-1] == "127.0.0.1"
    assert dict(pairwise(mine[1]))["--num_processes"] == "3"


@pytest.mark.parametrize("command", re.findall(r"^r1lite (?:launch .*--print|run .*--dry).*$", SCALE, re.MULTILINE))
def test_a_command_of_docs_scale(beside, command):
    assert re.search("rollout_server|machine 2 serves", said(beside, *shlex.split(command)[1:]))


def test_without_an_address_the_remedy_is_told(beside, tmp_path):
    with pytest.raises(ValueError, match="launch.main_process_ip: say where the others reach the first machine"):
        by_hand(Launch(rollouts=Servers(nodes=1)), ["r.yaml"])


@pytest.mark.parametrize(
    ("slurm", "launch", "found"),
    [
        ("3", Launch(rollouts=Servers(nodes=1)), Machine(0, 2, "gpu1", 29500, 1)),
        ("3", Launch(num_machines=2, rollouts=Servers(nodes=1)), Machine(0, 2, "gpu1", 29500, 1)),
        (None, Launch(main_process_ip="a", rollouts=Servers(nodes=2)), Machine(0, 1, "a", 29500, 2)),
    ],
)
def test_of_slurms_nodes_the_last_ones_serve(beside, monkeypatch, slurm, launch, found):
    if slurm:
        monkeypatch.setenv("SLURM_STEP_NUM_NODES", slurm)
        monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[1-3]")
    assert launch.machine(0) == found
    last = launch.machine(found.count + found.rollout_nodes - 1)
    assert last.serves and not launch.machine(found.count - 1).serves
    with pytest.raises(ValueError, match=r"launch.num_machines is \d, besides the \d of launch.rollouts"):
        launch.machine(found.count + found.rollout_nodes)


def test_where_several_train_servers_are_asked_to_have_machines_of_their_own(beside, monkeypatch):
    launch = Launch(main_process_ip="10.0.0.1", rollouts=Servers(data_parallel=2))
    assert launch.machine(0).count == 1
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(ValueError, match=r"launch.rollouts: 2 machines train, .* set launch.rollouts.nodes"):
        launch.machine(0)


def test_nodes_that_all_serve_train_nothing(beside, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(ValueError, match="launch.rollouts.nodes: 2 of 2 machines leave none that trains"):
        Launch(rollouts=Servers(nodes=2)).machine(0)


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_is_asked_for_all_machines(beside, monkeypatch, code):
    (beside / "sbatch").write_text(f'#!/bin/bash\necho "$@" RUNS=$RUNS > {beside}/asked\nexit {code}\n')
    (beside / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{beside}:{os.environ['PATH']}")
    words = ["launch", "recipes/r1.yaml", "--set", "launch={num_machines: 2, rollouts: {nodes: 1}}", "--runs", "there"]
    done = subprocess.run(r1lite(beside, *words)[:-2], cwd=beside, capture_output=True, text=True, check=False)
    asked = (beside / "asked").read_text().strip()
    given = "--set launch={num_machines: 2, rollouts: {nodes: 1}}"
    assert asked == f"--nodes=3 recipes/slurm/train.sbatch recipes/r1.yaml {given} RUNS=there"
    assert done.returncode == (2 if code else 0)
    assert bool(re.search("error: sbatch ended with exit code 3: sbatch --nodes=3", done.stderr)) == bool(code)


def test_without_slurm_or_without_a_launch_there_is_nothing_to_submit(beside, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for words, told in (([], "launch: the recipe has none"), (["--set", "launch={}"], "there is no Slurm here")):
        command = [sys.executable, "-m", "r1lite.cli", "launch", "recipes/zero.yaml", *words]
        done = subprocess.run(command, cwd=beside, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and told in done.stderr
