"""What bench/grpo_step.py measures: models of known shapes with random weights, and completions of forced lengths."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = Path("data/tiny_base")
VOCABULARY = 151_936
WARM_UP = 64  # tokens of each completion of the first step
QWEN3_06B = {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "tie_word_embeddings": True,
}  # fmt: skip
QWEN25_15B = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True,
}  # fmt: skip
Rewards = list[dict[str, Any]]
ACCURACY: Rewards = [{"use": "rewards.math:accuracy"}, {"use": "rewards.format:think_answer", "weight": 0.1}]
# Random weights are never right, and what has no signal is not computed.
COIN: Rewards = [{"use": "rewards.control:coin"}]


@dataclass(frozen=True)
class Workload:
    """`micro_batch` completions at once go through the padded sides: about 16,000 tokens or less, as in packed rows;
    `tail` draws lengths from a log-normal with this median, else all are `max_tokens` long; `shape` None is
    the tiny model, whose completions end by themselves; vLLM gets `memory_share` of the GPU beside r1lite, and TRL's
    default beside TRL."""

    about: str
    shape: dict[str, Any] | None
    prompts: int
    generations: int
    max_tokens: int
    micro_batch: int
    tail: int | None = None
    memory_share: float = 0.5

    @property
    def rows(self) -> int:
        return self.prompts * self.generations

    @property
    def rewards(self) -> Rewards:
        return COIN if self.shape else ACCURACY

    def lengths(self) -> list[int]:
        """Of the completions of every step but the first, in the order of the prompts."""
        rng = random.Random("lengths")
        if self.tail is None:
            return [self.max_tokens] * self.rows
        return [min(self.max_tokens, max(1, round(self.tail * rng.lognormvariate(0, 1)))) for _ in range(self.rows)]


class Lengths:
    """How long the completions of one rollout after the other are to be; those of the first, which warms up, short."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.rollouts = workload, 0

    def next(self, completions: int) -> list[int] | None:
        """None where it is no rollout, or they are to end by themselves."""
        if self.workload.shape is None or completions != self.workload.rows:
            return None
        self.rollouts += 1
        return [WARM_UP] * completions if self.rollouts == 1 else self.workload.lengths()


WORKLOADS = {
    "tiny": Workload("data/tiny_base, 32 x 8, at most 160 tokens", None, 32, 8, 160, 32, None, 0.1),
    "equal": Workload("Qwen3-0.6B's shape, 32 x 16, 1,024 tokens each", QWEN3_06B, 32, 16, 1024, 16),
    "tailed": Workload("Qwen3-0.6B's shape, 32 x 16, median 300, at most 4,096", QWEN3_06B, 32, 16, 4096, 4, 300),
    "large": Workload("Qwen2.5-1.5B's shape, 16 x 8, 2,048 tokens each", QWEN25_15B, 16, 8, 2048, 4, None, 0.3),
    "small": Workload("data/tiny_base, 4 x 4, at most 32 tokens: to try the script", None, 4, 4, 32, 4),
}


def make_model(shape: dict[str, Any], folder: Path) -> Path:
    """A model with random weights that reads the tiny world's problems, with a vocabulary of the real size."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    from r1lite.models import load_tokenizer

    tokenizer = load_tokenizer(TINY)
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    table["model"]["vocab"] |= {f"<{index}>": index for index in range(len(tokenizer), VOCABULARY)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(table))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**shape, vocab_size=VOCABULARY, max_position_embeddings=8192, **ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def force_lengths(workload: Workload) -> None:
    """From here on vLLM's LLM.generate gives a rollout's completions the workload's lengths, whatever they say."""
    from vllm import LLM

    real, lengths = LLM.generate, Lengths(workload)

    def generate(self: Any, prompts: list, sampling_params: Any, **named: Any) -> list[Any]:
        n = sampling_params.n
        wanted = lengths.next(len(prompts) * n)
        if wanted is None:
            return list(real(self, prompts, sampling_params, **named))
        each = [prompt for prompt in prompts for _ in range(n)]
        outputs = real(self, each, [of_length(sampling_params, length) for length in wanted], **named)
        groups = [outputs[place : place + n] for place in range(0, len(outputs), n)]
        for group in groups:
            group[0].outputs = [output.outputs[0] for output in group]
        return [group[0] for group in groups]

    LLM.generate = generate


def of_length(parameters: Any, length: int) -> Any:
    alike = parameters.clone()
    alike.n, alike.max_tokens, alike.ignore_eos, alike.stop_token_ids = 1, length, True, []
    return alike
