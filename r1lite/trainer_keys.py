"""The keys that `trainer:` may hold, read from the sources of TRL and transformers without importing torch.

Both libraries' own scripts drop a misspelt key silently; here it is an error before anything starts.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from r1lite.strict_yaml import did_you_mean

SOURCES = {
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "DistillationConfig": ("trl", "trainer/distillation_config.py"),
    "RewardConfig": ("trl", "trainer/reward_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
# What r1lite sets for every trainer, and what to use instead; a stage adds its own.
OWNED = {
    **dict.fromkeys(("seed", "data_seed"), "the recipe's seed"),
    **dict.fromkeys(("output_dir", "logging_dir"), "the option --runs"),
    **dict.fromkeys(("logging_steps", "logging_strategy", "disable_tqdm"), "metrics.jsonl, which has every step"),
    "resume_from_checkpoint": "the same command again, which resumes",
    "save_strategy": "save_steps",
    "ddp_timeout": "launch.timeout",
    "save_total_limit": "nothing: the two newest checkpoints are kept while training",
}
# And for those whose completions come from an engine of ours.
OWNED_WITH_ROLLOUTS = {
    **OWNED,
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "prompts_per_step, generations and micro_batch",
    **dict.fromkeys(("use_vllm", "vllm_mode"), "engine"),
    **dict.fromkeys(("vllm_server_base_url", "vllm_server_host", "vllm_server_port"), "engine"),
    **dict.fromkeys(("vllm_server_timeout", "vllm_group_port", "vllm_tensor_parallel_size"), "engine"),
    **dict.fromkeys(("vllm_model_impl", "vllm_structured_outputs_regex"), "engine"),
    "vllm_max_model_length": "max_tokens",
    "generation_kwargs": "temperature and max_tokens",
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty"),
        "temperature alone: any other cut makes the sampled distribution unlike the trained one",
    ),
    **dict.fromkeys(("shuffle_dataset", "remove_unused_columns"), "the order that the recipe's seed gives"),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "log_completions", "disable_tqdm"), "metrics.jsonl and rollouts/"
    ),
    **dict.fromkeys(("do_train", "do_eval", "eval_strategy", "eval_steps"), "probe"),
}
WHOLE_NUMBERS = ("max_steps", "num_iterations", "save_steps")
PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "None": (type(None),),
}


@cache
def fields(config_class: str) -> dict[str, str]:
    """Field names of a trainer's config class and of the classes it builds on, each with its annotation."""
    package, file = SOURCES[config_class]
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is not installed"
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text())
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == config_class)
    found: dict[str, str] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and base.id in SOURCES:
            found |= fields(base.id)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = ast.unparse(node.annotation)
    return found


def check_trainer(values: dict[str, Any], config_class: str, owned: dict[str, str]) -> list[str]:
    """What is wrong with a `trainer:` mapping, a line each; `owned` maps what r1lite sets to what to use instead."""
    known, problems = fields(config_class), []
    for key, value in values.items():
        if key in owned:
            problems.append(f"{key}: set by r1lite; use {owned[key]} instead")
        elif key not in known:
            valid = [name for name in known if name not in owned]
            problems.append(f"{key}: not a field of {config_class}{did_you_mean(key, valid)}")
        elif not fits(value, known[key]):
            problems.append(f"{key}: must be {known[key]}; got {value!r}")
    return problems or check_steps(values)


def check_steps(values: dict[str, Any]) -> list[str]:
    """What is wrong with how long a trainer trains, where the types are right."""
    problems = [
        f"{key}: must be a whole number of at least 1; got {values[key]!r}"
        for key in WHOLE_NUMBERS
        if key in values and (not isinstance(values[key], int) or values[key] < 1)
    ]
    if values.get("num_train_epochs", 1) <= 0:
        problems.append(f"num_train_epochs: must be more than 0; got {values['num_train_epochs']!r}")
    return problems


def fits(value: Any, annotation: str) -> bool:
    """Whether a value can be of an annotated type; True where the annotation is more than plain types."""
    names = [part.strip().partition("[")[0] for part in annotation.split("|")]
    if not all(name in PLAIN_TYPES for name in names):
        return True
    allowed = tuple(kind for name in names for kind in PLAIN_TYPES[name])
    return isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
