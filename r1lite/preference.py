"""Reward models from preferences by TRL's RewardTrainer: the Bradley-Terry loss is TRL's, the tokens are ours.

TRL would close a text with the end token, which `rewards.model` does not when it scores one. So the inputs are made
here, by the functions that write those of `rewards.model`: a response is the same tokens in training and as a reward.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from r1lite.engines import chunks
from r1lite.models import load_tokenizer
from r1lite.observe import say
from r1lite.problems import completion_of, iterate
from r1lite.prompts import render
from r1lite.ranks import is_main
from r1lite.training import StageCallback, training_arguments
from rewards.model import dialogue, longest_input, plain, score

if TYPE_CHECKING:
    from r1lite.stages.reward_model import Config
    from r1lite.worker import Stage


@dataclass(frozen=True, slots=True)
class Pair:
    """Two final answers to a problem, and which of them was preferred."""

    problem: str
    chosen: str
    rejected: str


def train_reward_model(config: "Config", stage: "Stage") -> dict[str, Any]:
    """Train `config.model` and write model/ and metrics.jsonl. Returns facts for the manifest."""
    tokenizer, model = load_untrained(config, stage.resolve(config.model))
    pairs = load_pairs(str(stage.table(config.pairs, "problems")))
    rows = encode(config, tokenizer, pairs)
    unlike = [index for index, row in enumerate(rows) if row["chosen_ids"] != row["rejected_ids"]]
    if len(unlike) < len(pairs):
        say(f"  {len(pairs) - len(unlike):,} of {len(pairs):,} pairs are the same text twice to the model: left out")
    pairs, rows = [pairs[index] for index in unlike], [rows[index] for index in unlike]
    apart = hold_out(pairs, config.held_out, config.seed)
    held_out = [pair for pair in pairs if pair.problem in apart]
    trained = [index for index, pair in enumerate(pairs) if pair.problem not in apart]
    if len(trained) < config.pairs_per_step:
        raise ValueError(
            f"a step learns from pairs_per_step = {config.pairs_per_step} different pairs, but {config.pairs} has only "
            f"{len(trained)} besides the {len(held_out)} held out; lower pairs_per_step or held_out"
        )
    epochs, steps_an_epoch = config.trainer.get("num_train_epochs"), len(trained) / config.pairs_per_step
    arguments = training_arguments(
        stage,
        config,
        asked="pairs_per_step",
        row_tokens=2 * max(len(ids) for row in rows for ids in row.values()),
        max_steps=config.trainer["max_steps"] if epochs is None else math.ceil(epochs * steps_an_epoch),
        arguments=RewardConfig,
        max_length=None,  # else TRL drops long pairs, which are cut here
        train_sampling_strategy="sequential",
    )
    order = schedule(trained, arguments.max_steps * config.pairs_per_step, config.seed)
    callback = StageCallback(stage, arguments.max_steps)
    trainer = PairTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows).select(order),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.train(trainer, "reward model")
    accuracy = None
    if held_out and is_main():
        accuracy = accuracy_on(held_out, stage.path / "model", config)
        callback.write(arguments.max_steps, {"held_out/accuracy": accuracy})
        say(f"  accuracy {accuracy:.3f} on {len(held_out):,} held-out pairs")
    return {
        "pairs": len(trained),
        "steps": arguments.max_steps,
        "loss": callback.last.get("loss"),
        "held_out": len(held_out),
        "held_out_accuracy": accuracy,
    }


class PairTrainer(RewardTrainer):  # type: ignore[misc]
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].pop("num_tokens", None)  # TRL counts them anew when a run is resumed
        super().log(logs, start_time)


def load_untrained(config: "Config", path: Path) -> tuple[Any, Any]:
    """The tokenizer, and the model with a new head of one score; its weights follow from the seed.

    `max_tokens` is saved with the tokenizer, so that whoever scores with the model cuts what is too long as it is here.
    """
    tokenizer = load_tokenizer(path)
    set_seed(config.seed)  # before the head is drawn
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype="float32", use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file, an architecture without a classifier, a head of more labels
        raise ValueError(f"{path} cannot be loaded as a model with one score: {str(error)[:300]}") from error
    most = longest_input(tokenizer, model)
    if config.max_tokens > most:
        raise ValueError(f"max_tokens is {config.max_tokens}, but {config.model} reads at most {most}; lower it")
    tokenizer.model_max_length = config.max_tokens
    tokenizer.truncation_side = "left"
    return tokenizer, model


def load_pairs(reference: str) -> list[Pair]:
    """The pairs behind a reference. Raises ValueError for a row that is none."""
    pairs = []
    for number, problem in enumerate(iterate(reference), 1):
        where = f"{reference}, pair {number}"
        missing = [name for name in ("chosen", "rejected") if name not in problem.columns]
        if missing:
            raise ValueError(f"{where} has no {' and no '.join(missing)}; it needs problem, chosen and rejected")
        # The space around an answer goes, as it does around what stands in <answer> when a completion is scored.
        chosen, rejected = (completion_of(problem.columns[n], f"{where}, {n}").strip() for n in ("chosen", "rejected"))
        pairs.append(Pair(problem.problem, chosen, rejected))
    if not pairs:
        raise ValueError(f"{reference} holds no pairs")
    return pairs


def encode(config: "Config", tokenizer: Any, pairs: list[Pair]) -> list[dict[str, list[int]]]:
    """`chosen_ids` and `rejected_ids` of every pair, the tokens that `rewards.model` will score.

    Raises ValueError where the tokenizer cannot read a text.
    """
    templated = tokenizer.chat_template is not None and isinstance(render(config.prompt, ""), list)
    write = partial(dialogue, tokenizer) if templated else plain
    rows, cut = [], 0
    for some in chunks(pairs, 1000):
        prompts = [render(config.prompt, pair.problem) for pair in some]
        texts = [write(prompt, pair.chosen) for prompt, pair in zip(prompts, some, strict=True)]
        texts += [write(prompt, pair.rejected) for prompt, pair in zip(prompts, some, strict=True)]
        batch = tokenizer(
            texts, add_special_tokens=not templated, truncation=True, max_length=tokenizer.model_max_length
        )
        check_readable(config, tokenizer, texts, batch.input_ids)
        cut += sum(bool(encoding.overflowing) for encoding in batch.encodings)
        chosen, rejected = batch.input_ids[: len(some)], batch.input_ids[len(some) :]
        rows += [{"chosen_ids": one, "rejected_ids": other} for one, other in zip(chosen, rejected, strict=True)]
    tokenizer.backend_tokenizer.no_truncation()  # or it would be written to tokenizer.json
    if cut:
        say(f"  {cut:,} of {2 * len(pairs):,} texts have more than max_tokens = {config.max_tokens}: cut at the start")
    return rows


def check_readable(config: "Config", tokenizer: Any, texts: list[str], encoded: list[list[int]]) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # byte-level tokenizers know all texts, and some say so
        return
    for text, ids in zip(texts, encoded, strict=True):
        if unknown in ids:
            raise ValueError(
                f"the tokenizer of {config.model} has no tokens for {text!r:.200}; use another prompt template than "
                f"{config.prompt!r}, or a model made for these texts"
            )


def hold_out(pairs: list[Pair], least: int, seed: int) -> set[str]:
    """Problems that have `least` pairs or just over: whole problems, so that none is learned and measured both."""
    counts = Counter(pair.problem for pair in pairs)
    apart: set[str] = set()
    total = 0
    for problem in random.Random(f"held_out/{seed}").sample(list(counts), len(counts)):
        if total >= least:
            break
        apart.add(problem)
        total += counts[problem]
    return apart


def schedule(indices: list[int], count: int, seed: int) -> list[int]:
    """`count` of the indices in the order in which they are read: every pass over all is a new permutation.

    It depends on nothing but the arguments, which is what makes a resumed run go on where it was.
    """
    rng = random.Random(f"pairs/{seed}")
    passes = -(-count // len(indices))
    return [index for _ in range(passes) for index in rng.sample(indices, len(indices))][:count]


def accuracy_on(pairs: list[Pair], model: Path, config: "Config") -> float:
    """The share of pairs whose chosen answer has the higher score, by the reward that the model will be."""
    prompts = [render(config.prompt, pair.problem) for pair in pairs]
    chosen = score(str(model), prompts, [pair.chosen for pair in pairs], None)
    rejected = score(str(model), prompts, [pair.rejected for pair in pairs], None)
    if None in chosen + rejected:
        raise ValueError("the trained model's scores are not finite; lower trainer.learning_rate")
    return fmean(better > worse for better, worse in zip(chosen, rejected, strict=True))  # type: ignore[operator]
