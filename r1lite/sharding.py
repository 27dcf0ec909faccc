"""Weights of which FSDP leaves each process a part only, and all of them where they are needed."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def shards() -> bool:
    """Whether each process will have a part of the model only, as accelerate's launcher tells; on a CPU it has all."""
    import torch

    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and torch.cuda.is_available()


def is_sharded(model: Any) -> bool:
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def whole(weight: "torch.Tensor") -> "torch.Tensor":
    """All of a weight, for reading; where processes share it, all of them have to ask."""
    return weight.detach().full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
