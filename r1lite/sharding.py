"""Weights of which FSDP2 or DeepSpeed's ZeRO-3 leaves each process a part, and all of them where they are needed."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def zero_stage() -> int:
    """Of DeepSpeed's ZeRO, as accelerate's launcher tells; 0 without DeepSpeed."""
    told = os.environ
    return int(told["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) if told.get("ACCELERATE_USE_DEEPSPEED") == "true" else 0


def shards() -> bool:
    """Whether each process will have a part of the model only, as accelerate's launcher tells; on a CPU it has all."""
    import torch

    told = os.environ.get("ACCELERATE_USE_FSDP") == "true" or zero_stage() == 3
    return told and torch.cuda.is_available()


def is_sharded(model: Any) -> bool:
    return any(hasattr(weight, "full_tensor") or hasattr(weight, "ds_id") for weight in model.parameters())


def whole(weight: "torch.Tensor") -> "torch.Tensor":
    """All of a weight, for reading; where processes share it, all of them have to ask."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):  # its parts again after that
            return weight.detach().clone()
    return weight.detach().full_tensor() if hasattr(weight, "full_tensor") else weight.detach()


def size_of(weight: "torch.Tensor") -> int:
    """Numbers in all of a weight."""
    return int(weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel())


def settle_deepspeed(plugin: Any, dtype: str) -> None:
    """Have DeepSpeed share the model that is trained and no other, and compute it in `dtype` as without DeepSpeed.

    Told of it, transformers would load every model in parts from here on, an engine's and a reward's too. And in
    bfloat16 DeepSpeed would leave the model and the sum of its micro-batches' gradients no float32.
    """
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()
    deepspeed.set_hf_deepspeed_config = lambda _: None
    autocast = {"enabled": dtype != "float32", "dtype": dtype, "lower_precision_safe_modules": []}
    plugin.deepspeed_config |= {"bf16": {}, "fp16": {}, "torch_autocast": autocast}
