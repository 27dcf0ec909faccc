"""Does a recipe fit on some hardware? For `r1lite plan RECIPE --hardware 8xH100`."""

import json
import math
import re
from pathlib import Path
from typing import Any

from r1lite import models
from r1lite.launch import SHARED, ZERO, Launch
from r1lite.memory import MEMORY_SHARE, PACKED_TOKENS, WHOLE_GPU, Setting, Shape
from r1lite.recipe import Recipe
from r1lite.stages import grpo
from r1lite.strict_yaml import load_yaml

# What CUDA reports of a card, in GiB.
CARDS = {"A100": 79.1, "H100": 79.1, "H200": 139.8, "B200": 178.0, "L40S": 44.4, "RTX4090": 23.5}
HARDWARE = re.compile(r"(?:(\d+)x)?([A-Za-z0-9.]+)")
PARTS = ((SHARED, None), (ZERO, 3))
PROMPT = 512  # tokens that a prompt is taken to have


def setting_of(config: grpo.Config, recipe: Recipe, hardware: str) -> Setting:
    """Of a GRPO stage on such hardware. Raises ValueError where `launch:` wants more GPUs than a machine has."""
    there, card = parse_hardware(hardware)
    launch = recipe.launch
    servers = launch.rollouts if launch and config.engine != "transformers" else None
    beside = servers.gpus if servers and not servers.nodes else 0
    if servers and servers.gpus + (not servers.nodes) > there:
        raise ValueError(f"launch.rollouts: {servers.gpus} GPUs of each machine are too many for {hardware}")
    wanted = 1 if launch is None else launch.gpus or there - beside
    if wanted > there - beside:
        of_servers = f" and {beside} of launch.rollouts" if beside else ""
        raise ValueError(f"launch.gpus: {wanted}{of_servers} are more than the {there} of {hardware}")
    longest = PROMPT + config.max_tokens
    trainer = config.trainer
    return Setting(
        card=card,
        gpus=wanted * (launch.num_machines or 1 if launch else 1),
        longest=longest,
        budget=config.tokens_per_micro_batch or max(longest, PACKED_TOKENS["cuda"]),
        completions=config.prompts_per_step * config.generations * config.updates_per_rollout,
        share=WHOLE_GPU if servers else trainer.get("vllm_gpu_memory_utilization", MEMORY_SHARE),
        reference=bool(trainer.get("beta")),
        checkpoints=trainer.get("gradient_checkpointing", True),
        sleeps=trainer.get("vllm_enable_sleep_mode", False),
        shards=launch is not None and in_parts(launch),
        servers=servers.count if servers else 0,
        server_gpus=servers.tensor_parallel if servers else 1,
    )


def in_parts(launch: Launch) -> bool:
    """Whether each GPU has a part of the model only; where it has one of gradients and optimizer alone, as by ZeRO-2,
    what it takes is overestimated."""
    settings: dict[str, Any] = load_yaml(Path(launch.accelerate))
    return (settings["distributed_type"], settings.get("deepspeed_config", {}).get("zero_stage")) in PARTS


def parse_hardware(hardware: str) -> tuple[int, float]:
    """GPUs, and GiB of each. Example: parse_hardware("8xH100") == (8, 79.1); a number stands for GiB, as in 4x48."""
    found = HARDWARE.fullmatch(hardware)
    name = found[2].upper() if found else ""
    try:
        gib = CARDS[name] if name in CARDS else float(name)
    except ValueError:
        gib = 0.0
    if not found or not 0 < gib < math.inf or found[1] == "0":
        raise ValueError(
            f"--hardware {hardware}: write the GPUs of a machine as 8xH100, with one of {', '.join(CARDS)}, or with "
            "the GiB of one, as in 4x48"
        )
    return int(found[1] or 1), gib


def shape_of(recipe: Recipe, model: str) -> Shape:
    """Of the model behind a reference: an earlier stage's is that of the model which it began with."""
    if model.startswith("$"):
        parent: Any = recipe.stages[model[1:]]
        if parent.kind == "base":
            return read_shape({"model_type": "qwen3", "vocab_size": 1024, **parent.model}, model)
        return shape_of(recipe, parent.model)
    path = models.locate(model)
    if path is None:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, "config.json")).parent
    return read_shape(json.loads((path / "config.json").read_text()), model)


def read_shape(config: dict[str, Any], model: str) -> Shape:
    """From a config.json. Raises ValueError where that is none of a plain decoder."""
    try:
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        if config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts"):
            raise KeyError("it is a mixture of experts")
        return Shape(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            heads * width,
            config.get("num_key_value_heads", heads) * width,
            config["vocab_size"],
            config.get("tie_word_embeddings", False),
            config.get("model_type") == "qwen3",
        )
    except KeyError as error:
        raise ValueError(f"the memory of {model} cannot be estimated from its config.json: {error}") from None
