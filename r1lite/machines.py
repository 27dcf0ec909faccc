"""What several machines that run one recipe tell one another: a file in the directory of the stage that they are at.

Each has started `r1lite run` of the same recipe, with the same runs/, which all of them see. The first leads: it writes
`running.json` where it begins a stage, and the others start their processes of it. Whoever fails takes the file away,
and everyone ends. Training itself needs none of this: its processes find one another by torchrun's rendezvous.
"""

import json
import time
from contextlib import AbstractContextManager
from subprocess import Popen
from threading import Event
from typing import Any

from r1lite.artifacts import RUNNING, STOP, Artifact
from r1lite.launch import Machine
from r1lite.observe import say
from r1lite.records import write_json
from r1lite.serving import who_ended
from r1lite.watchdog import ending_when

SECONDS = 1.0  # between two looks at the file


def announce(artifact: Artifact, attempt: str, processes: int) -> None:
    write_json(artifact.path / RUNNING, {"attempt": attempt, "processes": processes})


def withdraw(artifact: Artifact) -> None:
    (artifact.path / RUNNING).unlink(missing_ok=True)


def running(artifact: Artifact) -> dict[str, Any] | None:
    """What the first machine has announced, as long as it is at work."""
    try:
        found: dict[str, Any] = json.loads((artifact.path / RUNNING).read_text())
    except FileNotFoundError:
        return None
    return found


def await_start(artifact: Artifact, machine: Machine, processes: int | None) -> str | None:
    """Wait until the first machine is at work on a stage, and return the name of its attempt; None where it is done.

    Raises ValueError where machines that train have unlike numbers of processes, with which they would never begin.
    """
    waited = False
    while not artifact.done:
        if begun := running(artifact):
            if processes and begun["processes"] != processes:
                withdraw(artifact)
                raise ValueError(
                    f"machine {machine.rank} would start {processes} processes where the first one starts "
                    f"{begun['processes']}; set launch.gpus to what all of them have"
                )
            return str(begun["attempt"])
        if not waited:
            say(f"  machine {machine.rank} of {machine.count + machine.rollout_nodes} waits for the first")
            waited = True
        time.sleep(SECONDS)
    return None


def ending_with_the_others(artifact: Artifact, worker: "Popen[str]", by_itself: bool) -> AbstractContextManager[Event]:
    """Kill this machine's processes where another has ended before it was done; what it gives is set then.

    Not where all were asked to end and do so by themselves, as those that train do.
    """

    def over() -> bool:
        asked = by_itself and (artifact.path / STOP).exists()
        return not ((artifact.path / RUNNING).exists() or asked or artifact.done)

    return ending_when(over, worker, SECONDS)


def await_end(artifact: Artifact, attempt: str, servers: list["Popen[str]"]) -> str:
    """Wait until the first machine has ended an attempt, or one of the servers here has, which is told in words."""
    while (begun := running(artifact)) and begun["attempt"] == attempt:
        if ended := who_ended(servers):
            return ended
        time.sleep(SECONDS)
    return ""
