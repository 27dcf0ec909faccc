"""Weights of which FSDP2 or DeepSpeed's ZeRO-3 leaves each process a part, and all of them where they are needed."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def total_size(model: Any) -> int:
    return sum(map(size_of, model.parameters()))


def named_weights(model: Any) -> "Iterator[tuple[str, torch.Tensor]]":
    """All of each weight, one after the other."""
    return ((name, whole(weight)) for name, weight in model.named_parameters())


def settle_deepspeed(plugin: Any) -> None:
    """Have DeepSpeed share the model that is trained and no other, and leave its weights and gradients in float32.

    Told of DeepSpeed, transformers would load every model in parts from here on, an engine's and a reward's too.
    """
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()
    deepspeed.set_hf_deepspeed_config = lambda _: None
    plugin.deepspeed_config |= {"bf16": {}, "fp16": {}}  # neither on nor off, as accelerate would have it one of both


def as_without_deepspeed(trainer: Any, dtype: str) -> None:
    """Have a trainer's models of float32 compute in `dtype`, and tied weights saved once, as without DeepSpeed."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32

    if zero_stage() == 2:
        trainer.accelerator.get_state_dict = lambda engine: engine.module.state_dict()
    for name in ("model", "ref_model", "teacher_model") if dtype != "float32" else ():
        if (wrapped := getattr(trainer, name, None)) is not None:
            model = trainer.accelerator.unwrap_model(wrapped)
            autocast = torch.autocast(model.device.type, getattr(torch, dtype))
            model.forward = convert_outputs_to_fp32(autocast(model.forward))
