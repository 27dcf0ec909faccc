"""The processes of one stage, as `accelerate launch` starts them: which of them this is, and what they do together."""

import os
from datetime import timedelta
from typing import Any

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


def join() -> None:
    """Be able to wait for the others where there is no trainer, which would see to it."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=True, timeout=FOREVER)


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
