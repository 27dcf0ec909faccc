"""How much of a GPU a GRPO stage takes, part by part, from its model's shape and a few settings: before a GPU is used.

The sizes of weights and of what an optimizer keeps are exact; activations are counted for the layers of Qwen and Llama,
compiled and in bfloat16, times what the allocator adds. Held against measured peaks on an H200 (docs/scale.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

# Tokens of packed sequences that go through the model at once where a recipe does not say how many. On 2 CPU cores rows
# of 1,024 to 8,192 tokens differ by 10 %, and 2,048 was the fastest.
PACKED_TOKENS = {"cpu": 2048, "cuda": 16384}
# Of a GPU's memory, for vLLM: TRL's default of 0.3 leaves so little for keys and values that requests have to wait.
MEMORY_SHARE = 0.5
WHOLE_GPU = 0.85  # where nothing is beside it
GIB = 2**30
FIXED = 2.3  # GiB: CUDA's contexts of both processes, vLLM's graphs, the buffer for weights
ENGINE = 2.0  # GiB that vLLM needs beside weights and keys and values
ALLOCATOR = 1.1  # what PyTorch holds of the GPU, to what the tensors in it take
LOG_PROBS = 1.0  # GiB, of a tile of logits
SPARE = 0.05  # of the card, for what is not counted


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; `queries` and `keys` are heads times the width of one."""

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    normed: bool  # whether queries and keys are normed, as Qwen3 does

    @property
    def layer_weights(self) -> int:
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inner)

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def token_activations(self) -> float:
        """Bytes that a layer keeps of a token for its backward pass.

        The residuals in float32 and normed, twice; queries and keys before and after their rotation, values, what
        attention gives; and three times the inner width.
        """
        norms = 4 * (self.queries + self.keys) if self.normed else 0
        return 12 * self.hidden + 6 * self.queries + 6 * self.keys + norms + 6 * self.inner

    @property
    def token_cache(self) -> int:
        """Bytes of a token's keys and values in bfloat16, in all layers."""
        return 4 * self.keys * self.layers


@dataclass(frozen=True)
class Setting:
    """What decides a GPU's memory: the card's GiB, how many GPUs there are, and what a recipe says."""

    card: float
    gpus: int
    longest: int  # tokens of a sequence
    budget: int  # tokens of a packed row
    completions: int  # of a rollout, on all GPUs
    share: float  # of the card, that vLLM gets
    reference: bool
    checkpoints: bool  # of activations: they are computed again in the backward pass
    sleeps: bool
    shards: bool
    servers: int = 0  # of rollouts, on other GPUs; 0: vLLM is beside each trainer
    server_gpus: int = 1


@dataclass(frozen=True)
class Estimate:
    """GiB of one GPU by part, the peak, and how many of the longest completions vLLM has room for at once."""

    parts: dict[str, float]
    peak: float
    room: int


def estimate(shape: Shape, setting: Setting) -> Estimate:
    of_model = shape.weights / (setting.gpus if setting.shards else 1)
    in_half = 4 * shape.layer_weights if setting.shards else 2 * shape.weights  # two layers at once, or all
    buckets = 4 * shape.weights if setting.gpus > 1 and not setting.shards else 0  # in which DDP sums gradients
    kept = 4 * shape.hidden if setting.checkpoints else shape.token_activations
    again = shape.token_activations if setting.checkpoints else 0
    parts = {
        "weights": 4 * of_model,
        "gradients": 4 * of_model + buckets,
        "optimizer": 8 * of_model,
        "in bfloat16": in_half,
        "reference": 4 * of_model if setting.reference else 0,
        "activations": ALLOCATOR * setting.budget * (shape.layers * kept + again),
        "log-probs": LOG_PROBS * GIB + 4 * shape.vocabulary * shape.hidden,
    }
    parts = {name: size / GIB for name, size in parts.items()} | {"vLLM": beside(setting), "rest": FIXED}
    passing = parts["activations"] + parts["log-probs"] + parts["in bfloat16"]
    # Asleep, vLLM has nothing while others pass; awake, nothing else passes.
    spared = min(passing, parts["vLLM"]) if setting.sleeps else 0.0
    free = (setting.server_gpus * (setting.share * setting.card - ENGINE) - 2 * shape.weights / GIB) * GIB
    return Estimate(parts, sum(parts.values()) - spared, max(0, int(free / shape.token_cache / setting.longest)))


def beside(setting: Setting) -> float:
    """GiB that vLLM has of a GPU that trains."""
    return 0.0 if setting.servers else setting.share * setting.card


def fits(shape: Shape, setting: Setting) -> bool:
    """Whether all of it fits, with something to spare, and vLLM has room for a completion."""
    found = estimate(shape, setting)
    return found.peak <= (1 - SPARE) * setting.card and found.room >= 1


def changes(shape: Shape, setting: Setting) -> list[str]:
    """The fewest changes of a recipe, those that cost least first, with which it fits; none where no changes help."""
    for count in range(1, len(CHANGES) + 1):
        for chosen in combinations(CHANGES, count):
            names, now = [], setting
            for change in sorted(chosen, key=lambda each: each is rest_for_vllm):  # once all others have left it
                name, now = change(shape, now)
                names.append(name)
            if all(names) and fits(shape, now):
                return names
    return []


def fewer_tokens(shape: Shape, now: Setting) -> tuple[str, Setting]:
    budget = max(now.longest, now.budget // 4)
    return f"tokens_per_micro_batch: {budget}" if budget < now.budget else "", replace(now, budget=budget)


def rest_for_vllm(shape: Shape, now: Setting) -> tuple[str, Setting]:
    """As many twentieths of the card as the trainer leaves."""
    if now.servers:
        return "", now
    left = (1 - SPARE) * now.card - estimate(shape, replace(now, share=0.0)).peak
    share = max(0, math.floor(20 * left / now.card)) / 20
    return f"trainer.vllm_gpu_memory_utilization: {share:g}" if share != now.share else "", replace(now, share=share)


def checkpointed(shape: Shape, now: Setting) -> tuple[str, Setting]:
    return "" if now.checkpoints else "trainer.gradient_checkpointing: true", replace(now, checkpoints=True)


def sharded(shape: Shape, now: Setting) -> tuple[str, Setting]:
    helps = now.gpus > 1 and not now.shards
    return "launch.accelerate: recipes/accelerate/fsdp2.yaml" if helps else "", replace(now, shards=True)


def sleeping(shape: Shape, now: Setting) -> tuple[str, Setting]:
    helps = not (now.sleeps or now.servers)
    return "trainer.vllm_enable_sleep_mode: true" if helps else "", replace(now, sleeps=True)


# Each returns what it is in a recipe, or "" where it changes nothing.
CHANGES: tuple[Callable[[Shape, Setting], tuple[str, Setting]], ...] = (
    rest_for_vllm, fewer_tokens, checkpointed, sharded, sleeping,
)  # fmt: skip
