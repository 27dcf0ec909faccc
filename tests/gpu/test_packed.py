"""On an NVIDIA GPU, in bfloat16: packed rows, with compiled layers, learn what stock TRL's padded ones do."""

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from test_packed_trainer import distance, train  # noqa: E402, F401

CASES = [
    {"loss_type": "dr_grpo", "beta": 0.0},
    {"loss_type": "grpo", "beta": 0.04},
    {"loss_type": "dapo", "importance_sampling_level": "sequence", "num_iterations": 2},
    {"loss_type": "cispo", "beta": 0.0, "gradient_checkpointing": True},
]


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: keys["loss_type"])
def test_gradients_are_stock_trls(train, keys):  # noqa: F811
    packed, stock = train(trainer_keys=keys), train(stock=True, trainer_keys=keys)
    assert packed.trainer.args.bf16 and stock.trainer.args.bf16 and packed.trainer.compiles
    for mine, theirs in zip(packed.steps, stock.steps, strict=True):
        assert theirs.norm() > 0 and distance(mine, theirs) < 2e-2
