"""A rank of a run of train_grpo on scripted rollouts, for test_packed_trainer."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType
from safetensors.torch import save_file
from test_packed_trainer import MAX_TOKENS, TEMPERATURE, Scripted
from test_trainer import make_config, make_stage

from r1lite import packed_trainer, rollouts, trainer
from r1lite.records import read_rows
from r1lite.sharding import is_sharded, whole, zero_stage
from r1lite.stages.grpo import Config
from r1lite.worker import end

FSDP = os.environ.get("ACCELERATE_USE_FSDP") == "true"


def shard_on_the_cpu() -> None:
    """Have accelerate share the model, or what else DeepSpeed shares, here too, which it does on GPUs alone."""
    real = AcceleratorState.__init__

    def init(self, *given, **named):
        real(self, *given, **named)
        if self.distributed_type == DistributedType.MULTI_CPU and FSDP:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = named.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
        if self.distributed_type == DistributedType.MULTI_CPU and zero_stage():
            self.distributed_type, self._mixed_precision = DistributedType.DEEPSPEED, "no"
            self.deepspeed_plugins = plugin = named["deepspeed_plugin"]
            plugin.set_mixed_precision(named["mixed_precision"])
            plugin.select(_from_accelerator_state=True)

    AcceleratorState.__init__ = init
    if zero_stage():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which it would compile; gloo does as well


def all_there(engine, model, *_) -> None:
    """In place of the proof of a sync: what processes share is whole where it is asked for."""
    theirs = engine.model.parameters()
    assert all(whole(one).shape == other.shape for one, other in zip(model.parameters(), theirs, strict=True))


def scripted_stage(model: Path, keys: dict, **changes) -> Config:
    """A stage's config, once trainers here take scripted rollouts, and share the model where the launcher says so."""
    torch.set_num_threads(1)
    shard_on_the_cpu()
    rollouts.prove_sync = all_there
    trainer.rollout_engine = lambda *_: Scripted(model, "transformers")
    return make_config(
        model,
        rewards=[{"use": "tests/test_packed_trainer.py:first_token"}],
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
        probe=None,
        trainer={"max_steps": 3, **keys},
        **changes,
    )


def main(model: Path, out: Path, keys: dict) -> None:
    tokens = []
    real = packed_trainer.pack

    def pack(ids, mask, width):
        if torch.is_grad_enabled():
            tokens.append(int(mask.sum()))
        return real(ids, mask, width)

    def rollouts_of(built):
        return sorted((built.stage.path / "rollouts").glob("*.parquet"))

    def run(built, *_):
        built.args.save_strategy = "no"
        built.train()
        assert is_sharded(built.model) == FSDP
        weights = {name: whole(each).contiguous() for name, each in built.model.named_parameters()}
        rank = int(os.environ["RANK"])
        (out / f"tokens-{rank}.json").write_text(json.dumps(tokens))
        if rank == 0:
            losses = [row["loss"] for row in built.state.log_history if "loss" in row]
            asked = [[row["problem_id"] for row in read_rows(file)] for file in rollouts_of(built)]
            (out / "run.json").write_text(json.dumps({"losses": losses, "asked": asked}))
            save_file(weights, out / "weights")

    packed_trainer.pack = pack
    trainer.train_from_engine = run
    sgd = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05}
    config = scripted_stage(model, {**sgd, **keys}, tokens_per_micro_batch=130)
    with tempfile.TemporaryDirectory() as path:
        trainer.train_grpo(config, make_stage(Path(path), config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    end(0)
