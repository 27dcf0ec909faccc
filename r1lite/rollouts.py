"""What trainers of TRL's need to take their rollouts from an `Engine`: for GRPO and on-policy distillation alike.

The order of the prompts follows from the seed alone, every rollout is kept as rows, and each phase of a step is timed.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import TrainingArguments

from r1lite.engines import Completion, Engine, Finished, Sampling, TransformersEngine, in_order, pick_engine
from r1lite.memory import MEMORY_SHARE
from r1lite.models import end_tokens
from r1lite.prompts import encode, render
from r1lite.records import Problem, Rollout, read_rows, seed_from, write_parquet
from r1lite.rubric import grade, load_reward
from r1lite.serving import SERVERS
from r1lite.sharding import shards
from r1lite.stages.config import Reward
from r1lite.sync_proof import prove_sync
from r1lite.training import StageCallback, precision
from r1lite.vllm_engine import VLLMEngine
from r1lite.vllm_servers import VLLMServers
from r1lite.watchdog import watched

if TYPE_CHECKING:
    from r1lite.worker import Stage


# What a row of a rollout is made of on the rank that sampled it: problem_id, token ids, truncated, seed.
Sampled = tuple[str, list[int], bool, int]


def train_from_engine(trainer: Any, stage: "Stage", title: str) -> dict[str, Any]:
    """Train with rollouts from the trainer's engine, from where an interrupted run was. Returns facts."""
    callback = StageCallback(stage, trainer.args.max_steps, trainer)
    trainer.add_callback(callback)
    callback.train(trainer, title)
    trainer.engine.close()
    return {
        "steps": trainer.args.max_steps,
        "engine": trainer.engine.name,
        "tokens_sampled": tokens_sampled(stage.path / "rollouts"),
        "last": callback.last,
    }


class EngineRollouts:
    """What makes a trainer of TRL's take its rollouts from `engine`, keep them as rows, and be probed on the way."""

    engine: Engine
    steps_per_rollout = 1  # optimizer steps

    def prepare(self, config: Any, stage: "Stage", probed: list[Problem], judge: Reward | None) -> None:
        """`judge` says what is right among the completions of the probe's problems, whatever else it is about."""
        self.config, self.stage, self.probed = config, stage, probed
        self.judge = judge.model_copy(update={"about": None}) if judge else None
        self.seconds: dict[str, float] = {}  # by phase, of the step that goes on
        self.rollout: list[Any] = []  # groups of completions, each with its seed
        self.synced_step = -1

    @property
    def sampled(self) -> list[Completion]:
        return [completion for group in self.rollout for completion in group.completions]

    def sample(self: Any, prompts: list[list[int]], round_: int = 0) -> Iterator[list[Finished]]:
        """A group of completions for each prompt, by the newest weights: those that are done, while the rest goes on.

        The step's time of generating ends with the last completion. What is done with the others until then costs
        nothing, so it counts as generating too, and only what is left to do after it as grading.
        """
        self.sync(prompts[:4])
        sampling = Sampling(self.config.max_tokens, self.config.temperature, seed=self.rollout_seed(round_))
        start = arrived = graded = time.perf_counter()
        for finished in self.engine.generate(prompts, self.config.generations, sampling):
            arrived = time.perf_counter()
            yield finished
            graded = time.perf_counter()
        self.spend("generate", arrived - start)
        self.spend("grade", graded - arrived)

    def sync(self: Any, prompts: list[list[int]]) -> None:
        """Hand the engine the newest weights, if it has not got them, and prove that it has them."""
        if self.state.global_step == self.synced_step:
            return
        model = self.accelerator.unwrap_model(self.model)
        with watched("the weight sync"), self.timed("sync"):
            self.engine.sync(model)
        with watched("the proof of a weight sync"), self.timed("prove_sync"):
            prove_sync(self.engine, model, prompts, self.config.temperature, self.config.max_tokens)
        self.synced_step = self.state.global_step

    def training_step(self: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        before, start = sum(self.seconds.values()), time.perf_counter()
        loss: torch.Tensor = super().training_step(*arguments, **named)  # type: ignore[misc]
        rest = time.perf_counter() - start - (sum(self.seconds.values()) - before)
        self.spend("forward_backward", rest)
        return loss

    def spend(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def speed(self, elapsed: float) -> dict[str, float]:
        """What else than the seconds of its phases tells how fast a step of `elapsed` seconds was."""
        return {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add what is done here to a phase of the step; a GPU's work is waited for, and so counted where it belongs."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spend(phase, time.perf_counter() - start)

    def rollout_seed(self: Any, round_: int = 0) -> int:
        """A function of the step alone, so that a resumed run samples what the uninterrupted one would have."""
        place = f"{self.config.seed}/rollout/{self.state.global_step}/{self.accelerator.process_index}"
        return seed_from(f"{place}/{round_}" if round_ else place)

    def keep(self: Any, inputs: list[dict[str, Any]], left_out: list[Rollout]) -> None:
        """Write all ranks' rollout of this step as rows, and after it what was sampled and left out."""
        seeds = [group.seed for group in self.rollout for _ in group.completions]
        mine = [
            (row["problem_id"], completion.token_ids, completion.truncated, seed)
            for row, completion, seed in zip(inputs, self.sampled, seeds, strict=True)
        ]
        kept = self.rows_of(gather_object(mine)) + gather_object(left_out)
        if self.accelerator.is_main_process:
            step = self.state.global_step
            write_parquet(
                self.stage.path / "rollouts" / f"step_{step:06d}.parquet", [{"step": step, **row.row()} for row in kept]
            )

    def probe(self: Any) -> float:
        """pass@1 on the probe's problems, of which each process asks its share, with the weights of this moment; it
        draws from no random state but its own."""
        prompts = [encode(self.processing_class, render(self.config.prompt, p.problem)) for p in self.probed]
        self.sync(prompts[:4])
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        scores: list[float | None] = []
        if mine := self.probed[rank::ranks]:
            sampling = Sampling(self.config.max_tokens, self.config.temperature, seed=self.config.seed + rank)
            groups = in_order(self.engine.generate(prompts[rank::ranks], self.config.probe.samples, sampling))
            reward = load_reward(self.judge, self.stage.resolve)
            _, scores, _ = grade(reward, self.processing_class, self.config.prompt, mine, groups)
        return fmean(gather_object([score or 0.0 for score in scores]))


def rollout_engine(
    config: Any, arguments: TrainingArguments, path: Path, model: Any, tokenizer: Any, longest_prompt: int
) -> Engine:
    """vLLM on GPUs of its own, vLLM beside the model, or the model itself."""
    eos_token_ids = end_tokens(model.generation_config, tokenizer)
    longest = longest_prompt + config.max_tokens
    if SERVERS in os.environ:
        return VLLMServers(path, eos_token_ids, longest, config.seed, precision(arguments))
    if pick_engine(config.engine) == "transformers":
        if shards():
            raise ValueError(
                "engine: transformers samples from the model itself, of which each process has a part only; "
                "take vllm, or set launch.accelerate to recipes/accelerate/ddp.yaml"
            )
        return TransformersEngine(model, eos_token_ids, tokenizer.pad_token_id)
    return VLLMEngine(
        path,
        eos_token_ids,
        longest,
        config.seed,
        precision(arguments),
        config.trainer.get("vllm_gpu_memory_utilization", MEMORY_SHARE),
        arguments.vllm_enable_sleep_mode,
    )


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


def tokens_sampled(rollouts: Path) -> int:
    """All tokens of a stage's rollouts, before an interruption and since."""
    return sum(row["length"] for file in rollouts.glob("*.parquet") for row in read_rows(file))
