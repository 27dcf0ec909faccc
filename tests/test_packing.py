import itertools
from contextlib import suppress

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_trainer import make_config
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from r1lite.models import load_model
from r1lite.packing import PACKED, compile_layers, fewest, longest_first, pack, packed_attention, split
from r1lite.trainer import prove_packing, token_budget

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=30)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 150), st.integers(0, 29))
def test_split_puts_each_sequence_in_one_part_within_the_budget_and_makes_few_parts(lengths, spare, more):
    multiple = 1 + more % len(lengths)
    lengths = lengths[: len(lengths) // multiple * multiple]
    budget = max(lengths) + spare + 1
    parts = split(lengths, budget, multiple)
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    assert all(part and sum(lengths[index] for index in part) <= budget for part in parts)
    assert multiple <= len(parts) < -(-2 * sum(lengths) // budget) + 1 + multiple and len(parts) % multiple == 0


def fits(lengths: list[int], room: list[int]) -> bool:
    """Whether all of these have a place somewhere, by trying all places."""
    return not lengths or any(
        fits(lengths[1:], [*room[:place], left - lengths[0], *room[place + 1 :]])
        for place, left in enumerate(room)
        if left >= lengths[0]
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 30))
def test_fewer_parts_than_fewest_never_hold_them_all(lengths, spare):
    budget = max(1, *lengths) + spare
    assert not fits(lengths, [budget] * (fewest(lengths, budget) - 1))


def test_what_needs_many_parts_is_not_tried_with_fewer():
    assert fewest([1044] * 512, 2048) == 512 and fewest([1044] * 512, 16384) == 35
    assert fewest([1, 0, 0], 1) == 1


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 12))
def test_one_part_more_never_makes_the_largest_part_larger(lengths, n):
    fewer, more = (max(sum(lengths[i] for i in part) for part in longest_first(lengths, k)) for k in (n, n + 1))
    assert more <= fewer


def test_split_is_as_even_as_longest_first_makes_it():
    assert split([4, 9, 6, 7, 5, 8], budget=15) == [[0, 1], [4, 5], [2, 3]]
    assert split([0, 0, 0], budget=1, multiple=3) == [[0], [1], [2]]
    assert split([3, 3, 3], budget=9) == [[0, 1, 2]]
    assert split([5, 5, 5], budget=9) == [[0], [1], [2]]  # two parts hold 15 tokens, but no two of these


def rows(lengths, seed=0):
    """ids, mask and width of completions for rows of so many prompt and completion tokens; what is masked is noise."""
    left, right = (max(column) for column in zip(*lengths, strict=True))
    ids = torch.randint(50, (len(lengths), left + right), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[0] * (left - p) + [1] * (p + c) + [0] * (right - c) for p, c in lengths])
    return ids, mask, right


ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6)


@settings(deadline=None)
@given(ROWS)
def test_labels_are_the_completions_next_tokens_and_positions_start_anew(lengths):
    assume(any(completion for _, completion in lengths))
    ids, mask, width = rows(lengths)
    inputs = pack(ids, mask, width).inputs
    alone = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    assert inputs["input_ids"].tolist() == [list(itertools.chain(*alone))]
    assert inputs["position_ids"].tolist() == [[place for each in alone for place in range(len(each))]]
    labels = [[-100] * (p - 1) + each[p:] + [-100] for (p, _), each in zip(lengths, alone, strict=True)]
    assert inputs["shift_labels"].tolist() == [list(itertools.chain(*labels))]
    assert inputs["cu_seq_lens_q"].tolist() == [0, *itertools.accumulate(map(len, alone))]
    assert inputs["max_length_q"] == max(map(len, alone))


@settings(deadline=None)
@given(ROWS)
def test_unpack_puts_values_back_and_0_elsewhere(lengths):
    assume(any(completion for _, completion in lengths))
    ids, mask, width = rows(lengths)
    packed = pack(ids + 1, mask, width)
    assert torch.equal(packed.unpack(packed.inputs["input_ids"][0]), (ids + 1) * mask)


SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "qwen3-gqa": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    ),
}
SEQUENCES = [(1, 40), (1, 1), (17, 3), (6, 0), (12, 25), (2, 9)]


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().train()


def chosen(logits_TV, ids_T):
    """The log-probs of the next tokens."""
    return logits_TV[:-1].log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]


def apart(model, ids, mask, width):
    """The completions' log-probs (B, C), of each sequence run alone."""
    logps = []
    for row, kept in zip(ids, mask.bool(), strict=True):
        n = int(kept[-width:].sum())
        mine = chosen(model(input_ids=row[kept][None]).logits[0], row[kept])
        logps.append(torch.nn.functional.pad(mine[len(mine) - n :], (0, width - n)))
    return torch.stack(logps)


def together(model, ids, mask, width):
    """The same of all sequences in one row."""
    packed = pack(ids, mask, width)
    labels = packed.inputs.pop("shift_labels")[0]
    every = model(**packed.inputs).logits[0].log_softmax(-1)
    logps = every.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    return packed.unpack(logps)[:, -width - 1 : -1]


def test_packed_and_plain_logprobs_agree(model):
    ids, mask, width = rows(SEQUENCES)
    with torch.no_grad():
        expected = apart(model, ids, mask, width)
        with packed_attention(model, half=False):
            got = together(model, ids, mask, width)
    assert (got - expected).abs().max() < 1e-5


def test_a_packed_sequence_sees_no_other(model):
    ids, mask, width = rows(SEQUENCES)
    other = torch.where(torch.arange(len(ids))[:, None] == 4, ids, (ids + 1) % 50)
    with torch.no_grad(), packed_attention(model, half=False):
        one, two = (together(model, each, mask, width) for each in (ids, other))
    assert torch.equal(one[4], two[4]) and not torch.equal(one[0], two[0])


def gradients(model, logps, weights):
    model.zero_grad()
    (logps * weights).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_and_plain_gradients_agree(model, checkpointing):
    ids, mask, width = rows(SEQUENCES)
    weights = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(1))
    expected = gradients(model, apart(model, ids, mask, width), weights)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with packed_attention(model, half=False):
        got = gradients(model, together(model, ids, mask, width), weights)
    for name, one, other in zip(dict(model.named_parameters()), got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() > 0, name


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_own_attention_is_back_afterwards(model, fails):
    before = model.config._attn_implementation
    assert before != PACKED
    with suppress(ZeroDivisionError), packed_attention(model, half=False):
        assert model.config._attn_implementation == PACKED
        if fails:
            raise ZeroDivisionError
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_learn_the_same_and_serve_packed_rows_alone(model, monkeypatch, checkpointing):
    ids, mask, width = rows(SEQUENCES)
    weights = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(1))
    if checkpointing:
        model.gradient_checkpointing_enable()
    with packed_attention(model, half=False):
        expected = gradients(model, together(model, ids, mask, width), weights)
    ran = []

    def compiled(forward, dynamic):
        assert dynamic
        return lambda *given, **named: ran.append(forward) or forward(*given, **named)

    monkeypatch.setattr(torch, "compile", compiled)
    compile_layers(model)
    apart(model, ids, mask, width)
    assert ran == []
    with packed_attention(model, half=False):
        got = gradients(model, together(model, ids, mask, width), weights)
    assert len(ran) == (4 if checkpointing else 2)
    apart(model, ids, mask, width)
    assert len(ran) == (4 if checkpointing else 2)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


PROMPTS = [[5, 6, 7, 8, 9], [10, 11]]


def test_prove_packing_accepts_a_model_whose_attention_is_plain(toy_model, model):
    prove_packing(load_model(toy_model, "float32"), PROMPTS, half=False)
    prove_packing(model, PROMPTS, half=False)


def test_prove_packing_refuses_a_model_whose_attention_is_not(toy_model):
    torch.manual_seed(0)
    shape = {**SHAPE, "num_key_value_heads": 2, "head_dim": 16, "attn_logit_softcapping": 1.0}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, attn_implementation="eager"))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM .* `stock: true`"):
        prove_packing(model, PROMPTS, half=False)


@pytest.mark.parametrize(("stated", "longest", "budget"), [(None, 10**6, 10**6), (30, 30, 30), (64, 30, 64)])
def test_the_budget_holds_the_longest_sequence(toy_model, stated, longest, budget):
    assert token_budget(make_config(toy_model, tokens_per_micro_batch=stated), longest) == budget


def test_a_budget_below_the_longest_sequence_is_an_error_that_says_what_to_set(toy_model):
    config = make_config(toy_model, tokens_per_micro_batch=29)
    with pytest.raises(ValueError, match="tokens_per_micro_batch: 29 .* max_tokens: 12; set it to 30 or more"):
        token_budget(config, 30)
