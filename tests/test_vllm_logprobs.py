"""The recorder on samplers with the arguments of two versions of vLLM; tests/gpu/test_vllm.py has the real one."""

import os
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

from r1lite.vllm_logprobs import LogprobRecorder
from r1lite.vllm_loop import RUNNER, with_newer_runner
from r1lite.vllm_process import SETTINGS

VOCABULARY = 11


class Sampler:
    """Samples the likeliest token."""

    def __init__(self):
        self.req_states = SimpleNamespace(max_num_reqs=3)

    def drawn(self, logits, return_logprobs):
        assert not return_logprobs
        return logits.argmax(-1), logits


class Sampler24(Sampler):
    def add_request(self, req_idx, prompt_len, sampling_params):
        pass

    def sample(
        self, logits, expanded_idx_mapping, idx_mapping_np, pos, input_ids, expanded_local_pos, return_logprobs=False
    ):
        return self.drawn(logits, return_logprobs)

    def add(self, slot, row):
        self.add_request(slot, 3, SimpleNamespace(extra_args={"row": row}))

    def step(self, logits, slots, places):
        self.sample(logits, slots, slots.numpy(), places, None, None, return_logprobs=False)


class Sampler31(Sampler):
    def add_request(self, req_idx, sampling_params):
        pass

    def sample(
        self,
        logits,
        expanded_idx_mapping,
        idx_mapping,
        idx_mapping_np,
        pos,
        input_ids,
        expanded_local_pos,
        seq_lens_upper_bound_np,
        return_logprobs=False,
    ):
        return self.drawn(logits, return_logprobs)

    def add(self, slot, row):
        self.add_request(slot, SimpleNamespace(extra_args={"row": row}))

    def step(self, logits, slots, places):
        self.sample(logits, slots, slots, slots.numpy(), places, None, None, None, return_logprobs=False)


@pytest.fixture
def vllm(monkeypatch):
    """What the recorder takes of vLLM and of a GPU."""
    module = ModuleType("logprob")
    module.compute_token_logprobs = lambda logits, tokens: logits.log_softmax(-1).gather(1, tokens)
    parts = ["vllm", "v1", "worker", "gpu", "sample", "logprob"]
    for place in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:place]), ModuleType(parts[place - 1]))
    monkeypatch.setitem(sys.modules, ".".join(parts), module)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


@pytest.mark.parametrize("kind", [Sampler24, Sampler31])
def test_each_row_has_its_own_log_probs_though_slots_are_used_again(vllm, kind):
    sampler = kind()
    recorder = LogprobRecorder(SimpleNamespace(sampler=sampler, device=torch.device("cpu")), max_length=9)
    recorder.make_room(5)
    generator = torch.Generator().manual_seed(0)
    prompts, lengths = [3, 1, 4, 2, 1], [4, 2, 5, 3, 8]
    expected = [[] for _ in prompts]
    waiting, running = list(range(5)), {}
    while waiting or running:
        for slot in {0, 1, 2} - running.keys():
            if waiting:
                running[slot] = waiting.pop(0)
                sampler.add(slot, running[slot])
        slots = list(running)[::-1]
        logits = torch.randn(len(slots), VOCABULARY, generator=generator)
        places = torch.tensor([prompts[running[slot]] - 1 + len(expected[running[slot]]) for slot in slots])
        sampler.step(logits, torch.tensor(slots), places)
        for slot, most in zip(slots, logits.log_softmax(-1).amax(-1).tolist(), strict=True):
            expected[running[slot]].append(most)
            if len(expected[running[slot]]) == lengths[running[slot]]:
                del running[slot]
    order = [4, 0, 2, 1, 3]
    found = recorder.read(order, [prompts[row] for row in order], [lengths[row] for row in order])
    assert found == [expected[row] for row in order]


@pytest.mark.parametrize(
    ("said", "refused", "runners"),
    [(None, False, ["1"]), (None, True, ["1", "0"]), ("0", False, ["0"])],
    ids=["as a rule", "a model that it cannot run", "told otherwise"],
)
def test_vllm_is_asked_for_the_runner_that_the_recorder_needs(monkeypatch, said, refused, runners):
    monkeypatch.setenv(RUNNER, said or "")  # put back at the end
    if said is None:
        monkeypatch.delenv(RUNNER)
    seen = []

    def make(**settings):
        assert settings == {"model": "there", **SETTINGS}
        seen.append(os.environ[RUNNER])
        if refused and seen[-1] == "1":
            raise ValueError("Model Runner V2 does not yet support: hybrid models")
        return "vllm"

    assert with_newer_runner(make, {"model": "there"}) == "vllm"
    assert seen == runners


def test_another_error_of_vllm_is_told_at_once(monkeypatch):
    monkeypatch.setenv(RUNNER, "1")

    def make(**_):
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        with_newer_runner(make, {})
