"""Two machines for real: each a network namespace, joined by a cable (veth) that can be cut. On the CPU, by gloo."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_launch import finish, only, until
from test_pipeline import REWARD, r1lite, stage_directory, workers_of

from r1lite.artifacts import RUNNING, STOP, Artifact
from r1lite.launch import Launch, Machine, command, first_host
from r1lite.machines import announce, await_start, ending_with_the_others
from r1lite.records import read_rows

RECIPE = """
name: t
prompt: plain
launch: {{num_machines: 2, gpus: 1, main_process_ip: 10.213.7.1, timeout: 10,
         environment: {{GLOO_SOCKET_IFNAME: cable, OMP_NUM_THREADS: "1"}}}}
stages:
  zero: {{kind: grpo, model: {model}, problems: data/chain.yaml#train, rewards: [{{use: "{folder}/reward.py:short"}}],
         prompts_per_step: 4, generations: 4, max_tokens: 8, temperature: 1.0,
         trainer: {{max_steps: 12, learning_rate: 1e-3, loss_type: dr_grpo, scale_rewards: none, beta: 0.0,
                    save_steps: 4, gradient_checkpointing: false}}}}
  traces: {{kind: sample, model: $zero, problems: ["data/chain.yaml#probe"], limit: 5, samples: 2, max_tokens: 8,
           rewards: [{{use: "{folder}/reward.py:short", preflight: false}}]}}
  chosen: {{kind: select, rollouts: $traces, keep: {{finished: false, per_problem: 4}}}}
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
exec "$@"
"""
PYTHON = """#!/bin/bash
echo "$@" > {folder}/asked
trap 'echo told >> {folder}/asked; exit {code}' USR1
echo > {folder}/ready
while [ {forever} = yes ]; do sleep 0.1; done
exit {code}
"""
ENVIRONMENT = ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST", "GROUP_RANK", "GROUP_WORLD_SIZE",
               "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


@pytest.fixture
def nowhere(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_word_about_machines_there_is_one(nowhere):
    assert Launch().machine(0) == Machine(0, 1, "", 29500)
    with pytest.raises(ValueError, match=r"this is machine 1, the first being 0, and launch.num_machines is 1; set it"):
        Launch().machine(1)
    with pytest.raises(ValueError, match="launch.main_process_ip: say where the others reach the first machine"):
        Launch(num_machines=2).machine(0)


def test_slurm_and_torchrun_tell_what_the_recipe_does_not(nowhere):
    nowhere.setenv("SLURM_STEP_NUM_NODES", "3")
    nowhere.setenv("SLURM_STEP_NODELIST", "gpu[017-018,030]")
    assert Launch().machine(2) == Machine(2, 3, "gpu017", 29500)
    nowhere.delenv("SLURM_STEP_NUM_NODES")
    nowhere.setenv("GROUP_WORLD_SIZE", "2")
    nowhere.setenv("MASTER_ADDR", "10.0.0.1")
    nowhere.setenv("MASTER_PORT", "1234")
    assert Launch().machine(1) == Machine(1, 2, "10.0.0.1", 1234)
    stated = Launch(num_machines=4, main_process_ip="10.0.0.9", main_process_port=4321)
    assert stated.machine(3) == Machine(3, 4, "10.0.0.9", 4321), "what the recipe says goes first"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[1-3]", "n1"),
        ("n[08,10-12],m4", "n08"),
        ("r[2-3]n[5,7]", "r2n5"),
        ("x7,n[1-2]", "x7"),
    ],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_each_machine_starts_its_part_of_all_processes(tmp_path):
    said = command(Launch(gpus=4), "grpo", tmp_path, Machine(1, 3, "10.0.0.1", 4000))
    options = dict(pairwise(said))
    assert options["--num_processes"] == "12" and options["--num_machines"] == "3" and options["--machine_rank"] == "1"
    assert options["--main_process_ip"] == "10.0.0.1" and options["--main_process_port"] == "4000"


def test_unlike_numbers_of_processes_are_refused_where_they_would_wait_for_ever(tmp_path):
    announce(Artifact(tmp_path), "attempt_3", 8)
    assert await_start(Artifact(tmp_path), Machine(1, 2), 8) == "attempt_3"
    with pytest.raises(
        ValueError, match="machine 1 would start 4 processes where the first one starts 8; set launch.g"
    ):
        await_start(Artifact(tmp_path), Machine(1, 2), 4)
    assert not (tmp_path / RUNNING).exists(), "so that the first one ends too"
    (tmp_path / "manifest.json").touch()
    assert await_start(Artifact(tmp_path), Machine(1, 2), 4) is None


@pytest.mark.parametrize(
    ("there", "trains", "ends"),
    [([], True, True), ([STOP], True, False), ([STOP], False, True), (["manifest.json"], True, False)],
)
def test_processes_end_where_another_machine_has_failed(tmp_path, monkeypatch, there, trains, ends):
    """And not where they are done, or were asked to end and do so by themselves."""
    monkeypatch.setattr("r1lite.machines.SECONDS", 0.05)
    artifact = Artifact(tmp_path)
    announce(artifact, "attempt_1", 1)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], text=True)
    with ending_with_the_others(artifact, worker, trains) as withdrawn:
        for name in there:
            (tmp_path / name).touch()
        (tmp_path / RUNNING).unlink()
        assert worker.wait() == (-9 if ends else 0)
    assert withdrawn.is_set() == ends


@pytest.mark.parametrize(
    ("number", "code", "queued"),
    [(None, 0, False), (signal.SIGUSR1, 0, True), (signal.SIGTERM, 0, True), (signal.SIGUSR1, 1, False)],
    ids=["done", "time is over", "preempted", "asked and failed"],
)
def test_a_slurm_job_is_queued_again_where_it_was_asked_to_end_and_has(tmp_path, number, code, queued):
    """With programs in the place of Slurm's, of which there is none here."""
    forever = "no" if number is None else "yes"
    programs = {
        "srun": SRUN,
        "python": PYTHON.format(folder=tmp_path, code=code, forever=forever),
        "scontrol": f'#!/bin/bash\necho "$@" > {tmp_path}/queued\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "RUNS": "there",
        "SLURM_JOB_ID": "17",
    }
    words = ["recipes/zero.yaml", "--set", "launch={}"]
    job = subprocess.Popen(["bash", "recipes/slurm/train.sbatch", *words], env=given)
    if number:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        job.send_signal(number)
    assert job.wait(timeout=20) == code
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-m r1lite.cli run recipes/zero.yaml --set launch={} --runs there", *(["told"] if number else [])]
    assert (tmp_path / "queued").exists() == queued
    if queued:
        assert (tmp_path / "queued").read_text() == "requeue 17\n"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, whose ends are called that."""
    names = [f"r1lite-{os.getpid()}-{n}" for n in range(2)]
    try:
        if not shutil.which("ip"):
            pytest.skip("`ip` (iproute2) is not installed")
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for n, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.213.7.{n + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def project(tmp_path, toy_model):
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=toy_model, folder=tmp_path))
    return tmp_path


def start(project: Path, within: list[str], *options: str) -> "subprocess.Popen[str]":
    full = [*within, *r1lite(project, "run", str(project / "recipe.yaml"), *options)]
    return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_both(project: Path, namespaces: list[str]) -> list["subprocess.Popen[str]"]:
    return [
        start(project, ["ip", "netns", "exec", name], "--machine-rank", str(rank))
        for rank, name in enumerate(namespaces)
    ]


@pytest.mark.slow
@pytest.mark.alone
def test_two_machines_make_what_one_makes_though_their_cable_is_cut_on_the_way(project, namespaces):
    first, second = start_both(project, namespaces)
    until(first, r"step 5/12")
    ip("-n", namespaces[0], "link", "set", "cable", "down")
    cut = time.monotonic()
    for process in (first, second):
        said = finish(process, 1)
        assert re.search("cannot be reached|has ended on another machine", said), said
        assert "goes on from" in said
    assert time.monotonic() - cut < 10 + 20, "launch.timeout, and what it takes to end"
    assert not workers_of(project)

    ip("-n", namespaces[0], "link", "set", "cable", "up")
    first, second = start_both(project, namespaces)
    said = finish(first, 0)
    assert "resuming from step 4 of 12" in said
    finish(second, 0)
    rows = list(read_rows(stage_directory(project, "traces") / "rollouts.parquet"))
    assert len(rows) == 5 * 2 == len({(row["problem_id"], row["sample"]) for row in rows})
    logs = {path.name for path in stage_directory(project, "zero").glob("logs/attempt_2/*")}
    assert logs == {"rank_0.log", "rank_1.log", "machine_1.log"}
    assert not list(project.rglob(RUNNING))
    two = load_file(stage_directory(project, "zero") / "model/model.safetensors")

    (project / "runs").rename(project / "two")
    only(project, "zero")
    alone = "launch={gpus: 2, environment: {OMP_NUM_THREADS: '1'}}"
    finish(start(project, [], "--set", alone), 0)
    one = load_file(stage_directory(project, "zero") / "model/model.safetensors")
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)


def test_a_server_of_rollouts_listens_on_the_address_that_faces_the_first_machine(namespaces):
    program = "from r1lite.rollout_server import address_towards; print(address_towards('10.213.7.1'))"
    told = subprocess.run(
        ["ip", "netns", "exec", namespaces[1], sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "10.213.7.2\n"
