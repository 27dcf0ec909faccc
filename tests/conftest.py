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
    from r1lite.plugins import load_module
    from r1lite.stages.base import build_tokenizer

    path = tmp_path_factory.mktemp("toy")
    tokens = [token for task in ("chain", "courtesy") for token in load_module(f"data/{task}.py").TOKENS]
    tokenizer = build_tokenizer(list(dict.fromkeys(tokens)))
    save_model(path, tokenizer, 0, hidden_size=32, num_hidden_layers=2, num_key_value_heads=1, tie_word_embeddings=True)
    return path


def save_model(path: Path, tokenizer, seed: int, **shape) -> None:
    """An untrained model with two heads of 16 and its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    same = {"num_attention_heads": 2, "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128}
    config = Qwen3Config(**{"vocab_size": len(tokenizer), "initializer_range": 0.3, **same, **ids, **shape})
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
