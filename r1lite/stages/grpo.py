"""GRPO: R1-Zero, and both RL stages of R1 (arXiv 2501.12948v2, §2.1 and §3.2), by TRL's GRPOTrainer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import trainer_keys
from r1lite.stages.config import (
    EngineName,
    Mixture,
    ModelReference,
    ProblemsReference,
    Reward,
    StageConfig,
    Strict,
)

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    **trainer_keys.OWNED_WITH_ROLLOUTS,
    "num_generations": "generations",
    "generation_batch_size": "prompts_per_step and updates_per_rollout",
    "steps_per_generation": "updates_per_rollout",
    "reward_weights": "the weight of each reward",
    "use_transformers_continuous_batching": "engine",
}
STATED = ("learning_rate", "loss_type", "scale_rewards", "beta")  # TRL's defaults are not R1's, so a recipe says them


class Probe(Strict):
    """A small fixed set of held-out problems on which pass@1 is followed while training."""

    problems: ProblemsReference
    limit: int = Field(64, gt=0)
    samples: int = Field(4, gt=0)
    every_steps: int = Field(5, gt=0)


class Config(StageConfig):
    """Batches are stated globally: one optimizer step learns from `prompts_per_step` x `generations` completions.

    `updates_per_rollout` optimizer steps share one rollout of that many times the prompts (R1-Zero: 16).
    Whole sequences go through the model packed in rows of at most `tokens_per_micro_batch`, which bounds the memory;
    with `stock` they go padded, `micro_batch` completions at once, as TRL has it. Where these are absent they follow
    from the hardware. Of several sets of `problems` each rollout asks the same share, and a reward may be `about` some.
    """

    PRODUCES: ClassVar[tuple[str, ...]] = ("model",)

    kind: Literal["grpo"]
    model: ModelReference
    problems: Mixture = Field(description="what is asked: card.yaml#split, $stage or a file; or a list of {use, share}")
    rewards: list[Reward] = Field(min_length=1)
    prompts_per_step: int = Field(gt=0, description="how many different problems an optimizer step learns from")
    generations: int = Field(gt=1, description="completions per problem, the group of GRPO")
    max_tokens: int = Field(gt=0, description="the longest completion, in tokens")
    temperature: float = Field(gt=0, description="the rollout temperature; R1-Zero used 1")
    updates_per_rollout: int = Field(1, gt=0)
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="at most so many rounds in which groups without signal give way to other problems' (DAPO)",
    )
    maxrl: bool = Field(False, description="divide advantages by the group's mean reward (arXiv 2602.02710)")
    stock: bool = Field(False, description="TRL's own padded forward and backward passes, to compare with")
    tokens_per_micro_batch: int | None = Field(None, gt=0)
    micro_batch: int | None = Field(None, gt=0)
    engine: EngineName = "auto"
    probe: Probe | None = None
    trainer: dict[str, Any] = Field(description="GRPOConfig's own keys, such as learning_rate and loss_type")

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that share one rollout."""
        return self.updates_per_rollout * int(self.trainer.get("num_iterations", 1))

    @property
    def save_steps(self) -> int:
        """Optimizer steps between checkpoints: about 50, always after whole rollouts."""
        return int(self.trainer.get("save_steps", -(-50 // self.steps_per_rollout) * self.steps_per_rollout))

    def faults(self) -> Iterator[str]:
        wrong = trainer_keys.check_trainer(self.trainer, "GRPOConfig", OWNED)
        yield from (f"trainer.{fault}" for fault in wrong)
        for key in STATED:
            if key not in self.trainer:
                yield f"trainer.{key}: missing; state it, since TRL's default is not R1's"
        if ("max_steps" in self.trainer) == ("num_train_epochs" in self.trainer):
            yield "trainer: state one of max_steps and num_train_epochs"
        batch = self.prompts_per_step * self.generations
        if self.micro_batch and batch % self.micro_batch:
            valid = [size for size in range(1, batch + 1) if batch % size == 0]
            nearest = min(valid, key=lambda size: abs(size - (self.micro_batch or 1)))
            yield (
                f"micro_batch: {self.micro_batch} does not divide prompts_per_step x generations = {batch}; "
                f"the nearest that does is {nearest}"
            )
        if not wrong and self.save_steps % self.steps_per_rollout:
            yield (
                f"trainer.save_steps: {self.save_steps} is no multiple of updates_per_rollout x num_iterations = "
                f"{self.steps_per_rollout}; a run resumed inside a rollout would not be the run that was interrupted"
            )
        if self.micro_batch and not self.stock:
            yield "micro_batch: goes with `stock: true`; packed rows have tokens_per_micro_batch"
        if self.tokens_per_micro_batch and self.stock:
            yield "tokens_per_micro_batch: goes with packed rows; `stock: true` has micro_batch"
        if self.maxrl and self.trainer.get("scale_rewards", "none") != "none":
            scale = self.trainer["scale_rewards"]
            yield f"maxrl: divides by the group's mean and nothing else; set trainer.scale_rewards: none, not {scale!r}"
        by_total = "maxrl" if self.maxrl else "dynamic_sampling" if self.dynamic_sampling else None
        if by_total and self.trainer.get("multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            yield f"{by_total}: goes by the total reward; set trainer.multi_objective_aggregation: sum_then_normalize"
        names = [reward.name for reward in self.rewards]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"rewards: two are named {name!r}, and metrics go by name; rename one function"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    from r1lite.trainer import train_grpo

    return train_grpo(config, stage)
