"""GRPO by TRL's GRPOTrainer: the seams that it leaves open, filled.

It gets its rollouts from an `Engine`, its prompts in an order that follows from the seed alone, and a keeper
for every rollout. The loss, the advantages and all of GRPOConfig's other options are TRL's own.
"""

import math
import random
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from r1lite.curves import draw_training
from r1lite.engines import Completion, Engine, Sampling, TransformersEngine, VLLMEngine, pick_engine
from r1lite.metrics import mean_or_none, reflective_words
from r1lite.models import end_tokens, load_model, load_tokenizer
from r1lite.preflight import prove_golds
from r1lite.prompts import encode, opening, prompt_text, render, text_of
from r1lite.records import Problem, Rollout, read_rows, seed_from, write_parquet
from r1lite.rubric import columns_of, grade, load_reward
from r1lite.stages.config import Reward, shares
from r1lite.training import StageCallback, training_arguments

if TYPE_CHECKING:
    from r1lite.stages.grpo import Config
    from r1lite.worker import Stage

REFERENCE = "reference.safetensors"


def train_grpo(config: "Config", stage: "Stage") -> dict[str, Any]:
    """Train `config.model` and write model/, rollouts/ and metrics.jsonl. Returns facts for the manifest."""
    path = stage.resolve(config.model)
    tokenizer = load_tokenizer(path)
    sets = [stage.problems(part.use) for part in config.problems]
    problems = [problem for mine in sets for problem in mine]
    source = ", ".join(part.use for part in config.problems)
    for reward in config.rewards:
        prove_golds(reward, stage.resolve, config.prompt, tokenizer, problems, source)
    longest = check_prompts(config, tokenizer, problems)
    arguments = grpo_arguments(config, stage, longest, len(problems))
    n_rollouts = -(-arguments.max_steps // config.steps_per_rollout)
    per_rollout = shares(config.prompts_per_step * config.updates_per_rollout, [part.share for part in config.problems])
    for part, count in zip(config.problems, per_rollout, strict=True):
        if not count:
            raise ValueError(
                f"{part.use}: its share of {sum(per_rollout)} problems a rollout is less than one; raise its share, or "
                "prompts_per_step"
            )
    order = mixed_schedule([len(mine) for mine in sets], per_rollout, n_rollouts, config.seed)
    model = load_model(path, "float32")
    trainer = RolloutTrainer(
        config,
        stage,
        model=model,
        reward_funcs=[load_reward(reward, stage.resolve) for reward in config.rewards],
        args=arguments,
        train_dataset=to_dataset(config, tokenizer, problems).select(order),
        processing_class=tokenizer,
    )
    trainer.engine = rollout_engine(config, arguments, path, model, tokenizer, longest)
    # From here on `use_vllm` only turns on TRL's correction for an engine whose log-probs are not the trainer's own.
    trainer.use_vllm = trainer.engine.name == "vllm"
    return train_from_engine(trainer, stage, "GRPO")


def train_from_engine(trainer: Any, stage: "Stage", title: str) -> dict[str, Any]:
    """Train with rollouts from the trainer's engine, from where an interrupted run was. Returns facts."""
    callback = StageCallback(stage, trainer.args.max_steps, trainer)
    trainer.add_callback(callback)
    callback.train(trainer)
    trainer.engine.close()
    draw_training(stage.path, f"{stage.spec.recipe}/{stage.spec.stage}: {title}")
    return {
        "steps": trainer.args.max_steps,
        "engine": trainer.engine.name,
        "tokens_sampled": tokens_sampled(stage.path / "rollouts"),
        "last": callback.last,
    }


class EngineRollouts:
    """What makes a trainer of TRL's take its rollouts from `engine`, keep them as rows, and be probed on the way."""

    engine: Engine

    def prepare(self, config: Any, stage: "Stage", probed: list[Problem], judge: Reward | None) -> None:
        """`judge` says what is right among the completions of the probe's problems, whatever else it is about."""
        self.config, self.stage, self.probed = config, stage, probed
        self.judge = judge.model_copy(update={"about": None}) if judge else None
        self.seconds: dict[str, float] = {}
        self.sampled: list[Completion] = []
        self.synced_step = 0

    def sample(self: Any, prompt_ids: list[list[int]]) -> None:
        """Fill `sampled` with a completion for each prompt, which stands there once for each of its completions."""
        start = time.perf_counter()
        if self.state.global_step != self.synced_step:
            self.engine.sync(self.accelerator.unwrap_model(self.model))
            self.synced_step = self.state.global_step
        self.seconds["sync"] = time.perf_counter() - start
        n = self.config.generations
        sampling = Sampling(self.config.max_tokens, self.config.temperature, seed=self.rollout_seed())
        groups = self.engine.generate(prompt_ids[::n], n, sampling)
        self.sampled = [completion for group in groups for completion in group]
        self.seconds["generate"] = time.perf_counter() - start - self.seconds["sync"]

    def rollout_seed(self: Any) -> int:
        """A function of the step alone, so that a resumed run samples what the uninterrupted one would have."""
        return seed_from(f"{self.config.seed}/rollout/{self.state.global_step}/{self.accelerator.process_index}")

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        mine = [(row["problem_id"], c.token_ids, c.truncated) for row, c in zip(inputs, self.sampled, strict=True)]
        kept = self.rows_of(gather_object(mine))
        if self.accelerator.is_main_process:
            step = self.state.global_step
            write_parquet(
                self.stage.path / "rollouts" / f"step_{step:06d}.parquet", [{"step": step, **row.row()} for row in kept]
            )
        return batch

    def probe(self: Any) -> float:
        """pass@1 on the probe's problems with the weights of this moment; it draws from no random state but its own."""
        prompts = [encode(self.processing_class, render(self.config.prompt, p.problem)) for p in self.probed]
        self.engine.sync(self.accelerator.unwrap_model(self.model))
        sampling = Sampling(self.config.max_tokens, self.config.temperature, seed=self.config.seed)
        groups = self.engine.generate(prompts, self.config.probe.samples, sampling)
        reward = load_reward(self.judge, self.stage.resolve)
        _, scores, _ = grade(reward, self.processing_class, self.config.prompt, self.probed, groups)
        return fmean(score or 0.0 for score in scores)


class RolloutTrainer(EngineRollouts, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer whose rollouts come from `engine` and are kept as rows."""

    def __init__(self, config: "Config", stage: "Stage", **arguments: Any) -> None:
        super().__init__(**arguments)
        probed = stage.problems(config.probe.problems, config.probe.limit) if config.probe else []
        self.prepare(config, stage, probed, config.rewards[0])

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, **_: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        self.sample(prompt_ids)
        return [c.token_ids for c in self.sampled], [c.logprobs for c in self.sampled]

    def _calculate_rewards(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        rewards = super()._calculate_rewards(*arguments)
        self.seconds["grade"] = time.perf_counter() - start
        return rewards

    def rows_of(self, sampled: list[tuple[str, list[int], bool]]) -> list[Rollout]:
        """The rollout as rows; what TRL does not measure of it is added to the step's metrics."""
        scores = {name: list(values) for name, values in self._logs["rewards"].items()}
        rows = [
            Rollout(
                problem_id=problem_id,
                sample=index % self.num_generations,
                completion=text_of(completion),
                length=len(ids),
                truncated=truncated,
                rewards={name: nan_to_none(values[index]) for name, values in scores.items()},
                seed=self.rollout_seed(),
                advantage=advantage,
            )
            for index, ((problem_id, ids, truncated), completion, advantage) in enumerate(
                zip(sampled, self._logs["completion"], self._logs["advantages"], strict=True)
            )
        ]
        for name, value in measure(rows, self.config.rewards[0].name).items():
            if value is not None:
                self._metrics["train"][name].append(value)
        return rows

    def save_reference(self, checkpoint: Path) -> None:
        """Keep a reference model that follows the policy; TRL would start again from the initial one."""
        if self.ref_model is not None and self.args.sync_ref_model:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / REFERENCE))

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        if (Path(checkpoint) / REFERENCE).exists():
            load_safetensors(self.accelerator.unwrap_model(self.ref_model), str(Path(checkpoint) / REFERENCE))


def measure(kept: list[Rollout], right_by: str) -> dict[str, float | None]:
    """What figures 2 and 3 of the R1 paper show, and more: right and wrong go by the recipe's first reward, where it
    gives a score."""
    judged = [(row, score >= 1.0) for row in kept if (score := row.rewards[right_by]) is not None]
    return {
        "pass_rate": mean_or_none([float(right) for _, right in judged]),
        "length/right": mean_or_none([float(row.length) for row, right in judged if right]),
        "length/wrong": mean_or_none([float(row.length) for row, right in judged if not right]),
        "reflective_words": fmean(reflective_words(row.completion) for row in kept),
    }


def grpo_arguments(config: "Config", stage: "Stage", longest_prompt: int, n_problems: int) -> GRPOConfig:
    epochs = config.trainer.get("num_train_epochs")
    steps_an_epoch = n_problems / config.prompts_per_step * config.trainer.get("num_iterations", 1)
    arguments = training_arguments(
        stage,
        config,
        global_batch=config.prompts_per_step * config.generations,
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
    )
    arguments.steps_per_generation = arguments.gradient_accumulation_steps * config.updates_per_rollout
    arguments.generation_batch_size *= arguments.steps_per_generation
    return arguments


def schedule(n_problems: int, per_rollout: int, n_rollouts: int, seed: int) -> list[int]:
    """Which problem is asked when: `n_rollouts` runs of `per_rollout` indices, no index twice in a run.

    Every pass over the problems is a new permutation; what is left of one when it no longer fills a rollout is dropped.
    The order depends on nothing but the arguments, which is what makes a resumed run go on where it was.
    """
    if n_problems < per_rollout:
        raise ValueError(
            f"a rollout asks {per_rollout} different problems (prompts_per_step x updates_per_rollout), "
            f"but there are only {n_problems}"
        )
    rng = random.Random(f"schedule/{seed}")
    order: list[int] = []
    while len(order) < n_rollouts * per_rollout:
        permutation = rng.sample(range(n_problems), n_problems)
        order += permutation[: n_problems // per_rollout * per_rollout]
    return order[: n_rollouts * per_rollout]


def mixed_schedule(sizes: list[int], per_rollout: list[int], n_rollouts: int, seed: int) -> list[int]:
    """Indices into sets of problems laid one after the other, of each set so many a rollout, each in its own order."""
    orders = [schedule(size, count, n_rollouts, seed) for size, count in zip(sizes, per_rollout, strict=True)]
    first = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        start + index
        for rollout in range(n_rollouts)
        for start, order, count in zip(first, orders, per_rollout, strict=True)
        for index in order[rollout * count : (rollout + 1) * count]
    ]


def tokens_sampled(rollouts: Path) -> int:
    """All tokens of a stage's rollouts, before an interruption and since."""
    return sum(row["length"] for file in rollouts.glob("*.parquet") for row in read_rows(file))


def to_dataset(config: "Config", tokenizer: Any, problems: list[Problem]) -> Dataset:
    prompts = [render(config.prompt, problem.problem) for problem in problems]
    prefill = [opening(prompt_text(tokenizer, prompt)) for prompt in prompts]
    columns = columns_of(problems, prefill)
    return Dataset.from_dict({**columns, "prompt": prompts, "problem_id": [problem.id for problem in problems]})


def check_prompts(config: Any, tokenizer: Any, problems: list[Problem]) -> int:
    """The length of the longest prompt in tokens; ValueError when the tokenizer cannot read the prompts."""
    encoded = [encode(tokenizer, render(config.prompt, problem.problem)) for problem in problems]
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in ids for ids in encoded):
        example = next(p for p, ids in zip(problems, encoded, strict=True) if tokenizer.unk_token_id in ids)
        raise ValueError(
            f"the tokenizer of {config.model} has no tokens for the prompt {render(config.prompt, example.problem)!r}; "
            f"use another prompt template than {config.prompt!r}, or a model made for these problems"
        )
    return max(len(ids) for ids in encoded)


def rollout_engine(
    config: Any, arguments: TrainingArguments, path: Path, model: Any, tokenizer: Any, longest_prompt: int
) -> Engine:
    """vLLM beside the model, or the model itself."""
    eos_token_ids = end_tokens(model.generation_config, tokenizer)
    if pick_engine(config.engine) == "transformers":
        return TransformersEngine(model, eos_token_ids, tokenizer.pad_token_id)
    return VLLMEngine(
        path,
        eos_token_ids,
        longest_prompt + config.max_tokens,
        config.seed,
        memory_share=arguments.vllm_gpu_memory_utilization,
        dtype="bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
    )


def nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value
