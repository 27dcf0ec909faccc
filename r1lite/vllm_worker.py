"""What r1lite adds to vLLM's workers, one of which is on each GPU: log-probs, weights from a trainer, their sums."""

import base64
from collections.abc import Iterator
from typing import Any

import torch

from r1lite.engines import weight_sums
from r1lite.shared_buffer import Place, end_of, open_buffer, views
from r1lite.vllm_logprobs import LogprobRecorder
from r1lite.weight_group import broadcast, join


class RolloutWorker:
    """Mixed into vLLM's own class (its `worker_extension_cls`), whose model runner, device and rank it uses."""

    model_runner: Any
    device: torch.device
    rank: int  # among the GPUs that share a copy of the model

    def r1lite_record(self, max_length: int) -> None:
        self.r1lite_recorder = LogprobRecorder(self.model_runner, max_length)

    def r1lite_make_room(self, rows: int) -> None:
        self.r1lite_recorder.make_room(rows)

    def r1lite_read(self, places: list[tuple[int, int, int]]) -> list[list[float]]:
        """Of completions by their row, and the numbers of tokens of prompt and completion. All GPUs have the same."""
        return [] if self.rank else self.r1lite_recorder.read(*map(list, zip(*places, strict=True)))

    def r1lite_open(self, handle: dict[str, Any]) -> None:
        """Weights will come through a buffer of a trainer on this GPU."""
        self.r1lite_buffer, self.r1lite_group = open_buffer(**handle), None

    def r1lite_join(self, told: dict[str, Any]) -> None:
        """Weights will come from a trainer on another GPU."""
        group_id = base64.b64decode(told["id"])
        self.r1lite_buffer = torch.empty(told["size"], dtype=torch.uint8, device=self.device)
        self.r1lite_group = join(told["first"] + self.rank, told["ranks"], self.device, lambda _: group_id)

    def r1lite_load(self, layout: list[Place]) -> None:
        if self.r1lite_group:
            broadcast(self.r1lite_group, self.r1lite_buffer[: end_of(layout)])
        self.model_runner.model.load_weights(views(self.r1lite_buffer, layout))
        if self.r1lite_buffer.is_cuda:  # it is written over next
            torch.cuda.synchronize()

    def r1lite_sums(self, dtype: str) -> tuple[float, float]:
        return weight_sums(share_of(self.model_runner.model, self.rank), getattr(torch, dtype))


def share_of(model: Any, rank: int) -> Iterator[torch.Tensor]:
    """A model's weights, such that all GPUs which share it have each of them once."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    seen = set()
    for layer in model.modules():
        for name, weight in layer.named_parameters(recurse=False):
            if id(weight) in seen:  # embeddings that are tied
                continue
            seen.add(id(weight))
            parted = isinstance(layer, ColumnParallelLinear | VocabParallelEmbedding) or (
                isinstance(layer, RowParallelLinear) and name == "weight"
            )
            if isinstance(layer, QKVParallelLinear) and rank % layer.num_kv_head_replicas:
                yield weight[: layer.num_heads * layer.head_size]  # another has the same keys' and values'
            elif parted or rank == 0:
                yield weight
