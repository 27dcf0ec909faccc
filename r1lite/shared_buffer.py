"""Memory that two processes share, on a GPU or not, through which a trainer hands an engine its weights, part by part.

It is bounded, so a second copy of the weights never exists; what goes through it is told in plain numbers.
"""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from r1lite.sharding import size_of

BYTES = 2**29  # or the largest weight's
# A weight in the buffer: its name, type, shape and where it begins.
Place = tuple[str, str, list[int], int]


@dataclass(frozen=True)
class Buffer:
    """Bytes, and what another process opens them by."""

    bytes: torch.Tensor
    handle: dict[str, Any]


def size_for(model: Any, dtype: torch.dtype) -> int:
    """The bytes of a buffer through which a model's weights are handed over as a type."""
    largest: int = max(map(size_of, model.parameters())) * dtype.itemsize
    return max(BYTES, largest)


def make_buffer(size: int, device: torch.device) -> Buffer:
    """`size` bytes on a device. They live as long as this process keeps them."""
    if device.type == "cuda":
        made = torch.empty(size, dtype=torch.uint8, device=device)
        handle = made.untyped_storage()._share_cuda_()
    else:
        storage = torch.UntypedStorage._new_using_filename_cpu(size)
        made = torch.empty(0, dtype=torch.uint8).set_(storage)
        handle = storage._share_filename_cpu_()
    told = [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in handle]
    return Buffer(made, {"kind": device.type, "handle": told})


def open_buffer(kind: str, handle: list[Any]) -> torch.Tensor:
    """The bytes that another process on this machine has made, on this one's first device."""
    parts = [base64.b64decode(part) if isinstance(part, str) else part for part in handle]
    if kind == "cuda":
        torch.cuda.init()
        parts[0] = torch.cuda.current_device()
        storage = torch.UntypedStorage._new_shared_cuda(*parts)
    else:
        storage = torch.UntypedStorage._new_shared_filename_cpu(*parts)
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def fill(
    buffer: torch.Tensor, weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> Iterator[list[Place]]:
    """Lay weights out in the buffer as a type, as many as it holds; yields where they are, and goes on when asked."""
    layout: list[Place] = []
    used = 0
    for name, weight in weights:
        size = weight.numel() * dtype.itemsize
        if layout and used + size > len(buffer):
            yield layout
            layout, used = [], 0
        place: Place = (name, str(dtype).removeprefix("torch."), list(weight.shape), used)
        ((_, view),) = views(buffer, [place])
        view.copy_(weight)
        layout.append(place)
        used += -(-size // 16) * 16  # the next one begins where any type may
    yield layout


def end_of(layout: list[Place]) -> int:
    """How many bytes of the buffer are used."""
    _, kind, shape, first = layout[-1]
    dtype: torch.dtype = getattr(torch, kind)
    size: int = prod(shape) * dtype.itemsize
    return first + size


def views(buffer: torch.Tensor, layout: list[Place]) -> list[tuple[str, torch.Tensor]]:
    """The weights that lie in the buffer, without a copy."""
    found = []
    for name, kind, shape, first in layout:
        dtype: torch.dtype = getattr(torch, kind)
        found.append((name, buffer[first : first + prod(shape) * dtype.itemsize].view(dtype).view(shape)))
    return found
