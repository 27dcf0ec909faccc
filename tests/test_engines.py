import pytest
import torch

from r1lite.engines import Sampling, TransformersEngine, chunks, in_order, pick_engine, sample
from r1lite.models import load_model, load_tokenizer

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5]]


@pytest.fixture
def engine(toy_model):
    model, tokenizer = load_model(toy_model, "float32"), load_tokenizer(toy_model)
    return TransformersEngine(model, [tokenizer.eos_token_id], tokenizer.pad_token_id)


def true_logprobs(model, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """The completion's log-probs by one forward pass over the whole text, without padding and without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampled_tokens(engine, temperature):
    groups = in_order(engine.generate(PROMPTS, 16, Sampling(24, temperature, seed=3)))
    lengths = set()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            lengths.add(len(completion.token_ids))
            expected = true_logprobs(engine.model, prompt, completion.token_ids, temperature)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
    assert len(lengths) > 5, "rows must end at different times for this test to see rows leave the batch"


def test_a_completion_ends_with_the_end_token_or_is_truncated(engine):
    (eos,) = engine.eos_token_ids
    completions = [c for group in in_order(engine.generate(PROMPTS, 16, Sampling(24, seed=0))) for c in group]
    assert {c.truncated for c in completions} == {True, False}
    for completion in completions:
        assert len(completion.token_ids) == len(completion.logprobs) <= 24
        assert (eos in completion.token_ids) == (not completion.truncated)
        assert eos not in completion.token_ids[:-1]


def test_the_same_seed_samples_the_same_and_another_seed_does_not(engine):
    first, again, other = (in_order(engine.generate(PROMPTS, 4, Sampling(16, seed=seed))) for seed in (1, 1, 2))
    assert first == again != other


def test_sampling_leaves_the_global_random_state_and_the_training_mode_alone(engine):
    engine.model.train()
    engine.batch = 2
    before = torch.get_rng_state()
    for _ in engine.generate(PROMPTS, 2, Sampling(8)):
        assert engine.model.training and not torch.is_inference_mode_enabled(), "while a group is graded"
    assert torch.equal(torch.get_rng_state(), before)


def test_near_zero_temperature_is_transformers_greedy_search(engine):
    (eos,) = engine.eos_token_ids
    for prompt in PROMPTS:
        ((completion,),) = in_order(engine.generate([prompt], 1, Sampling(16, temperature=1e-4)))
        expected = engine.model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=eos)
        assert completion.token_ids == expected[0, len(prompt) :].tolist()


def test_many_prompts_go_in_several_batches_and_come_back_in_order(engine):
    engine.batch = 4
    groups = in_order(engine.generate(PROMPTS * 3, 2, Sampling(4, temperature=1e-4)))
    assert groups == [group for _ in range(3) for group in groups[:3]]


def frequencies(probabilities: list[float], **options) -> torch.Tensor:
    logits = torch.tensor(probabilities).log().expand(20_000, -1)
    tokens, _ = sample(logits, Sampling(1, **options), torch.Generator().manual_seed(0))
    return torch.bincount(tokens, minlength=len(probabilities)) / len(tokens)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.8}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.5263, 0.3158, 0.1579, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.6849, 0.2466, 0.0616, 0.0068]),
    ],
)
def test_sampled_frequencies(options, expected):
    assert torch.allclose(
        frequencies([0.5, 0.3, 0.15, 0.05], **options), torch.tensor(expected, dtype=torch.float32), atol=0.015
    )


def test_the_logprob_is_that_of_the_cut_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    token, logprob = sample(logits, Sampling(1, top_k=1), torch.Generator())
    assert (token.item(), logprob.item()) == (0, pytest.approx(0.0))


def test_asking_for_vllm_where_it_cannot_run_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert pick_engine("auto") == "transformers"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        pick_engine("vllm")


def test_chunks():
    assert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]
