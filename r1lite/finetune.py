"""SFT by TRL's SFTTrainer, on rows that are ready: tokenized as a rollout would be, packed, and in their order.

What TRL's own preparation leaves to chance is settled here: the boundary between prompt and completion is one of
tokens, the end token is the one at which generation stops, and no example of a row sees another.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from r1lite.engines import chunks
from r1lite.models import load_model, load_tokenizer
from r1lite.observe import say
from r1lite.problems import iterate_examples
from r1lite.prompts import CHAT, chat_template, encode, opening, prompt_text, render
from r1lite.records import Problem
from r1lite.training import StageCallback, training_arguments

if TYPE_CHECKING:
    from r1lite.stages.sft import Config
    from r1lite.worker import Stage

IGNORED = -100  # the label of a token that is not learned
MARK = "content"  # stands for what an assistant says


def train_sft(config: "Config", stage: "Stage") -> dict[str, Any]:
    """Train `config.model` and write model/ and metrics.jsonl. Returns facts for the manifest."""
    path = stage.resolve(config.model)
    tokenizer = prepare_tokenizer(config, path)
    model = load_model(path, "float32")
    check_ends(config, tokenizer, model.generation_config)
    examples = tokenize(config, tokenizer, read_examples(config, stage))
    rows = examples.dataset.shuffle(seed=config.seed)  # which share a row
    if config.packing:
        rows = pack_dataset(rows, config.max_tokens)
        prove_apart(config, model, PackedCollator(tokenizer.pad_token_id), rows[0]["input_ids"][:16])
    arguments = sft_arguments(config, stage, len(rows))
    callback = StageCallback(stage, arguments.max_steps)
    trainer = RowTrainer(
        model,
        arguments,
        train_dataset=rows.select(passes(len(rows), arguments.max_steps * config.rows_per_step, config.seed)),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.train(trainer, "SFT")
    return {
        "examples": len(examples.dataset),
        "tokens": examples.learned,
        "tokens_learned": round(examples.learned * arguments.max_steps * config.rows_per_step / len(rows)),
        "truncated": examples.truncated,
        "rows": len(rows),
        "steps": arguments.max_steps,
        "loss": callback.last.get("loss"),
    }


class PackedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Rows of several examples as a batch in which `position_ids` alone tell where an example begins.

    TRL puts the rows of a micro-batch behind one another, for the kernels of flash attention, which skip what an
    example must not see. All others compute it and mask it: for n rows, n times the work, and n times the mask.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None) -> None:
        super().__init__(pad_token_id, return_position_ids=True, pad_to_multiple_of=pad_to_multiple_of)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        del batch["attention_mask"]  # beside it, transformers would not look at position_ids
        return batch


class RowTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that takes packed rows as a batch."""

    def __init__(self, model: Any, args: SFTConfig, **arguments: Any) -> None:
        super().__init__(model, args, **arguments)
        if args.packing:
            self.data_collator = PackedCollator(self.processing_class.pad_token_id, args.pad_to_multiple_of)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].pop("num_tokens", None)  # of one row of a micro-batch, and from 0 after a resume
        super().log(logs, start_time)


def prepare_tokenizer(config: "Config", path: Path) -> Any:
    """The model's tokenizer with the chat template and the end token that it will be saved with."""
    tokenizer = load_tokenizer(path)
    if config.prompt not in CHAT:
        unasked = tokenizer.convert_ids_to_tokens(tokenizer("").input_ids)
        tokenizer.chat_template = chat_template(config.prompt, "".join(unasked))
    elif file := config.trainer.get("chat_template_path"):
        tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    end = config.trainer.get("eos_token")
    if end is not None and end not in tokenizer.get_vocab():
        raise ValueError(f"trainer.eos_token: {end!r} is no token of {config.model}; leave it out, or name one that is")
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def check_ends(config: "Config", tokenizer: Any, generation_config: Any) -> None:
    """ValueError unless training, generation and the chat template end a completion alike.

    A model that learns one end and is stopped by another goes on, answer after answer, until its tokens are spent.
    """
    end = tokenizer.eos_token
    if config.prompt in CHAT and tokenizer.chat_template is None:
        raise ValueError(
            f"{config.model} has no chat template, which prompt: {config.prompt} needs; "
            "set trainer: {chat_template_path: FILE.jinja}, or another prompt, such as plain"
        )
    written = template_end(tokenizer)
    if written is None:
        raise ValueError(
            f"the chat template of {config.model} writes no special token after what an assistant says, so nothing "
            "would tell the end of it; set trainer: {chat_template_path: FILE.jinja}"
        )
    if written != end:
        raise ValueError(
            f"training would end every completion of {config.model} with {end!r}, its tokenizer's end token, but its "
            f'chat template ends what an assistant says with {written!r}; set trainer: {{eos_token: "{written}"}}'
        )
    declared = generation_config.eos_token_id
    stops = [declared] if isinstance(declared, int) else declared or [tokenizer.eos_token_id]
    # A stated eos_token is what TRL adds to these.
    if "eos_token" not in config.trainer and tokenizer.eos_token_id not in stops:
        raise ValueError(
            f"training would end every completion of {config.model} with {end!r}, but its generation config stops at "
            f'{", ".join(map(repr, tokenizer.convert_ids_to_tokens(stops)))} alone; set trainer: {{eos_token: "{end}"}}'
        )


def template_end(tokenizer: Any) -> str | None:
    """The first special token that a chat template writes after what an assistant says."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    rest = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(MARK)[2]
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(rest, add_special_tokens=False).input_ids)
    return next((token for token in tokens if token in added.union(tokenizer.all_special_tokens)), None)


def read_examples(config: "Config", stage: "Stage") -> list[Problem]:
    """The problems of all references, each with the column `completion`; one problem may have several."""
    examples = [
        problem
        for reference in config.examples
        for problem in iterate_examples(str(stage.table(reference, "examples")))
    ]
    if not examples:
        raise ValueError(f"{', '.join(config.examples)} hold no examples")
    return examples


@dataclass(frozen=True)
class Examples:
    """`input_ids` and `labels` of each example; how many tokens are learned; how many examples lost their end."""

    dataset: Dataset
    learned: int
    truncated: int


def tokenize(config: "Config", tokenizer: Any, examples: list[Problem]) -> Examples:
    """A prompt's tokens are those of a rollout, and are not learned; a completion's are, and the end token after it."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    learned = truncated = too_long = 0
    for some in chunks(examples, 1000):
        prompts = [render(config.prompt, example.problem) for example in some]
        texts = [
            unwritten(prompt_text(tokenizer, prompt), example.columns["completion"])
            for prompt, example in zip(prompts, some, strict=True)
        ]
        completions = tokenizer(texts, add_special_tokens=False).input_ids
        for prompt, text, completion in zip(prompts, texts, completions, strict=True):
            asked = encode(tokenizer, prompt)
            check_known(config, tokenizer, "prompt", prompt, asked)
            check_known(config, tokenizer, "completion", text, completion)
            ids = [*asked, *completion, tokenizer.eos_token_id]
            labels = [IGNORED] * len(asked) + ids[len(asked) :]
            # As arrays, since a list takes ten times the memory.
            columns["input_ids"].append(np.array(ids[: config.max_tokens], np.int32))
            columns["labels"].append(np.array(labels[: config.max_tokens], np.int32))
            learned += max(0, min(len(ids), config.max_tokens) - len(asked))
            truncated += len(ids) > config.max_tokens
            too_long += len(asked) >= config.max_tokens
    if too_long:
        raise ValueError(
            f"the prompts of {too_long} of {len(examples)} examples fill max_tokens = {config.max_tokens} and leave "
            "nothing to learn; raise max_tokens, or leave them out"
        )
    if truncated:
        say(f"  {truncated} of {len(examples)} examples are cut off at max_tokens = {config.max_tokens}")
    return Examples(Dataset.from_dict(columns), learned, truncated)


def unwritten(prompt: str, completion: str) -> str:
    """A completion without the `<think>`, and the white space after it, that its prompt has already written.

    Example: unwritten("...Assistant: <think>\\n", "<think>\\nSo 3.") == "So 3."
    """
    written = opening(prompt)
    if not written or not completion.lstrip().startswith(written):
        return completion
    space = prompt.rpartition(written)[2]
    return completion.lstrip().removeprefix(written).removeprefix(space)


def check_known(config: "Config", tokenizer: Any, what: str, text: Any, ids: list[int]) -> None:
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise ValueError(
            f"the tokenizer of {config.model} has no tokens for the {what} {text!r:.300}; use another prompt template "
            f"than {config.prompt!r}, or a model made for these examples"
        )


def prove_apart(config: "Config", model: Any, collator: PackedCollator, ids: list[int]) -> None:
    """ValueError unless the model reads an example behind another one in a row as it reads it alone."""
    n = len(ids)
    alone, behind = {"input_ids": ids, "seq_lengths": [n]}, {"input_ids": [*ids[::-1], *ids], "seq_lengths": [n, n]}
    inputs = {name: tensor.to(model.device) for name, tensor in collator([alone, behind]).items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    if not torch.allclose(logits[0, :n], logits[1, n:], atol=1e-3 * logits.abs().max().item()):
        raise ValueError(
            f"{config.model} does not keep the examples of a packed row apart, as its architecture "
            f"({type(model).__name__}) carries a state from token to token; set trainer: {{packing: false}}"
        )


def sft_arguments(config: "Config", stage: "Stage", n_rows: int) -> SFTConfig:
    if n_rows < config.rows_per_step:
        raise ValueError(
            f"an optimizer step learns from rows_per_step = {config.rows_per_step} rows of max_tokens = "
            f"{config.max_tokens}, but the examples fill only {n_rows}; lower rows_per_step or max_tokens"
        )
    epochs = config.trainer.get("num_train_epochs")
    return training_arguments(
        stage,
        config,
        asked="rows_per_step",
        row_tokens=config.max_tokens,
        max_steps=config.trainer["max_steps"] if epochs is None else math.ceil(epochs * n_rows / config.rows_per_step),
        arguments=SFTConfig,
        packing=config.packing,
        max_length=config.max_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )


def passes(n_rows: int, count: int, seed: int) -> list[int]:
    """`count` indices below `n_rows`: pass after pass over all of them, every pass a new permutation.

    What is one long pass to the trainer has no short steps at the ends of epochs, and resumes where it was.
    """
    rng = random.Random(f"passes/{seed}")
    order: list[int] = []
    while len(order) < count:
        order += rng.sample(range(n_rows), n_rows)
    return order[:count]
