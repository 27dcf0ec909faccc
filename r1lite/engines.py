"""Generation: `generate` for rollouts of a model that trains, `stream` for many samples of one that does not.

vLLM (vllm_engine.py and fleet.py), or transformers where there is no GPU. All engines speak token ids, so that what is
trained is exactly what was sampled. `generate` returns the log-probs of the distribution sampled from (after
temperature, top-p and top-k).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from r1lite.records import seed_from
from r1lite.sharding import whole

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How to sample: `max_tokens` a completion; top_p in (0, 1]; top_k 0 for all tokens; temperature > 0."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """A prompt as token ids, and how many completions of it are wanted."""

    prompt: list[int]
    n: int


@dataclass(frozen=True)
class Completion:
    """Sampled token ids (with the end token, if one came), their log-probs, and whether max_tokens cut it off.

    The log-probs of streamed completions are left out.
    """

    token_ids: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(frozen=True)
class Finished:
    """Completions of the request with this index, and the seed of the random stream that they were drawn from."""

    index: int
    completions: list[Completion]
    seed: int


def in_order(finished: Iterable[list[Finished]]) -> list[list[Completion]]:
    """The completions of all prompts: (P, n)."""
    groups = {group.index: group.completions for batch in finished for group in batch}
    return [groups[index] for index in range(len(groups))]


class Streaming(Protocol):
    """An engine for evaluation: it gets all requests at once, and hands over what is done while the rest goes on."""

    def stream(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Finished]]: ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


class Engine(Protocol):
    """An engine for rollouts."""

    name: str

    @property
    def dtype(self) -> "torch.dtype":
        """In which it keeps its weights."""
        ...

    def generate(self, prompts: list[list[int]], n: int, sampling: Sampling) -> Iterator[list[Finished]]:
        """`n` completions for each prompt: groups that are done, while the rest goes on."""
        ...

    def sync(self, model: Any) -> None:
        """Take over the weights of `model`, which has the shape of the engine's own."""
        ...

    def weight_sums(self) -> list[tuple[float, float]]:
        """Of each copy of the weights that it samples from: their sum and that of their absolute values, in float64."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


def pick_engine(name: str) -> str:
    """The engine behind "auto": vLLM where there is an NVIDIA GPU and vLLM, else transformers."""
    import torch

    if name == "vllm" and not (torch.cuda.is_available() and find_spec("vllm")):
        raise ValueError("the engine vllm needs an NVIDIA GPU and `pip install r1lite[gpu]`; use auto or transformers")
    if name != "auto":
        return name
    return "vllm" if torch.cuda.is_available() and find_spec("vllm") else "transformers"


def engine_version(name: str) -> str:
    """Example: "vllm 0.24.0"."""
    return f"{name} {version(name)}"


class TransformersEngine:
    """Samples from a live transformers model: no second copy of the weights, nothing to sync.

    Prompts are prefilled once for all their completions, and rows that have ended leave the batch, so the cost follows
    the tokens that were sampled and not the longest completion.
    """

    name = "transformers"
    batch = 512  # rows that are decoded side by side

    def __init__(self, model: Any, eos_token_ids: list[int], pad_token_id: int) -> None:
        self.model, self.eos_token_ids, self.pad_token_id = model, eos_token_ids, pad_token_id

    @property
    def dtype(self) -> "torch.dtype":
        found: torch.dtype = self.model.dtype
        return found

    def weight_sums(self) -> list[tuple[float, float]]:
        return [weight_sums(self.model.parameters(), self.dtype)]

    def sync(self, model: Any) -> None:
        self.model = model

    def close(self) -> None:
        del self.model

    def generate(self, prompts: list[list[int]], n: int, sampling: Sampling) -> Iterator[list[Finished]]:
        import torch

        generator = torch.Generator(device=self.model.device).manual_seed(sampling.seed)
        for chunk in chunks(list(enumerate(prompts)), max(1, self.batch // n)):
            was_training = self.model.training
            self.model.eval()
            with torch.inference_mode():
                groups = self._decode([prompt for _, prompt in chunk], n, sampling, generator)
            self.model.train(was_training)
            yield [Finished(index, group, sampling.seed) for (index, _), group in zip(chunk, groups, strict=True)]

    def stream(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Finished]]:
        """A batch at a time, in order. A batch's seed follows from its first prompt, so that what an interrupted call
        has left is what an uninterrupted one would have made."""
        start = 0
        for n, alike in groupby(requests, key=lambda request: request.n):
            for batch in chunks(list(alike), max(1, self.batch // n)):
                seed = seed_from(f"{sampling.seed}/{batch[0].prompt}")
                groups = in_order(self.generate([request.prompt for request in batch], n, replace(sampling, seed=seed)))
                yield [Finished(start + offset, group, seed) for offset, group in enumerate(groups)]
                start += len(batch)

    def _decode(
        self, prompts: list[list[int]], n: int, sampling: Sampling, generator: "torch.Generator"
    ) -> list[list[Completion]]:
        import torch
        from transformers import DynamicCache

        device = self.model.device
        width = max(map(len, prompts))
        padded = [[self.pad_token_id] * (width - len(ids)) + ids for ids in prompts]
        mask_PL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.batch_repeat_interleave(n)
        logits, mask_BL = logits.repeat_interleave(n, 0), mask_PL.repeat_interleave(n, 0)
        eos = torch.tensor(self.eos_token_ids, device=device)

        rows = torch.arange(len(prompts) * n, device=device)  # which completion each row of the batch belongs to
        done = torch.zeros_like(rows, dtype=torch.bool)
        tokens_TB = torch.full((sampling.max_tokens, len(rows)), self.pad_token_id, device=device)
        logprobs_TB = torch.zeros(sampling.max_tokens, len(rows), device=device)
        lengths = torch.full_like(rows, sampling.max_tokens)
        truncated = torch.ones_like(done)
        for t in range(sampling.max_tokens):
            token, logprob = sample(logits, sampling, generator)
            tokens_TB[t, rows], logprobs_TB[t, rows] = token, logprob
            ended = torch.isin(token, eos) & ~done
            lengths[rows[ended]], truncated[rows[ended]] = t + 1, False
            done |= ended
            if done.all():
                break
            if done.float().mean() > 0.2:  # thinning the batch copies the cache, so not at every ended row
                keep = (~done).nonzero().squeeze(1)
                rows, done, token, mask_BL = rows[keep], done[keep], token[keep], mask_BL[keep]
                cache.batch_select_indices(keep)
            mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], 1)
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=mask_BL,
                position_ids=mask_BL.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).logits[:, -1]

        flat = [
            Completion(ids[:length], logprobs[:length], cut)
            for ids, logprobs, length, cut in zip(
                tokens_TB.T.tolist(), logprobs_TB.T.tolist(), lengths.tolist(), truncated.tolist(), strict=True
            )
        ]
        return [flat[i : i + n] for i in range(0, len(flat), n)]


def sample(logits_BV: "torch.Tensor", sampling: Sampling, generator: "torch.Generator") -> tuple:
    """One token a row, and its log-prob under the distribution that it was drawn from."""
    import torch

    logprobs_BV = (logits_BV.float() / sampling.temperature).log_softmax(-1)
    if sampling.top_k:
        kth = logprobs_BV.topk(min(sampling.top_k, logprobs_BV.shape[-1])).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < kth, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ordered, index = logprobs_BV.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # the mass of all likelier tokens
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logprobs_BV = torch.empty_like(ordered).scatter_(-1, index, ordered).log_softmax(-1)
    token = logprobs_BV.exp().multinomial(1, generator=generator)
    return token.squeeze(1), logprobs_BV.gather(1, token).squeeze(1)


def weight_sums(weights: "Iterable[torch.Tensor]", dtype: "torch.dtype") -> tuple[float, float]:
    """The sums of all weights and of their absolute values, once they are of a type, in float64.

    They do not depend on how an engine lays its weights out: fused, or padded with zeros. Of weights that processes
    share, all of them have to ask.
    """
    plain = absolute = 0.0
    for weight in weights:
        exact = whole(weight).to(dtype).double()
        plain += exact.sum().item()
        absolute += exact.abs().sum().item()
    return plain, absolute


def chunks(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
