"""A reward model for what no rule can grade, learned from preferences (arXiv 2501.12948v2, §3.1), by TRL's
RewardTrainer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import trainer_keys
from r1lite.stages.config import ModelReference, ProblemsReference, StageConfig

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    **trainer_keys.OWNED,
    "max_length": "max_tokens",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "pairs_per_step and micro_batch",
    "model_init_kwargs": "model",
    "trust_remote_code": "a model that transformers knows: no code of a model is run",
    **dict.fromkeys(("chat_template_path", "eos_token", "pad_token"), "a model whose tokenizer has what is needed"),
    "dataset_num_proc": "nothing: r1lite makes the tokens itself",
    "train_sampling_strategy": "the order that the recipe's seed gives",
    **dict.fromkeys(("do_train", "do_eval", "eval_strategy", "eval_steps"), "held_out"),
}


class Config(StageConfig):
    """A causal LM gets a head of one score, and learns to score `chosen` above `rejected`.

    Both are final answers, without reasoning or tags, since that is all of a completion that
    `rewards.model:helpfulness` shows to the model; and `prompt` is to be that of the stage which the model will reward.
    One optimizer step learns from `pairs_per_step` pairs, of which `micro_batch` go through the model at once. What has
    more than `max_tokens` tokens, prompt and answer together, loses its beginning, in training and whenever the model
    scores.

    The accuracy is measured on at least `held_out` pairs: all those of problems that the seed picks, and none of which
    is trained on.
    """

    PRODUCES: ClassVar[tuple[str, ...]] = ("reward_model",)

    kind: Literal["reward_model"]
    model: ModelReference = Field(description="the causal language model to start from")
    pairs: ProblemsReference = Field(
        description="rows of problem, chosen and rejected, such as data/courtesy.yaml#pairs"
    )
    held_out: int = Field(0, ge=0)
    pairs_per_step: int = Field(gt=0, description="how many pairs an optimizer step learns from; R1 took 256")
    max_tokens: int = Field(gt=0, description="the longest prompt with its answer, in tokens; R1 took 8192")
    micro_batch: int | None = Field(None, gt=0)
    trainer: dict[str, Any] = Field(description="RewardConfig's own keys, such as learning_rate and num_train_epochs")

    def faults(self) -> Iterator[str]:
        for fault in trainer_keys.check_trainer(self.trainer, "RewardConfig", OWNED):
            yield f"trainer.{fault}"
        if "learning_rate" not in self.trainer:
            yield "trainer.learning_rate: missing; state it, since TRL's default is not R1's (6.0e-6)"
        if ("max_steps" in self.trainer) == ("num_train_epochs" in self.trainer):
            yield "trainer: state one of max_steps and num_train_epochs"
        if self.micro_batch and self.pairs_per_step % self.micro_batch:
            yield f"micro_batch: {self.micro_batch} does not divide pairs_per_step = {self.pairs_per_step}"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    from r1lite.preference import train_reward_model

    return train_reward_model(config, stage)
