"""Pre-training of a small causal LM from scratch on a generated corpus, for where no weights can be downloaded."""

import random
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite import trainer_keys
from r1lite.observe import say
from r1lite.plugins import load_function, load_module
from r1lite.prompts import render
from r1lite.stages.config import FunctionReference, StageConfig, Strict, shares

if TYPE_CHECKING:
    from r1lite.worker import Stage

OWNED = {
    **trainer_keys.OWNED,
    "per_device_train_batch_size": "documents_per_step and micro_batch",
    "gradient_accumulation_steps": "documents_per_step and micro_batch",
    "max_steps": "documents: each is seen once",
    "num_train_epochs": "documents: each is seen once",
    **dict.fromkeys(("do_train", "do_eval", "eval_strategy", "eval_steps"), "an eval stage"),
    "train_sampling_strategy": "the order that the recipe's seed gives",
}


class Writer(Strict):
    """What writes documents: called with `count` and `seed` it yields rows of `problem` and `completion`."""

    use: FunctionReference = Field(description="name a function, such as data/chain.py:documents")
    share: float = Field(1.0, gt=0)


class Config(StageConfig):
    """The corpus is written by several hands, each with its share of the documents; the prompt template joins a
    document's problem and completion. The tokenizer has one token for each string in the `TOKENS` beside the functions.
    `model` holds Qwen3Config's keys.
    """

    PRODUCES: ClassVar[tuple[str, ...]] = ("model",)

    kind: Literal["base"]
    corpus: list[Writer] = Field(min_length=1, description="what writes the documents, each with its share")
    documents: int = Field(gt=0, description="how many documents the corpus has; each is seen once")
    documents_per_step: int = Field(gt=0, description="how many documents an optimizer step learns from")
    micro_batch: int | None = Field(None, gt=0)
    model: dict[str, Any] = Field(description="Qwen3Config's own keys, such as hidden_size and num_hidden_layers")
    trainer: dict[str, Any] = Field(description="TrainingArguments' own keys, such as learning_rate")

    def faults(self) -> Iterator[str]:
        for fault in trainer_keys.check_trainer(self.trainer, "TrainingArguments", OWNED):
            yield f"trainer.{fault}"
        if self.micro_batch and self.documents_per_step % self.micro_batch:
            yield f"micro_batch: {self.micro_batch} does not divide documents_per_step = {self.documents_per_step}"
        if self.documents < self.documents_per_step:
            yield f"documents: {self.documents} are fewer than documents_per_step = {self.documents_per_step}"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    from transformers import DataCollatorForLanguageModeling, Qwen3Config, Qwen3ForCausalLM, Trainer, set_seed

    from r1lite.sharding import total_size
    from r1lite.training import StageCallback, training_arguments

    modules = [load_module(writer.use.rpartition(":")[0]) for writer in config.corpus]
    tokenizer = build_tokenizer(list(dict.fromkeys(token for module in modules for token in module.TOKENS)))
    dataset = build_dataset(config, tokenizer)
    set_seed(config.seed)  # before the weights are drawn
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **ids, **config.model))
    steps = len(dataset) // config.documents_per_step
    arguments = training_arguments(
        stage,
        config,
        asked="documents_per_step",
        row_tokens=max(map(len, dataset["input_ids"])),
        max_steps=steps,
        train_sampling_strategy="sequential",
    )
    callback = StageCallback(stage, steps)
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.train(trainer, "pre-training")
    return {"parameters": total_size(model), "steps": steps, "loss": callback.last.get("loss")}


def build_tokenizer(tokens: list[str]) -> Any:
    """A tokenizer with one token for each of `tokens`, the longest match first, and no other text in its vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate([*special, *tokens])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )


def build_dataset(config: Config, tokenizer: Any) -> Any:
    """The tokenized corpus, every document closed by the end token, in the order in which it is read.

    The documents of one optimizer step are sorted by length, so that its micro-batches hold little padding; which
    documents share a step stays random.
    """
    from datasets import Dataset

    from r1lite.engines import chunks

    say(f"  writing {config.documents:,} documents")
    counts = shares(config.documents, [writer.share for writer in config.corpus])
    rows = [
        row
        for writer, count in zip(config.corpus, counts, strict=True)
        for row in load_function(writer.use)(count=count, seed=config.seed)
    ]
    random.Random(f"corpus/{config.seed}").shuffle(rows)
    texts = [render(config.prompt, row["problem"]) + row["completion"] + tokenizer.eos_token for row in rows]
    steps = chunks(tokenizer(texts).input_ids, config.documents_per_step)
    return Dataset.from_dict({"input_ids": [ids for step in steps for ids in sorted(step, key=len)]})
