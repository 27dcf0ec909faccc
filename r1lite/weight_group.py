"""GPUs of several processes as a group, in which the first, a trainer's, hands weights to engines: NCCL by vLLM."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch


def join(rank: int, ranks: int, device: torch.device, exchange: Callable[[bytes], bytes]) -> Any:
    """vLLM's PyNcclCommunicator of one of the `ranks`; it waits for all the others.

    `exchange` is given the group's id by the first one and returns it to all. vLLM's own way of telling it would open a
    port on which whatever comes is unpickled.
    """
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    class Group(StatelessProcessGroup):  # type: ignore[misc]
        def broadcast_obj(self, group_id: ctypes.Structure, src: int) -> ctypes.Structure:
            return type(group_id).from_buffer_copy(exchange(bytes(group_id)))

    with torch.cuda.stream(stream_of(device)):  # vLLM makes another one the current stream
        return PyNcclCommunicator(Group(rank=rank, world_size=ranks, store=None), device)


def broadcast(group: Any, part: torch.Tensor) -> None:
    """From the first one's memory to that of all, in the order of what else the GPU does with it."""
    group.broadcast(part, src=0, stream=stream_of(part.device))


def stream_of(device: torch.device) -> Any:
    """A GPU's current stream; None on a CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None
