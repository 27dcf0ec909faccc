"""On an NVIDIA GPU with vLLM: its engine samples from the same distribution as the model, also after a sync."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
pytest.importorskip("vllm")

from r1lite.engines import Request, Sampling, VLLMEngine  # noqa: E402
from r1lite.fleet import open_engine  # noqa: E402
from r1lite.models import end_tokens, load_model, load_tokenizer  # noqa: E402

BASE = "data/tiny_base"
PROMPTS = [[7, 8, 9], [10, 11, 12, 13], [9, 9]]


def test_a_closed_engine_gives_the_gpu_back():
    """As in an evaluation of two models: each fleet asks for most of the memory. It comes first in this file, since the
    engine of the tests below lives in this process and keeps its share to the end."""
    for _ in range(2):
        with closing(open_engine("vllm", Path(BASE), load_tokenizer(BASE), 128, 0)) as engine:
            finished = [
                each for batch in engine.stream([Request(ids, 4) for ids in PROMPTS], Sampling(64)) for each in batch
            ]
        assert Counter(each.index for each in finished) == dict.fromkeys(range(len(PROMPTS)), 4)
        assert all(1 <= len(completion.token_ids) <= 64 for each in finished for completion in each.completions)


@pytest.fixture(scope="module")
def engine():
    tokenizer = load_tokenizer(BASE)
    model = load_model(BASE, "float32")
    engine = VLLMEngine(
        Path(BASE),
        end_tokens(model.generation_config, tokenizer),
        128,
        0,
        memory_share=0.3,
        dtype="float32",
    )
    yield engine, model
    engine.close()


def largest_difference(engine, model) -> float:
    """Between the engine's log-probs and those of a plain forward pass over the same tokens."""
    differences = []
    for prompt, group in zip(PROMPTS, engine.generate(PROMPTS, 8, Sampling(64)), strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion.token_ids], device="cuda")
            with torch.no_grad():
                logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            differences.append((expected.cpu() - torch.tensor(completion.logprobs)).abs().max().item())
    return max(differences)


def test_logprobs_agree_with_the_model(engine):
    assert largest_difference(*engine) < 0.05


def test_sync_hands_over_the_weights(engine):
    vllm, model = engine
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    assert largest_difference(vllm, model) > 0.5
    vllm.sync(model)
    assert largest_difference(vllm, model) < 0.05
