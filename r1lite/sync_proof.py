"""Proof, after each weight sync, that the engine samples from the trainer's weights: sums of them, and log-probs.

The sums tell a weight that did not arrive, however small the update was; the log-probs tell weights that arrived in the
wrong place, or a model that the engine computes differently.
"""

import math
from typing import Any

import torch

from r1lite.engines import Engine, Sampling, in_order, weight_sums

SUMS = 1e-11  # relative; float64 sums of the same numbers in another order differ by less than 1e-12
# Mean absolute difference a token; vLLM multiplies float32 matrices in TF32 on a GPU.
LOGPROBS = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
TOKENS = 8  # of each prompt's completion, or as many as may be sampled


def prove_sync(engine: Engine, model: Any, prompts: list[list[int]], temperature: float, max_tokens: int) -> None:
    """Raise RuntimeError where `engine` has not the weights of `model`, or gives other log-probs with them."""
    dtype = engine.dtype
    mine = weight_sums(model.parameters(), dtype)
    copies = engine.weight_sums()
    if not math.isfinite(mine[1]):
        raise RuntimeError("the trained weights are no longer finite numbers; lower the learning rate, and start anew")
    for theirs in copies:
        if all(abs(a - b) <= SUMS * mine[1] for a, b in zip(mine, theirs, strict=True)):
            continue
        raise RuntimeError(
            f"the {engine.name} engine has not the trainer's weights after a sync: they sum to {theirs[0]!r} there and "
            f"{mine[0]!r} here (absolute values: {theirs[1]!r} and {mine[1]!r}). It would go on sampling from an old "
            "model. Run `r1lite` again, which goes on from the newest checkpoint with a new engine; if it happens "
            "again, report it with the versions of vLLM and torch"
        )
    groups = in_order(engine.generate(prompts, 1, Sampling(min(TOKENS, max_tokens), temperature)))
    sampled = [completion for (completion,) in groups]
    expected = logprobs(model, prompts, [completion.token_ids for completion in sampled], temperature, dtype)
    differences = [
        abs(a - b)
        for completion, found in zip(sampled, expected, strict=True)
        for a, b in zip(completion.logprobs, found, strict=True)
    ]
    mean, allowed = sum(differences) / len(differences), LOGPROBS[str(dtype).removeprefix("torch.")]
    if not mean <= allowed:
        raise RuntimeError(
            f"the {engine.name} engine has the trainer's weights but computes other log-probs with them: a token's "
            f"differ by {mean:.4f} on average, where {allowed} is allowed, so it does not sample from what is trained. "
            "Report it with the model's config.json and the versions of vLLM and transformers"
        )


def logprobs(
    model: Any, prompts: list[list[int]], completions: list[list[int]], temperature: float, dtype: torch.dtype
) -> list[list[float]]:
    """Of each token of each completion, by one plain forward pass in the engine's type."""
    pairs = list(zip(prompts, completions, strict=True))
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    # Padding on the right needs no mask: causal attention never looks there.
    ids = [prompt + completion + [0] * (width - len(prompt) - len(completion)) for prompt, completion in pairs]
    kept = width - min(map(len, prompts)) + 1  # whose logits tell of a completion's token
    half = dtype != torch.float32
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, dtype if half else None, enabled=half):
        logits = model(input_ids=torch.tensor(ids, device=model.device), logits_to_keep=kept).logits
    model.train(was_training)
    found = []
    for row, (prompt, completion) in zip(logits, pairs, strict=True):
        first = len(prompt) - 1 - (width - kept)
        every = (row[first : first + len(completion)].float() / temperature).log_softmax(-1)
        found.append(every.gather(1, torch.tensor(completion, device=every.device)[:, None])[:, 0].tolist())
    return found
