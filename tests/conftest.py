"""Fixtures: a stage directory, and a model so small that training it takes a second."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Recipes name cards and models relative to the repository."""
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    """An untrained model of the tiny world's vocabulary: 2 layers, 32 wide."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from r1lite.plugins import load_module
    from r1lite.stages.base import build_tokenizer

    path = tmp_path_factory.mktemp("toy")
    tokens = [token for task in ("chain", "courtesy") for token in load_module(f"data/{task}.py").TOKENS]
    tokenizer = build_tokenizer(list(dict.fromkeys(tokens)))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
