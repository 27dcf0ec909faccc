"""The machines of `launch:`: what to start on each of them, and how Slurm does it."""

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from r1lite.launch import Launch, Machine

SBATCH = "recipes/slurm/train.sbatch"


def by_hand(launch: Launch | None, words: list[str]) -> list[str]:
    """For each machine a comment that says what it is for, and its command. Raises ValueError as Launch.machine."""
    first = launch.machine(0) if launch else Machine()
    lines = []
    for rank in range(first.count + first.rollout_nodes):
        machine = replace(first, rank=rank)
        what = "serves rollouts" if machine.serves else "trains"
        there = f"; the others reach it at {first.address}" if rank == 0 and not first.is_alone else ""
        lines.append(f"# machine {rank} {what}{there}")
        lines.append(shlex.join(["r1lite", "run", *words, "--machine-rank", str(rank)]))
    return lines


def submit(launch: Launch | None, words: list[str], runs: Path) -> None:
    """Hand the recipe to Slurm, for as many nodes as there are machines. Raises ValueError where there is no Slurm."""
    if launch is None:
        raise ValueError("launch: the recipe has none; add --set 'launch={num_machines: 2}', or use `r1lite run`")
    if not shutil.which("sbatch"):
        raise ValueError("there is no Slurm here (no sbatch); --print tells what to start on each machine by hand")
    nodes = (launch.num_machines or 1) + (launch.rollouts.nodes if launch.rollouts else 0)
    command = ["sbatch", f"--nodes={nodes}", SBATCH, *words]
    code = subprocess.run(command, env={**os.environ, "RUNS": str(runs)}, check=False).returncode
    if code:
        raise ValueError(f"sbatch ended with exit code {code}: {shlex.join(command)}")
