"""On an NVIDIA GPU, in bfloat16: packed rows, with compiled layers, learn what stock TRL's padded ones do."""

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from conftest import save_model  # noqa: E402
from test_packed_trainer import distance, train  # noqa: E402, F401

from r1lite.models import load_tokenizer  # noqa: E402

CASES = [
    {"loss_type": "dr_grpo", "beta": 0.0},
    {"loss_type": "grpo", "beta": 0.04},
    {"loss_type": "dapo", "importance_sampling_level": "sequence", "num_iterations": 2},
    {"loss_type": "cispo", "beta": 0.0, "gradient_checkpointing": True},
]


@pytest.fixture(params=[0.02, 0.3], ids=["plain", "sharp"])
def toy_model(request, tmp_path_factory):
    """With weights as models begin with, and with so large ones that bfloat16 itself is off by more than 0.02."""
    path = tmp_path_factory.mktemp("toy")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 1, "initializer_range": request.param}
    save_model(path, load_tokenizer("data/tiny_base"), 0, tie_word_embeddings=True, **shape)
    return path


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: keys["loss_type"])
def test_gradients_are_stock_trls(train, keys, request):  # noqa: F811
    packed, stock = train(trainer_keys=keys), train(stock=True, trainer_keys=keys)
    exact = train(stock=True, trainer_keys={**keys, "bf16": False})
    assert packed.trainer.args.bf16 and stock.trainer.args.bf16 and packed.trainer.compiles
    for mine, theirs, right in zip(packed.steps, stock.steps, exact.steps, strict=True):
        assert theirs.norm() > 0
        assert distance(mine, right) < 1.3 * distance(theirs, right), "no farther from float32 than stock TRL"
        if "plain" in request.node.name:
            assert distance(mine, theirs) < 2e-2
