"""The processes of one stage, as `accelerate launch` starts them: which of them this is, and what they do together."""

import os
from datetime import timedelta
from typing import Any

TIMEOUT = "R1LITE_TIMEOUT"  # seconds, as `launch.timeout` has it
FOREVER = timedelta(days=30)  # how long one may wait for another that still samples; a dead one is noticed by torchrun


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def share(name: str, count: int) -> int:
    """What each process gets of `count`, the value of a recipe's key. Raises ValueError where it is not whole."""
    if count % world_size():
        raise ValueError(
            f"{name}: {count} cannot be shared evenly by {world_size()} processes; set it to a multiple of that, or "
            "launch.gpus to another number"
        )
    return count // world_size()


def timeout() -> timedelta:
    """How long a process waits for another to do its part of a step."""
    return timedelta(seconds=int(os.environ.get(TIMEOUT, "1800")))


def is_loss(error: Exception) -> bool:
    """Whether an error is that of a process which waits for another, or has lost its connection to it."""
    if world_size() == 1:
        return False
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def join(limit: timedelta = FOREVER) -> None:
    """Be able to wait for the others, on the CPU, for so long: where there is no trainer, which would see to it, or one
    that would wait for as long as it likes."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=True, timeout=limit)


def wait_for_all() -> None:
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def from_main(value: Any) -> Any:
    """What the main process has, on all of them."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
