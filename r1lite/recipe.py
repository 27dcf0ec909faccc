"""A recipe: YAML becomes typed stages, or every error at once with its path and what would be valid."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r1lite import models
from r1lite import problems as problem_cards
from r1lite.launch import Launch
from r1lite.plugins import load_function
from r1lite.preflight import Proof, prove
from r1lite.prompts import TEMPLATES
from r1lite.stages import base, distill, evaluate, grade, grpo, reward_model, sample, select, sft
from r1lite.stages.config import StageConfig, problem_sets, references, rewards_of
from r1lite.strict_yaml import did_you_mean, explain, load_yaml, parse_value

KINDS: dict[str, type[StageConfig]] = {
    "base": base.Config,
    "sft": sft.Config,
    "grpo": grpo.Config,
    "sample": sample.Config,
    "select": select.Config,
    "reward_model": reward_model.Config,
    "distill": distill.Config,
    "eval": evaluate.Config,
    "grade": grade.Config,
}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
FIELDS = ("name", "after", "seed", "prompt", "launch", "stages")


class RecipeError(ValueError):
    """A recipe that cannot be run; `faults` has one line for each thing that is wrong."""

    def __init__(self, source: str, faults: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {fault}" for fault in faults))
        self.faults = faults


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they run; a stage may refer to those before it as `$name`.

    Among them are those of the recipe that it comes `after` which they need, directly or not. `homes` has the name of
    each stage's own recipe, under which it is kept.
    """

    name: str
    stages: dict[str, StageConfig]
    homes: dict[str, str]
    source: str  # where it was read from
    launch: Launch | None = None

    def parents(self, stage: str) -> list[str]:
        values = [value for _, _, value in references(self.stages[stage])]
        return list(dict.fromkeys(value[1:] for value in values if value.startswith("$")))


def load_recipe(path: Path, overrides: list[str] | None = None, later: tuple[Path, ...] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `stages.zero.trainer.max_steps=10`. Raises RecipeError or ValueError.

    What a recipe comes `after` is read with it, under the same seed and prompt where they are overridden; `later` are
    the recipes that come after this one.
    """
    if path in later:
        raise ValueError(f"{path} comes after itself, by way of {', '.join(map(str, later))}; take out one `after`")
    data = read_recipe(path)
    own: list[str] = []
    of_others: list[str] = []
    for override in overrides or []:
        (own if is_own(data, override) else of_others).append(override)
        if override.startswith(("seed=", "prompt=")):
            of_others.append(override)
    for override in own:
        apply_override(data, override)
    after = data.pop("after", None)
    if after is not None and not isinstance(after, str):
        raise RecipeError(str(path), [f"after: must be the path of a recipe; got {after!r}"])
    return build_recipe(data, str(path), load_recipe(Path(after), of_others, (*later, path)) if after else None)


def load_launch(path: Path, overrides: list[str] | None = None) -> Launch | None:
    """A recipe's `launch:` alone, for which its models and problems need not be here. Raises as load_recipe does."""
    data = read_recipe(path)
    for override in overrides or []:
        if override.startswith(("launch=", "launch.")):
            apply_override(data, override)
    launch, faults = build_launch(data.get("launch"))
    if faults:
        raise RecipeError(str(path), faults)
    return launch


def read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no recipe {path} (looked in {Path.cwd()}); recipes/ has those that are shipped")
    data = unshared(load_yaml(path))
    if not isinstance(data, dict):
        raise RecipeError(
            str(path), [f"a recipe is a mapping with the keys {', '.join(FIELDS)}; got {type(data).__name__}"]
        )
    return data


def unshared(value: Any) -> Any:
    """A copy in which what YAML's `*alias` repeats is there several times, so that an override changes one of them."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def is_own(data: dict[str, Any], override: str) -> bool:
    """Whether an override is about this recipe, and not about a stage of the one that it comes after."""
    top, _, rest = override.partition("=")[0].partition(".")
    stages = data.get("stages")
    return top != "stages" or "after" not in data or (isinstance(stages, dict) and rest.partition(".")[0] in stages)


def prove_rewards(recipe: Recipe, stages: list[str]) -> list[Proof]:
    """Try the rewards of some stages on their own problems. Raises RecipeError where one cannot be relied on."""
    proofs = list(prove(recipe.stages, stages))
    refuse_unproven(recipe, proofs)
    return proofs


def refuse_unproven(recipe: Recipe, proofs: list[Proof]) -> None:
    faults = [f"{proof.path}: {fault}" for proof in proofs for fault in proof.faults]
    if faults:
        raise RecipeError(recipe.source, faults)


def apply_override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *steps, last = path.split(".")
    if not equals or not path:
        raise ValueError(f"--set {override}: write PATH=VALUE, as in stages.zero.trainer.max_steps=10")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ValueError(f"--set {override}: {error}") from None
    target: Any = data
    for step in steps:
        target = (
            target[int(step)]
            if isinstance(target, list) and step.isdigit() and int(step) < len(target)
            else (target.get(step) if isinstance(target, dict) else None)
        )
        if not isinstance(target, dict | list):
            raise ValueError(f"--set {override}: there is no {step!r} to set something in")
    if isinstance(target, list):
        if not last.isdigit() or int(last) >= len(target):
            raise ValueError(f"--set {override}: {last!r} is not an index below {len(target)}")
        target[int(last)] = value
    else:
        target[last] = value


def build_recipe(data: dict[str, Any], source: str, after: Recipe | None = None) -> Recipe:
    faults = [f"{key}: unknown key{did_you_mean(str(key), list(FIELDS))}; valid here: {', '.join(FIELDS)}"
              for key in data if key not in FIELDS]  # fmt: skip
    name, defaults = data.get("name"), {str(key): data[key] for key in ("seed", "prompt") if key in data}
    if not isinstance(name, str) or not NAME.fullmatch(name):
        faults.append(f"name: must be a word of letters, digits, - and _, since it names a directory; got {name!r}")
    if not isinstance(defaults.get("seed", 0), int) or isinstance(defaults.get("seed"), bool):
        faults.append(f"seed: must be an integer; got {defaults.pop('seed')!r}")
    if defaults.get("prompt", "chat") not in TEMPLATES:
        faults.append(f"prompt: must be one of {', '.join(TEMPLATES)}; got {defaults.pop('prompt')!r}")
    launch, launch_faults = build_launch(data.get("launch"))
    faults += launch_faults
    raw = data.get("stages")
    if not isinstance(raw, dict) or not raw:
        raise RecipeError(source, [*faults, f"stages: must be a mapping from stage names to stages; got {raw!r}"])

    stages: dict[str, StageConfig] = {}
    for stage, values in raw.items():
        config, stage_faults = build_stage(str(stage), values, defaults)
        faults += [f"stages.{fault}" for fault in stage_faults]
        if config:
            stages[stage] = config
            faults += [f"stages.{stage}.{fault}" for fault in [*config.faults(), *misdirected(config)]]
    before = {name: config for name, config in after.stages.items() if name not in raw} if after else {}
    for stage, config in stages.items():
        earlier = [*before, *list(raw)[: list(raw).index(stage)]]
        for path, kind, value in references(config):
            fault = check_reference(config, kind, value, raw, before | stages, earlier)
            if fault:
                alone = path == "problems.0.use" and isinstance(raw[stage]["problems"], str)  # not in a list
                faults.append(f"stages.{stage}.{'problems' if alone else path}: {fault}")
    needed = needed_of(after, list(stages.values())) if after else []
    faults += [f"stages.{stage}: {after.source} has a stage of that name which is needed here; rename this one"
               for stage in needed if after and stage in raw]  # fmt: skip
    if faults:
        raise RecipeError(source, faults)
    homes = {stage: after.homes[stage] for stage in needed if after} | dict.fromkeys(stages, str(name))
    return Recipe(str(name), {stage: before[stage] for stage in needed} | stages, homes, source, launch)


def build_launch(values: Any) -> tuple[Launch | None, list[str]]:
    """`launch:` and what is wrong with it; without one every stage is a single process."""
    if values is None:
        return None, []
    if not isinstance(values, dict):
        return None, [f"launch: must be a mapping, such as {{gpus: 8}}; got {values!r}"]
    try:
        launch = Launch.model_validate(values)
    except ValidationError as error:
        return None, explain(error, Launch, "launch")
    return launch, [f"launch.{fault}" for fault in launch.faults()]


def needed_of(after: Recipe, configs: list[StageConfig]) -> list[str]:
    """The stages of an earlier recipe that these refer to, and those which these need in turn, in their order."""
    found: set[str] = set()
    waiting = configs
    while waiting:
        names = {value[1:] for config in waiting for _, _, value in references(config) if value.startswith("$")}
        fresh = (names & set(after.stages)) - found
        found |= fresh
        waiting = [after.stages[name] for name in fresh]
    return [name for name in after.stages if name in found]


def build_stage(stage: str, values: Any, defaults: dict[str, Any]) -> tuple[StageConfig | None, list[str]]:
    kinds = ", ".join(KINDS)
    if not NAME.fullmatch(stage):
        return None, [f"{stage}: a stage's name is a word of letters, digits, - and _, since it names a directory"]
    if not isinstance(values, dict):
        return None, [f"{stage}: must be a mapping with a kind ({kinds}); got {values!r}"]
    kind = values.get("kind")
    if kind not in KINDS:
        return None, [f"{stage}.kind: must be one of {kinds}{did_you_mean(str(kind), list(KINDS))}; got {kind!r}"]
    model = KINDS[kind]
    try:
        return model.model_validate({**defaults, **values}), []
    except ValidationError as error:
        return None, explain(error, model, stage)


def misdirected(config: StageConfig) -> Iterator[str]:
    """Rewards that are `about` problems which their stage does not ask."""
    sets = problem_sets(config)
    for path, reward in rewards_of(config):
        for name in (name for name in reward.about or [] if name not in sets):
            yield f"{path}.about: {name} is none of the stage's problems: {', '.join(sets)}"


def check_reference(
    config: StageConfig, kind: str, value: str, raw: dict[str, Any], stages: dict[str, StageConfig], earlier: list[str]
) -> str | None:
    """What is wrong with a reference, if anything; what it refers to is looked at, but not read through."""
    if value.startswith("$"):
        return check_stage_reference(kind, value, raw, stages, earlier)
    try:
        if kind == "function":
            load_function(value)
        elif kind == "rollouts":
            if not value.endswith((".jsonl", ".parquet")):
                return f"{value} is neither a .jsonl nor a .parquet file"
            reader = select if isinstance(config, select.Config) else grade
            reader.read_rollouts(problem_cards.existing(value))
        elif kind in ("problems", "examples"):
            if models.HUB_ID.fullmatch(value) and not value.endswith((".jsonl", ".parquet", ".yaml", ".yml")):
                return f"{value} looks like a model, and {kind} belong here: a card (.yaml#split), .jsonl or .parquet"
            problem_cards.look_at(value, problem_cards.iterate_examples if kind == "examples" else None)
        else:
            if value.partition("#")[0].endswith((".yaml", ".yml", ".jsonl", ".parquet")):
                return f"{value} is a data set, and a model belongs here: $stage, a directory or a hub id"
            models.locate(value)
    except ValueError as error:
        return str(error)
    return None


def check_stage_reference(
    kind: str, value: str, raw: dict[str, Any], stages: dict[str, StageConfig], earlier: list[str]
) -> str | None:
    name = value[1:]
    if name not in earlier:
        why = "comes later" if name in raw else "is no stage of this recipe"
        valid = ", ".join("$" + other for other in earlier) or "none, it is the first"
        return f"{value} {why}; a stage may refer to those before it: {valid}"
    if name in stages and kind not in stages[name].PRODUCES:
        parent = stages[name]
        made = " and ".join(parent.PRODUCES)
        return f"{value} is of kind {parent.kind} and makes {made}, but {kind} is meant here"
    return None
