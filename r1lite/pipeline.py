"""Plan and run: which stages of a recipe are done, which have to run and why, and one process for each of those."""

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r1lite import machines, models, serving
from r1lite import problems as problem_cards
from r1lite.artifacts import SCHEMA, STOP, Artifact, Spec, Stopped, earlier, link_latest
from r1lite.launch import (
    SIGNALS,
    TOLD,
    TRAINS,
    Launch,
    Machine,
    command,
    environment,
    how_ended,
    is_launched,
    last_words,
)
from r1lite.observe import say
from r1lite.plugins import source_hashes
from r1lite.pool import end_with_parent
from r1lite.prompts import TEMPLATES
from r1lite.recipe import Recipe, prove_rewards
from r1lite.records import digest
from r1lite.stages.config import StageConfig, references

ELSEWHERE = (
    "stage {} has ended on another machine, which says why. The same command on all of them goes on from its last "
    "checkpoint"
)


class StageFailed(Exception):
    """A stage's process ended without its artifact."""


@dataclass(frozen=True)
class Planned:
    """A stage with its key and directory; `state` is done, resume or run, and `why` is in words."""

    spec: Spec
    artifact: Artifact
    state: str
    why: str


def plan(recipe: Recipe, runs: Path) -> list[Planned]:
    planned: dict[str, Planned] = {}
    for name, config in recipe.stages.items():
        home = recipe.homes[name]
        parents = {parent: planned[parent] for parent in recipe.parents(name)}
        spec = Spec(
            recipe=home,
            stage=name,
            kind=config.kind,
            inputs=inputs(config, {parent: other.spec.key for parent, other in parents.items()}),
            parents={parent: os.path.relpath(other.artifact.path, runs / home) for parent, other in parents.items()},
            config=config.model_dump(mode="json"),
        )
        artifact = Artifact(runs / home / f"{name}-{spec.key}")
        waiting = [parent for parent, other in parents.items() if other.state != "done"]
        planned[name] = Planned(spec, artifact, *state_of(spec, artifact, earlier(runs, home, name), waiting))
    return list(planned.values())


def inputs(config: StageConfig, parents: dict[str, str]) -> dict[str, Any]:
    """All that decides what a stage makes, in the words of `why`. The key is its hash."""
    files: dict[str, str] = {}
    for _, kind, value in references(config):
        if not value.startswith("$"):
            files |= FINGERPRINTS[kind](value)
    return {
        "schema": SCHEMA,
        "config": config.model_dump(mode="json", exclude=config.OUTSIDE_KEY),
        "template": TEMPLATES[config.prompt],
        "stage": parents,
        "file": files,
    }


FINGERPRINTS: dict[str, Callable[[str], dict[str, str]]] = {
    "model": models.fingerprint,
    "reward_model": models.fingerprint,
    "problems": problem_cards.fingerprint,
    "examples": problem_cards.fingerprint,
    "function": source_hashes,
    "rollouts": lambda path: {path: digest(Path(path).read_bytes())},
}


def state_of(spec: Spec, artifact: Artifact, others: list[Artifact], waiting: list[str]) -> tuple[str, str]:
    if artifact.done:
        artifact.manifest()  # raises where it is damaged
        return "done", "all of its inputs are as they were"
    if artifact.path.exists():
        return "resume", "it was interrupted"
    compared = [changes(other.spec.inputs, spec.inputs) for other in others if other.done]
    if compared:
        return "run", shorten(min(compared, key=len))  # what differs from the artifact that is most like it
    return "run", "it has not run yet" if not waiting else f"it waits for {', '.join(waiting)}"


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two stages' inputs, a phrase each."""
    before, after = flatten(old), flatten(new)
    return [
        phrase(path, before.get(path), after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def shorten(phrases: list[str]) -> str:
    """The first three phrases, and how many more there are."""
    more = [f"and {len(phrases) - 3} more"] if len(phrases) > 3 else []
    return "; ".join(phrases[:3] + more)


def phrase(path: str, before: Any, after: Any) -> str:
    topic, _, name = path.partition("/")
    if topic == "file":
        return f"{name} {'is new' if before is None else 'is gone' if after is None else 'has changed'}"
    if topic == "stage":
        return f"{name} has changed"
    return f"{name.replace('/', '.') or topic}: {before} -> {after}"


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and path != "file":
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{path}/{key}" if path else key).items()}
    if isinstance(value, dict):
        return {f"{path}/{key}": item for key, item in value.items()}
    return {path: json.dumps(value) if isinstance(value, list) else value}


def run(recipe: Recipe, runs: Path, machine_rank: int = 0) -> list[Planned]:
    """Run what is not done, in order, and return the plan that was followed; of several machines each runs its part.

    Raises StageFailed, Stopped or Locked, and before anything is run RecipeError where a reward cannot be relied on.
    """
    machine = recipe.launch.machine(machine_rank) if recipe.launch else Machine()
    if recipe.launch:
        recipe.launch.refuse_missing()
    download_models(recipe)
    stages = plan(recipe, runs)
    prove_rewards(recipe, [planned.spec.stage for planned in stages if planned.state != "done"])
    for planned in stages:
        if planned.state == "done":
            say(f"{planned.spec.stage}: done ({planned.artifact.path})")
        elif machine.is_main:
            say(f"{planned.spec.stage}: {planned.spec.kind}, because {planned.why} ({planned.artifact.path})")
            run_stage(planned, recipe.launch, machine)
        elif recipe.launch and machine.serves and is_launched(recipe.launch, planned.spec.kind):
            serve_stage(planned, recipe.launch, machine)
        elif recipe.launch and is_launched(recipe.launch, planned.spec.kind):
            say(f"{planned.spec.stage}: {planned.spec.kind} ({planned.artifact.path})")
            follow_stage(planned, recipe.launch, machine)
        if machine.is_main:
            link_latest(runs, planned.spec.recipe, planned.spec.stage, planned.artifact)
    return stages


def would_start(recipe: Recipe, runs: Path, machine_rank: int) -> Iterator[str]:
    """The commands of each stage that is not done, as this machine would start them, in the words of a shell."""
    launch = recipe.launch
    machine = launch.machine(machine_rank) if launch else Machine()
    for planned in plan(recipe, runs):
        artifact, kind = planned.artifact, planned.spec.kind
        if planned.state == "done":
            continue
        if launch and serves(planned, launch, machine):
            for gpus, words in serving.commands(launch, machine, artifact.log.with_suffix("")):
                yield f"{planned.spec.stage}: CUDA_VISIBLE_DEVICES={gpus} {shlex.join(words)}"
        if machine.is_main or (is_launched(launch, kind) and not machine.serves):
            yield f"{planned.spec.stage}: {shlex.join(command(launch, kind, artifact.path, machine))}"


def download_models(recipe: Recipe) -> None:
    """Fetch hub models before anything is planned, so that keys hold the commit that is used."""
    for config in recipe.stages.values():
        for _, kind, value in references(config):
            if kind in ("model", "reward_model") and not value.startswith("$"):
                models.locate(value, download=True)


def run_stage(planned: Planned, launch: Launch | None, machine: Machine) -> None:
    """On the first machine, or the only one."""
    artifact = planned.artifact
    artifact.path.mkdir(parents=True, exist_ok=True)
    with artifact.lock():  # a stage that another process is writing is left alone
        artifact.prepare(planned.spec)
        log = artifact.log
        (artifact.path / STOP).unlink(missing_ok=True)
    rank_logs = log.with_suffix("")
    if launch and is_launched(launch, planned.spec.kind):
        rank_logs.mkdir()
        if serving.is_served(launch, planned.spec):
            serving.write_token(rank_logs)
        if not machine.is_alone:
            machines.announce(artifact, rank_logs.name, launch.processes())
    try:
        with servers_of(planned, launch, machine, rank_logs) as servers:
            work(planned, launch, machine, log, rank_logs, servers)
    finally:
        machines.withdraw(artifact)
        (rank_logs / serving.TOKEN).unlink(missing_ok=True)


def follow_stage(planned: Planned, launch: Launch, machine: Machine) -> None:
    """On another machine than the first, once that one is at work on this stage."""
    artifact = planned.artifact
    attempt = machines.await_start(artifact, machine, launch.processes())
    if attempt is None:
        return
    rank_logs = artifact.path / "logs" / attempt
    try:
        work(planned, launch, machine, rank_logs / f"machine_{machine.rank}.log", rank_logs, [])
    except (StageFailed, Stopped):
        machines.withdraw(artifact)
        raise


def serve_stage(planned: Planned, launch: Launch, machine: Machine) -> None:
    """On a machine that has nothing but servers of rollouts, until the first one is done with a stage."""
    while attempt := machines.await_start(planned.artifact, machine, None):
        try:
            serve_attempt(planned, launch, machine, attempt)
        except (StageFailed, Stopped, ValueError):
            machines.withdraw(planned.artifact)
            raise


def serve_attempt(planned: Planned, launch: Launch, machine: Machine, attempt: str) -> None:
    """As long as the first machine is at it, have servers if the stage needs any. Raises StageFailed or Stopped."""
    artifact, name = planned.artifact, planned.spec.stage
    with (
        servers_of(planned, launch, machine, artifact.path / "logs" / attempt) as servers,
        stopping(artifact, planned.spec.kind, partial(machines.withdraw, artifact)) as asked,
    ):
        if servers:
            say(f"{name}: {len(servers)} servers of rollouts ({artifact.path})")
        died = machines.await_end(artifact, attempt, servers)
    if died:
        raise StageFailed(f"stage {name}: {died}")
    if artifact.done or machines.running(artifact):  # it has begun another, since it was lost in this one
        return
    if asked or (artifact.path / STOP).exists():
        raise Stopped(f"stage {name} was asked to stop, and the same command goes on with it")
    raise StageFailed(ELSEWHERE.format(name))


def servers_of(
    planned: Planned, launch: Launch | None, machine: Machine, folder: Path
) -> AbstractContextManager[list["subprocess.Popen[str]"]]:
    """This machine's, where the stage has any."""
    if launch and serves(planned, launch, machine):
        return serving.serving(launch, machine, folder)
    return nullcontext([])


def serves(planned: Planned, launch: Launch, machine: Machine) -> bool:
    return serving.is_served(launch, planned.spec) and (machine.serves or not machine.rollout_nodes)


def work(
    planned: Planned,
    launch: Launch | None,
    machine: Machine,
    log: Path,
    rank_logs: Path,
    servers: list["subprocess.Popen[str]"],
) -> None:
    """Start this machine's processes of a stage, and see them through. Raises StageFailed or Stopped."""
    artifact, kind, name = planned.artifact, planned.spec.kind, planned.spec.stage
    launched = is_launched(launch, kind)
    with log.open("w") as file:
        worker = subprocess.Popen(
            command(launch, kind, artifact.path, machine),
            stdout=subprocess.PIPE,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env={**{key: value for key, value in os.environ.items() if not TOLD.fullmatch(key)},
                 **environment(launch, kind, rank_logs),
                 **(serving.environment(launch) if launch and serving.is_served(launch, planned.spec) else {})},
            preexec_fn=deaf if launched else end_with_parent,
            text=True,
        )  # fmt: skip
        assert worker.stdout is not None
        others = (
            machines.ending_with_the_others(artifact, worker, by_itself=kind in TRAINS)
            if launched and not machine.is_alone
            else nullcontext()
        )
        try:
            with (
                stopping(artifact, kind, worker.kill) as asked,
                others as withdrawn,
                serving.ending_with_servers(servers, worker) as died,
            ):
                for line in worker.stdout:
                    say(line.rstrip("\n"))
                    file.write(line)
                    file.flush()
                code = worker.wait()
        except KeyboardInterrupt:
            worker.kill()
            raise StageFailed(f"stage {name} was interrupted; the same command goes on with it") from None
    elsewhere = bool(withdrawn and withdrawn.is_set())
    if artifact.done and (elsewhere or not code):
        return
    if (asked or (artifact.path / STOP).exists()) and (code == 0 or kind not in TRAINS):
        raise Stopped(f"stage {name} was asked to stop, and the same command goes on with it")
    if code == 0 and not machine.is_main:  # the first one has yet to say that it is done
        return
    if elsewhere:
        raise StageFailed(ELSEWHERE.format(name))
    if died.is_set():
        raise StageFailed(f"stage {name}: {serving.who_ended(servers)}")
    words = last_words(log, rank_logs) if launched else ""
    raise StageFailed(
        f"stage {name} {how_ended(code)}; its log is {log}. The same command goes on from its last checkpoint"
        + (f"\n{words}" if words else "")
    )


def deaf() -> None:
    """What asks all processes of a job to end at once, as Slurm does, is for `r1lite` itself, which ends them in good
    order."""
    end_with_parent()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stopping(artifact: Artifact, kind: str, end: Callable[[], None]) -> Iterator[list[int]]:
    """Pass on the wish to end: what trains ends after its next step, with a checkpoint, and all else at once, since it
    keeps what it has anyway. Yields the signals that have come."""
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        came.append(number)
        (artifact.path / STOP).touch()
        if kind not in TRAINS:
            end()

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
