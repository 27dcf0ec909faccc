"""A rank of a GRPO stage on scripted rollouts, kept and resumed as any stage is, for test_sharding."""

import json
import sys
from contextlib import suppress
from pathlib import Path

from packed_ranks import scripted_stage
from test_trainer import make_stage

from r1lite.artifacts import Stopped
from r1lite.trainer import train_grpo
from r1lite.worker import end


def main(model: Path, stage: Path, keys: dict) -> None:
    config = scripted_stage(model, keys, tokens_per_micro_batch=130)
    with suppress(Stopped):
        train_grpo(config, make_stage(stage, config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    end(0)
