"""On-policy distillation (arXiv 2306.13649) by TRL's DistillationTrainer: a student learns a teacher's distribution on
the completions that it samples itself. Plain distillation, as R1's, is `sample` with a teacher, then `sft`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import trainer_keys
from r1lite.stages import grpo
from r1lite.stages.config import EngineName, ModelReference, ProblemsReference, Reward, StageConfig

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    **trainer_keys.OWNED_WITH_ROLLOUTS,
    "model_init_kwargs": "model",
    **dict.fromkeys(
        ("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"),
        "teacher",
    ),
    "trust_remote_code": "nothing: no code that comes with a model is run",
    "cache_implementation": "engine",
}
STATED = {
    "learning_rate": "since it decides what is learned",
    "beta": "1.0 for the reverse KL, which is on-policy distillation's usual one, 0.0 for the forward",
}


class Probe(grpo.Probe):
    """A distillation has no reward of its own, so its probe brings one."""

    reward: Reward = Reward(use="rewards.math:accuracy")


class Config(StageConfig):
    """Batches are stated globally: one optimizer step learns from `prompts_per_step` x `generations` completions, all
    sampled by the student of that moment. `temperature` is that of the sampling and of both distributions in the loss.
    `micro_batch` completions go through the models at once; where it is absent it follows from the hardware.
    """

    PRODUCES: ClassVar[tuple[str, ...]] = ("model",)

    kind: Literal["distill"]
    model: ModelReference = Field(description="the student, as it is before")
    teacher: ModelReference = Field(description="a model with the student's tokenizer")
    problems: ProblemsReference
    prompts_per_step: int = Field(gt=0, description="how many different problems an optimizer step learns from")
    generations: int = Field(1, gt=0, description="completions per problem")
    max_tokens: int = Field(gt=0, description="the longest completion, in tokens")
    temperature: float = Field(1.0, gt=0)
    micro_batch: int | None = Field(None, gt=0)
    engine: EngineName = "auto"
    probe: Probe | None = None
    trainer: dict[str, Any] = Field(description="DistillationConfig's own keys, such as learning_rate and beta")

    def faults(self) -> Iterator[str]:
        for fault in trainer_keys.check_trainer(self.trainer, "DistillationConfig", OWNED):
            yield f"trainer.{fault}"
        beta = self.trainer.get("beta", 1)
        if isinstance(beta, int | float) and not 0 <= beta <= 1:
            yield f"trainer.beta: must be from 0 (forward KL) to 1 (reverse KL); got {beta!r}"
        for key, why in STATED.items():
            if key not in self.trainer:
                yield f"trainer.{key}: missing; state it, {why}"
        if ("max_steps" in self.trainer) == ("num_train_epochs" in self.trainer):
            yield "trainer: state one of max_steps and num_train_epochs"
        batch = self.prompts_per_step * self.generations
        if self.micro_batch and batch % self.micro_batch:
            yield f"micro_batch: {self.micro_batch} does not divide prompts_per_step x generations = {batch}"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    from r1lite.distillation import train_distill

    return train_distill(config, stage)
