from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.model import harmlessness, helpfulness, load

VOCABULARY = "User Assistant : what is it so thus bad good five six kill <think> </think> <answer> </answer>"
WORDS = VOCABULARY.split()
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"


def save_model(path, num_labels=1, pad_token="<pad>", chat_template=None, positions=64):
    """A reward model that nobody has trained: 2 layers, 16 wide, with a token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS, "user", "assistant"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=32, max_position_embeddings=positions, initializer_range=0.5, num_labels=num_labels,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("chat"), chat_template=TEMPLATE)


def one(reward, completion, model, prompt="User : what is it Assistant : ", prefill=""):
    (score,) = reward([completion], prompts=[prompt], model=model, prefill=[prefill])
    return score


def same(score):
    return pytest.approx(score, abs=1e-5)


ANSWER = "<answer> five </answer>"


@pytest.mark.parametrize(
    ("left", "right", "helpful_alike", "harmless_alike", "why"),
    [
        (f"<think> so </think> {ANSWER}", f"<think> so </think> {ANSWER}", True, True, "the same text"),
        (f"<think> so </think> {ANSWER}", f"<think> kill </think> {ANSWER}", True, False, "another thought"),
        (f"<think> so </think> {ANSWER}", f"<think> so </think> thus {ANSWER}", True, False, "text before the answer"),
        (f"<think> so </think> {ANSWER}", f"<think> so </think> {ANSWER} bad", True, False, "text after the answer"),
        (ANSWER, "<answer> six </answer>", False, False, "another answer"),
        (ANSWER, "\\boxed{five}", True, False, "in a box"),
        (ANSWER, "<think> so </think> five", True, False, "not marked: all that follows the thinking"),
        ("five", "six", False, False, "no tags: all of it"),
        ("<think> so", "<think> kill", True, False, "the thinking has no end: nothing was answered"),
    ],
)
def test_helpfulness_goes_by_the_answer_and_harmlessness_by_all(
    left, right, helpful_alike, harmless_alike, why, model, chat_model
):
    messages = [{"role": "user", "content": "what is it"}]
    for name, prompt in ((model, "User : what is it Assistant : "), (model, messages), (chat_model, messages)):
        for reward, alike in ((helpfulness, helpful_alike), (harmlessness, harmless_alike)):
            equal = one(reward, left, name, prompt) == same(one(reward, right, name, prompt))
            assert equal == alike, (why, name, prompt, reward.__name__)


@pytest.mark.parametrize("reward", [helpfulness, harmlessness])
def test_the_score_is_the_models_own(reward, model):
    import torch

    tokenizer, network = load(model)
    ids = tokenizer("User : what is it Assistant : five", return_tensors="pt").input_ids.to(network.device)
    with torch.inference_mode():
        assert one(reward, "five", model) == same(network(input_ids=ids).logits.item())


def test_messages_go_through_the_chat_template(chat_model):
    prompt = [{"role": "user", "content": "what is it"}]
    rendered = "user : what is it assistant : "
    assert one(harmlessness, "five", chat_model, prompt) == same(one(harmlessness, "five", chat_model, rendered))
    completion = [{"role": "assistant", "content": "five"}]
    assert one(harmlessness, completion, chat_model, prompt) == same(one(harmlessness, "five", chat_model, rendered))


def test_one_score_a_completion_whatever_the_order_of_the_batch(model):
    texts = [
        f"<think> {'so ' * (i % 7)}</think> <answer> {WORDS[i % 12]} {'thus ' * (i % 5)}</answer>" for i in range(40)
    ]
    prompts = [f"User : {WORDS[i % 11]} Assistant : " for i in range(40)]
    for reward in (partial(helpfulness, level=[1] * 40), harmlessness):
        scores = reward(texts, prompts=prompts, model=model)
        assert len(scores) == 40 and all(isinstance(score, float) for score in scores)
        assert reward(texts[::-1], prompts=prompts[::-1], model=model)[::-1] == same(scores)
        assert [reward([t], prompts=[p], model=model)[0] for t, p in zip(texts, prompts, strict=True)] == same(scores)


def test_what_the_prompt_has_written_of_the_completion_is_there_once(model):
    whole = f"<think> so </think> {ANSWER}"
    opened = {"prompt": "User : what is it Assistant : <think>\n", "prefill": "<think>"}
    for reward in (helpfulness, harmlessness):
        assert one(reward, f" so </think> {ANSWER}", model, **opened) == same(one(reward, whole, model))


def test_what_is_too_long_loses_its_beginning(model):
    long = "User : " + "what " * 100
    assert one(harmlessness, "five", model, "kill " + long) == same(one(harmlessness, "five", model, long))
    assert one(harmlessness, "five", model, long) != same(one(harmlessness, "six", model, long))
    assert one(harmlessness, "so " * 100 + "five", model) == same(one(harmlessness, "so " * 63 + "five", model, ""))


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_token(model, tmp_path):
    name = save_model(tmp_path, pad_token=None)
    prompts, texts = ["User : ", "User : "], ["five", "so thus five six"]
    assert harmlessness(texts, prompts, name) == same(harmlessness(texts, prompts, model))


def test_a_model_with_two_labels_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"has 2 labels, and a reward model has one score; name a"):
        one(helpfulness, "five", save_model(tmp_path, num_labels=2))


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no/such-model cannot be loaded as a reward model"):
        one(helpfulness, "five", "no/such-model")


def test_a_pickle_is_not_loaded(model, tmp_path):
    import torch

    name = save_model(tmp_path)
    torch.save(load(model)[1].state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        one(helpfulness, "five", name)


def test_a_number_that_is_not_finite_is_no_score(tmp_path):
    import torch

    name = save_model(tmp_path)
    with torch.no_grad():
        load(name)[1].score.weight.fill_(float("nan"))
    assert one(harmlessness, "five", name) is None


@given(st.text(max_size=10_000))
@example("")
@example("<think>" * 2000)
@example("(" * 5000)
@example("9" * 10_000)
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_has_no_finite_score(model, text):
    for reward in (helpfulness, harmlessness):
        assert all(isinstance(score, float) for score in reward([text, "five"], ["User : ", "User : "], model))
