"""On an NVIDIA GPU with vLLM: its engine samples from the same distribution as the model, also after a sync."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from statistics import fmean

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
pytest.importorskip("vllm")

from r1lite.engines import Request, Sampling, in_order  # noqa: E402
from r1lite.fleet import open_engine  # noqa: E402
from r1lite.models import end_tokens, load_model, load_tokenizer  # noqa: E402
from r1lite.sync_proof import logprobs, prove_sync  # noqa: E402
from r1lite.vllm_engine import VLLMEngine  # noqa: E402

BASE = "data/tiny_base"
PROMPTS = [[7, 8, 9], [10, 11, 12, 13], [9, 9]]


def test_a_closed_engine_gives_the_gpu_back():
    """As in an evaluation of two models: each fleet asks for most of the memory."""
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
    model = load_model(BASE, "float32").cuda()
    with closing(
        VLLMEngine(Path(BASE), end_tokens(model.generation_config, tokenizer), 128, 0, "float32", 0.3, sleeps=True)
    ) as engine:
        yield engine, model


def difference(engine, model, prompts=PROMPTS, n=8) -> float:
    """Of a token's log-prob by the engine and by a plain forward pass, on average, at a temperature."""
    groups = in_order(engine.generate(prompts, n, Sampling(64, 0.8)))
    pairs = [(prompt, each) for prompt, group in zip(prompts, groups, strict=True) for each in group]
    expected = logprobs(model, [prompt for prompt, _ in pairs], [c.token_ids for _, c in pairs], 0.8, torch.float32)
    assert len(pairs) == len(prompts) * n and all(len(c.logprobs) == len(c.token_ids) for _, c in pairs)
    return fmean(
        abs(a - b)
        for (_, c), found in zip(pairs, expected, strict=True)
        for a, b in zip(c.logprobs, found, strict=True)
    )


def test_logprobs_agree_with_the_model(engine):
    assert difference(*engine) < 0.01


def test_logprobs_are_kept_apart_where_more_requests_come_than_run_at_once(engine):
    assert difference(*engine, prompts=[[7, 8, 9 + index % 30] for index in range(1300)], n=1) < 0.01


def assert_follows(vllm, model):
    """A sync hands over the weights, and a proof tells that there was none."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    assert difference(vllm, model) > 0.5
    with pytest.raises(RuntimeError, match="has not the trainer's weights"):
        prove_sync(vllm, model, PROMPTS, 1.0, 8)
    vllm.sync(model)
    prove_sync(vllm, model, PROMPTS, 1.0, 8)
    assert difference(vllm, model) < 0.01


def test_sync_hands_over_the_weights(engine):
    assert_follows(*engine)


def test_an_engine_that_sleeps_gives_its_memory_back(engine):
    vllm, _ = engine
    in_order(vllm.generate(PROMPTS, 1, Sampling(4)))
    asleep, total = torch.cuda.mem_get_info()
    vllm.wake()
    awake, _ = torch.cuda.mem_get_info()
    assert asleep - awake > 0.2 * total
