"""A GRPO stage: problems, rewards, model and engine brought together, and trained."""

import math
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.nn import functional
from trl import GRPOConfig

from r1lite.memory import PACKED_TOKENS
from r1lite.models import load_model, load_tokenizer
from r1lite.packed_trainer import PackedTrainer
from r1lite.packing import pack, packed_attention
from r1lite.preflight import prove_golds
from r1lite.prompts import encode, opening, prompt_text, render
from r1lite.ranks import world_size
from r1lite.records import Problem
from r1lite.rollout_trainer import RolloutTrainer
from r1lite.rollouts import check_prompts, rollout_engine, train_from_engine
from r1lite.rubric import columns_of, load_reward
from r1lite.schedule import mixed_schedule
from r1lite.sharding import shards, zero_stage
from r1lite.stages.config import shares
from r1lite.training import device_type, training_arguments

if TYPE_CHECKING:
    from r1lite.stages.grpo import Config
    from r1lite.worker import Stage


def train_grpo(config: "Config", stage: "Stage") -> dict[str, Any]:
    """Train `config.model` and write model/, rollouts/ and metrics.jsonl. Returns facts for the manifest."""
    if (shards() or zero_stage()) and config.trainer.get("sync_ref_model"):
        raise ValueError(
            "trainer.sync_ref_model: is not kept over a resume by FSDP or DeepSpeed; take it out, or use ddp.yaml"
        )
    path = stage.resolve(config.model)
    tokenizer = load_tokenizer(path)
    sets = [stage.problems(part.use) for part in config.problems]
    problems = [problem for mine in sets for problem in mine]
    source = ", ".join(part.use for part in config.problems)
    for reward in config.rewards:
        prove_golds(reward, stage.resolve, config.prompt, tokenizer, problems, source)
    longest = check_prompts(config, tokenizer, problems)
    arguments = grpo_arguments(config, stage, longest, len(problems))
    kind = RolloutTrainer if config.stock else PackedTrainer
    n_rollouts = -(-arguments.max_steps // config.steps_per_rollout)
    per_rollout = shares(config.prompts_per_step * config.updates_per_rollout, [part.share for part in config.problems])
    for part, count in zip(config.problems, per_rollout, strict=True):
        if not count:
            raise ValueError(
                f"{part.use}: its share of {sum(per_rollout)} problems a rollout is less than one; raise its share, or "
                "prompts_per_step"
            )
    order = mixed_schedule([len(mine) for mine in sets], per_rollout, n_rollouts, config.seed)
    dataset = to_dataset(config.prompt, tokenizer, problems)
    model = load_model(path, "float32")
    trainer = kind(
        config,
        stage,
        model=model,
        reward_funcs=[load_reward(reward, stage.resolve) for reward in config.rewards],
        problems=dataset,
        args=arguments,
        train_dataset=dataset.select(order),
        processing_class=tokenizer,
    )
    if isinstance(trainer, PackedTrainer):
        trainer.longest = longest + config.max_tokens
        trainer.budget = token_budget(config, trainer.longest)
        prove_packing(model, [encode(tokenizer, render(config.prompt, p.problem)) for p in problems[:2]], trainer.half)
        if trainer.half and device_type() == "cuda" and config.trainer.get("torch_compile", True):
            trainer.compile()
    trainer.engine = rollout_engine(config, arguments, path, model, tokenizer, longest)
    # From here on `use_vllm` only turns on TRL's correction for an engine whose log-probs are not the trainer's own.
    trainer.use_vllm = trainer.engine.name == "vllm"
    return train_from_engine(trainer, stage, "GRPO")


def grpo_arguments(config: "Config", stage: "Stage", longest_prompt: int, n_problems: int) -> GRPOConfig:
    epochs = config.trainer.get("num_train_epochs")
    steps_an_epoch = n_problems / config.prompts_per_step * config.trainer.get("num_iterations", 1)
    arguments = training_arguments(
        stage,
        config,
        asked="prompts_per_step",
        rows_each=config.generations,
        row_tokens=longest_prompt + config.max_tokens,
        max_steps=config.trainer["max_steps"] if epochs is None else math.ceil(epochs * steps_an_epoch),
        arguments=GRPOConfig,
        num_generations=config.generations,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        reward_weights=[reward.weight for reward in config.rewards],
        shuffle_dataset=False,
        remove_unused_columns=False,
        steps_per_generation=1,  # set below, once the accumulation is known
        save_steps=config.save_steps,
        # To TRL a packed micro-batch is part of one whole: the batch of an optimizer step.
        **(
            {}
            if config.stock
            else {
                "per_device_train_batch_size": config.prompts_per_step * config.generations // world_size(),
                "gradient_accumulation_steps": 1,
                "torch_compile": False,  # of the whole model; here it is layer by layer
            }
        ),
    )
    arguments.steps_per_generation = arguments.gradient_accumulation_steps * config.updates_per_rollout
    arguments.generation_batch_size *= arguments.steps_per_generation
    return arguments


def to_dataset(template: str, tokenizer: Any, problems: list[Problem]) -> Dataset:
    prompts = [render(template, problem.problem) for problem in problems]
    prefill = [opening(prompt_text(tokenizer, prompt)) for prompt in prompts]
    columns = columns_of(problems, prefill)
    return Dataset.from_dict({**columns, "prompt": prompts, "problem_id": [problem.id for problem in problems]})


def token_budget(config: "Config", longest: int) -> int:
    """Tokens a micro-batch. Raises ValueError where the longest sequence that can come does not fit."""
    budget = config.tokens_per_micro_batch or max(longest, PACKED_TOKENS[device_type()])
    if budget < longest:
        raise ValueError(
            f"tokens_per_micro_batch: {budget} is less than the longest sequence that can come, the longest prompt and "
            f"max_tokens: {config.max_tokens}; set it to {longest} or more, or max_tokens to less"
        )
    return budget


def prove_packing(model: Any, prompts: list[list[int]], half: bool) -> None:
    """Raise ValueError where a model's sequences see one another in a row, as some architectures' layers let them."""
    tolerance = 0.1 if half else 1e-3
    ids = [torch.tensor([prompt], device=model.device) for prompt in prompts]
    width = max(map(len, prompts))
    padded = torch.cat([functional.pad(each, (width - each.shape[1], 0)) for each in ids])
    mask = torch.cat([functional.pad(torch.ones_like(each), (width - each.shape[1], 0)) for each in ids])
    inputs = pack(padded, mask, 1).inputs
    del inputs["shift_labels"]
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=half)
    with torch.no_grad(), autocast:
        apart = torch.cat([model(input_ids=each).logits[0] for each in ids]).log_softmax(-1)
        with packed_attention(model, half):
            together = model(**inputs).logits[0].log_softmax(-1)
    difference = (apart - together).abs().max().item()
    if not difference < tolerance:
        raise ValueError(
            f"packed in one row, sequences get other log-probs from this model than apart (by {difference:.3g}, where "
            f"{tolerance} is allowed): {type(model).__name__} has layers that see beyond a sequence, or attention that "
            "packed rows do not have; set `stock: true`"
        )
