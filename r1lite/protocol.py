"""How a number was measured, so that two numbers can be held against each other, or not."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from r1lite.artifacts import read_json
from r1lite.models import fingerprint, load_tokenizer
from r1lite.plugins import source_hashes
from r1lite.prompts import CHAT, TEMPLATES
from r1lite.records import Problem, digest
from r1lite.stages.config import Reward

GRADING = ("math-verify", "sympy", "latex2sympy2_extended")
LIKE = (
    "prompt", "template", "chat_template", "temperature", "top_p", "max_tokens", "engine", "dtype", "problems",
    "n_samples", "graders", "versions",
)  # fmt: skip


def graders(rewards: list[Reward]) -> dict[str, str]:
    """Each grader with the hash of its arguments and of its source, what that imports of this project included."""
    return {
        reward.use: short({"args": reward.args, "columns": reward.columns, "source": source_hashes(reward.use)})
        for reward in rewards
    }


def grading_versions() -> dict[str, str]:
    return {name: version(name) for name in GRADING}


def problems_key(problems: list[Problem]) -> str:
    """The same for the same questions with the same answers, in whatever order or file they come."""
    return short(sorted(problem.id for problem in problems))


def template_hash(prompt: str) -> str:
    return short(TEMPLATES[prompt])


def model_facts(path: Path, prompt: str) -> dict[str, Any]:
    config = read_json(path / "config.json")
    chat_template = load_tokenizer(path).chat_template if prompt in CHAT else None
    return {
        "weights": short(fingerprint(str(path))),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "chat_template": None if chat_template is None else short(chat_template),
    }


def facts(report: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for a result to be comparable with another's.

    Not the seed: other samples of the same protocol are comparable. Nor the model, but for what it is run as: its
    number format, and its chat template where the prompt is put through it.
    """
    protocol = report["protocol"]
    model, of = protocol["models"].get(result["model"], {}), protocol["problems"][result["problems"]]
    known = {**protocol, **model, **of, "n_samples": result["n_samples"]}
    known["problems"] = of["key"]
    return {name: known.get(name) for name in LIKE}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [f"{name}: {one[name]} here, {other[name]} there" for name in LIKE if one[name] != other[name]]


def short(value: Any) -> str:
    return digest(value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:12]
