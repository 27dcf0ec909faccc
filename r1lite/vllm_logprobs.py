"""Log-probs of sampled tokens that stay on the GPU until a completion ends.

vLLM's own way makes Python objects of each token's log-prob in every step, which takes as long as the model itself
(bench/README.md). This one adds to vLLM's sampler (its model runner V2) two small kernels a step and nothing else.
"""

from inspect import signature
from typing import Any

import torch


class LogprobRecorder:
    """Records, for requests with an `extra_args` of {"row": row}, the log-probs of the distribution sampled from."""

    def __init__(self, runner: Any, max_length: int) -> None:
        """`runner` is vLLM's model runner; prompt and completion have at most `max_length` tokens together."""
        from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

        sampler, device = runner.sampler, runner.device
        self.values_RL = torch.zeros(0, max_length, device=device)  # row, and place of the token before
        self.row_of_slot = torch.zeros(sampler.req_states.max_num_reqs, dtype=torch.long, device=device)
        self.stream = torch.cuda.Stream(device)
        add_request, sample = sampler.add_request, sampler.sample

        # By name, since their order differs between versions of vLLM: 0.24 has other arguments than 0.31.
        of_request, of_sample = signature(add_request), signature(sample)

        def add_and_map(*given: Any, **named: Any) -> None:
            add_request(*given, **named)
            added = of_request.bind(*given, **named).arguments
            slot = added["req_idx"]
            self.row_of_slot[slot : slot + 1].fill_(added["sampling_params"].extra_args["row"])

        def sample_and_record(*given: Any, **named: Any) -> Any:
            tokens, processed_logits = sample(*given, **named)
            asked = of_sample.bind(*given, **named).arguments
            logprobs = compute_token_logprobs(processed_logits, tokens[:, None])[:, 0]
            self.values_RL[self.row_of_slot[asked["expanded_idx_mapping"]], asked["pos"]] = logprobs
            return tokens, processed_logits

        sampler.add_request, sampler.sample = add_and_map, sample_and_record

    def make_room(self, rows: int) -> None:
        """For so many in all; those that are there stay as they are."""
        more = self.values_RL.new_zeros(max(0, rows - len(self.values_RL)), self.values_RL.shape[1])
        self.values_RL = torch.cat([self.values_RL, more])
        self.stream.wait_stream(torch.cuda.current_stream(self.values_RL.device))  # before it is read

    def read(self, rows: list[int], prompts: list[int], completions: list[int]) -> list[list[float]]:
        """Of the completions in these rows, with so many tokens of prompt and of completion.

        vLLM tells of a token only after its step is done, so this need not wait for the step that goes on.
        """
        with torch.cuda.stream(self.stream):
            places = torch.tensor(rows, device=self.values_RL.device)
            found = self.values_RL[places, : max(map(sum, zip(prompts, completions, strict=True)))].cpu()
        return [
            values[prompt - 1 : prompt - 1 + length].tolist()
            for values, prompt, length in zip(found, prompts, completions, strict=True)
        ]
