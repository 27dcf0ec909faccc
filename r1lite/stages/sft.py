"""SFT: the cold start and the second fine-tuning of R1 (arXiv 2501.12948), by TRL's SFTTrainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import trainer_keys
from r1lite.prompts import CHAT
from r1lite.stages.config import ExamplesReference, ModelReference, StageConfig

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    **trainer_keys.OWNED,
    "per_device_train_batch_size": "rows_per_step and micro_batch",
    "gradient_accumulation_steps": "rows_per_step and micro_batch",
    "average_tokens_across_devices": "nothing: a step's loss is the mean over all of its tokens, on however many GPUs",
    "max_length": "max_tokens",
    "truncation_mode": "max_tokens: an example that is longer loses its end",
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "nothing: completions are learned, prompts never"),
    **dict.fromkeys(("dataset_text_field", "dataset_kwargs", "dataset_num_proc"), "examples"),
    **dict.fromkeys(("packing_strategy", "padding_free"), "packing: on or off; an example never sees another"),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "model"),
    "pad_token": "nothing: padding is neither read nor learned",
    **dict.fromkeys(
        ("shuffle_dataset", "train_sampling_strategy", "remove_unused_columns"),
        "the order that the recipe's seed gives",
    ),
    **dict.fromkeys(("do_train", "do_eval", "eval_strategy", "eval_steps", "eval_packing"), "an eval stage"),
}


class Config(StageConfig):
    """Batches are stated globally: an optimizer step learns from `rows_per_step` rows of at most `max_tokens` tokens.

    A row holds as many examples as fit, or one where `trainer.packing` is false. `micro_batch` rows go through the
    model at once; where it is absent it follows from the hardware.
    """

    PRODUCES: ClassVar[tuple[str, ...]] = ("model",)

    kind: Literal["sft"]
    model: ModelReference
    examples: list[ExamplesReference] = Field(min_length=1, description="name what to learn: $stage, a card or a file")
    rows_per_step: int = Field(gt=0, description="how many packed rows an optimizer step learns from")
    max_tokens: int = Field(gt=0, description="the length of a row, and of the longest example, prompt included")
    micro_batch: int | None = Field(None, gt=0)
    trainer: dict[str, Any] = Field(description="SFTConfig's own keys, such as learning_rate and num_train_epochs")

    @property
    def packing(self) -> bool:
        return bool(self.trainer.get("packing", True))

    def faults(self) -> Iterator[str]:
        for fault in trainer_keys.check_trainer(self.trainer, "SFTConfig", OWNED):
            yield f"trainer.{fault}"
        if "learning_rate" not in self.trainer:
            yield "trainer.learning_rate: missing; state it, since it depends on the model"
        if ("max_steps" in self.trainer) == ("num_train_epochs" in self.trainer):
            yield "trainer: state one of max_steps and num_train_epochs"
        if self.micro_batch and self.rows_per_step % self.micro_batch:
            yield f"micro_batch: {self.micro_batch} does not divide rows_per_step = {self.rows_per_step}"
        template = self.trainer.get("chat_template_path")
        if template is not None and self.prompt not in CHAT:
            yield (
                f"trainer.chat_template_path: {template} would not be used, since prompt: {self.prompt} is a text "
                f"template; leave it out, or set prompt to one of {', '.join(CHAT)}"
            )
        elif template is not None and not (template.endswith((".jinja", ".j2")) and Path(template).is_file()):
            yield f"trainer.chat_template_path: must be a .jinja file; there is none at {template} (in {Path.cwd()})"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    from r1lite.finetune import train_sft

    return train_sft(config, stage)
