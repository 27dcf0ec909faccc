"""Padding-free forward passes: sequences one after the other in a single row, each of which attends to itself alone.

Attention is FlashAttention where that is installed, else PyTorch's own kernel for sequences of unlike lengths, else (on
a CPU, or in float32) one padded SDPA call; everything but attention never sees padding in any case.
"""

import heapq
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_flash_attn_2_available

PACKED = "r1lite_packed"
# Fewer heads of keys and values than of queries: torch 2.11 takes them as they are, 2.13 wants to be told.
GQA = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


@dataclass(frozen=True)
class Packed:
    """What a model gets of sequences packed in a row of T tokens; `keep_BL` says where they lie in the padded batch."""

    keep_BL: torch.Tensor
    inputs: dict[str, Any]

    def unpack(self, values_T: torch.Tensor) -> torch.Tensor:
        """Values of the row's tokens at their places in the padded batch, 0 elsewhere: (B, L)."""
        return values_T.new_zeros(self.keep_BL.shape).masked_scatter(self.keep_BL, values_T)


def pack(input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, completion_width: int) -> Packed:
    """Pack a batch of prompts, padded on the left, and completions, padded on the right to `completion_width`.

    The labels are the next tokens (`shift_labels`), where these are part of a completion, and -100 elsewhere.
    """
    keep_BL = attention_mask_BL.bool()
    learned_BL = keep_BL.clone()
    learned_BL[:, :-completion_width] = False
    labels_BL = torch.full_like(input_ids_BL, -100)
    labels_BL[:, :-1] = input_ids_BL[:, 1:].masked_fill(~learned_BL[:, 1:], -100)
    positions_BL = keep_BL.cumsum(1) - 1
    lengths_B = keep_BL.sum(1, dtype=torch.int32)
    starts = torch.nn.functional.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths_B.max())
    return Packed(
        keep_BL,
        {
            "input_ids": input_ids_BL[keep_BL][None],
            "position_ids": positions_BL[keep_BL][None],
            "shift_labels": labels_BL[keep_BL][None],
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        },
    )


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a row, as transformers' attention interface wants it.

    query, key, value: (1, heads, T, D), fewer heads of the latter two with GQA. Returns (1, T, heads, D).
    """
    dtype = torch.get_autocast_dtype("cuda") if query.is_cuda and torch.is_autocast_enabled("cuda") else value.dtype
    window = -1 if sliding_window is None or sliding_window >= max_length_q else sliding_window - 1
    if query.is_cuda and dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        bounds, longest = cu_seq_lens_q, max_length_q
        out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(window, 0), **GQA)
        return out[None], None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return attend_padded(query, key, value, scaling, cu_seq_lens_q, max_length_q, window)[None], None


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    starts: torch.Tensor,
    longest: int,
    window: int,
) -> torch.Tensor:
    """The same by one SDPA call over sequences padded on the right, which causal attention never looks at."""
    lengths = starts.diff()
    keep = torch.arange(longest, device=query.device) < lengths[:, None]
    q, k, v = (spread(x[0].transpose(0, 1), keep).transpose(1, 2) for x in (query, key, value))
    mask = None
    if window >= 0:
        place = torch.arange(longest, device=query.device)
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance <= window)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
    return out.transpose(1, 2)[keep]


def spread(values_THD: torch.Tensor, keep_NL: torch.Tensor) -> torch.Tensor:
    """(T, H, D) laid out a sequence a row: (N, L, H, D)."""
    padded = values_THD.new_zeros(*keep_NL.shape, *values_THD.shape[1:])
    return padded.index_put((keep_NL,), values_THD)


AttentionInterface.register(PACKED, attend)


def compile_layers(model: Any) -> None:
    """Have `model` use compiled layers where it takes packed rows, of any length, and nowhere else: they would compile
    anew for each kind of input."""
    for layer in layers_of(model):
        layer.compiled_forward = torch.compile(layer.forward, dynamic=True)


def layers_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def packed_attention(model: Any, half: bool) -> Iterator[None]:
    """Let `model`, computed in half precision or not, take packed rows, in forward and backward passes alike:
    checkpointed layers run again in the latter."""
    before = model.config._attn_implementation
    flash = half and model.device.type == "cuda" and is_flash_attn_2_available()
    model.config._attn_implementation = "flash_attention_2" if flash else PACKED
    compiled = [layer for layer in layers_of(model) if hasattr(layer, "compiled_forward")]
    for layer in compiled:
        layer.forward = layer.compiled_forward
    try:
        yield
    finally:
        model.config._attn_implementation = before
        for layer in compiled:
            del layer.forward


def split(lengths: list[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Indices in micro-batches of at most `budget` tokens, as even as the longest-first rule makes them.

    As few micro-batches as that allows, but a `multiple` of so many, none of them empty. No length may exceed the
    budget, and the lengths have to be a multiple of so many too.
    """
    assert max(lengths) <= budget and len(lengths) % multiple == 0
    n = multiple * -(-fewest(lengths, budget) // multiple)
    while True:
        parts = longest_first(lengths, n)
        if max(sum(lengths[index] for index in part) for part in parts) <= budget:
            return parts
        n += multiple


def fewest(lengths: list[int], budget: int) -> int:
    """No fewer micro-batches than this hold them all: one holds two, say, of those longer than a third of it."""
    by_length = enumerate(sorted(lengths, reverse=True), start=1)
    return max(1, -(-sum(lengths) // budget), *(-(-n // (budget // length)) for n, length in by_length if length))


def longest_first(lengths: list[int], n: int) -> list[list[int]]:
    """`n` parts: each length, the longest first, goes to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(n)]
    least = [(0, 0, place) for place in range(n)]  # tokens, then members: lengths of 0 leave no part empty either
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens, members, place = heapq.heappop(least)
        parts[place].append(index)
        heapq.heappush(least, (tokens + lengths[index], members + 1, place))
    return [sorted(part) for part in parts]
