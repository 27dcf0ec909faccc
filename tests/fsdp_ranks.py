"""A rank of a GRPO stage on scripted rollouts, its model sharded, for test_fsdp."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from packed_ranks import shard_on_the_cpu
from test_packed_trainer import MAX_TOKENS, TEMPERATURE, Scripted
from test_trainer import make_config, make_stage

from r1lite import rollouts, trainer
from r1lite.artifacts import Stopped


def main(model: Path, stage: Path) -> None:
    torch.set_num_threads(1)
    shard_on_the_cpu()
    rollouts.prove_sync = lambda *_: None
    trainer.rollout_engine = lambda *_: Scripted(model, "transformers")
    config = make_config(
        model,
        rewards=[{"use": "tests/test_packed_trainer.py:first_token"}],
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
        probe=None,
        trainer={"learning_rate": 0.01, "max_steps": 3},
    )
    with suppress(Stopped):
        trainer.train_grpo(config, make_stage(stage, config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
