"""On-policy distillation (arXiv 2306.13649) by TRL's DistillationTrainer: a student learns a teacher's distribution on
the completions that it samples itself. Plain distillation, as R1's, is `sample` with a teacher, then `sft`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite.stages import grpo
from r1lite.stages.config import EngineName, ModelReference, ProblemsReference, Reward, StageConfig
from r1lite.trainer_keys import check_trainer

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "prompts_per_step, generations and micro_batch",
    "model_init_kwargs": "model",
    **dict.fromkeys(
        ("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"),
        "teacher",
    ),
    "trust_remote_code": "nothing: no code that comes with a model is run",
    **dict.fromkeys(
        (
            *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
            *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
            *("vllm_group_port", "vllm_max_model_length", "vllm_tensor_parallel_size", "cache_implementation"),
        ),
        "engine",
    ),
    "generation_kwargs": "temperature and max_tokens",
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty"),
        "temperature alone: any other cut makes the sampled distribution unlike the trained one",
    ),
    **dict.fromkeys(("seed", "data_seed"), "the recipe's seed"),
    **dict.fromkeys(("output_dir", "logging_dir"), "the option --runs"),
    **dict.fromkeys(("shuffle_dataset", "remove_unused_columns"), "the order that the recipe's seed gives"),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "log_completions", "disable_tqdm"), "metrics.jsonl and rollouts/"
    ),
    **dict.fromkeys(("do_train", "do_eval", "eval_strategy", "eval_steps"), "probe"),
    "resume_from_checkpoint": "the same command again, which resumes",
    "save_strategy": "save_steps",
    "save_total_limit": "nothing: the two newest checkpoints are kept while training",
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
        wrong = check_trainer(self.trainer, "DistillationConfig", OWNED)
        yield from (f"trainer.{fault}" for fault in wrong)
        for key in ("max_steps", "save_steps"):
            value = self.trainer.get(key, 1)
            if not wrong and (not isinstance(value, int) or value < 1):
                yield f"trainer.{key}: must be a whole number of at least 1; got {value!r}"
        if not wrong and not 0 <= self.trainer.get("beta", 1) <= 1:
            yield f"trainer.beta: must be from 0 (forward KL) to 1 (reverse KL); got {self.trainer['beta']!r}"
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
