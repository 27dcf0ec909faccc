"""GRPO on packed rows: TRL's loss and options, without padding and without what adds nothing to the gradient.

A micro-batch is as many whole sequences as `tokens_per_micro_batch` holds, so that memory is bounded by the budget and
not by the longest completion. Rows that cannot move the weights are not computed. Where one update follows each
rollout, the update's own forward pass also corrects for the engine's log-probs, so TRL's extra pass for them is saved.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from r1lite.packing import pack, packed_attention, split
from r1lite.rollout_trainer import RolloutTrainer

# Losses that are a mean over rows, whatever their lengths; all others go by tokens.
BY_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")


class PackedTrainer(RolloutTrainer):
    """RolloutTrainer that computes log-probs and gradients over packed rows."""

    budget: int  # tokens a micro-batch
    use_vllm: bool  # whether TRL corrects for an engine's log-probs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's gradient: the whole batch, a micro-batch at a time."""
        start = time.perf_counter()
        model.train()
        batch = self._prepare_inputs(inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        total = torch.zeros((), device=self.accelerator.device)
        with self.timed("forward_backward"), packed_attention(unwrapped, self.half):
            for micro, share, last in self.micro_batches(batch):
                self.accelerator.gradient_state._set_sync_gradients(last)  # DDP reduces once, as with TRL's own steps
                # TRL divides what a micro-batch is the mean of by this, so 1/share makes it a part of the batch's mean.
                self.current_gradient_accumulation_steps = 1 / share
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, micro)
                self.accelerator.backward(loss)
                total += loss.detach()
        self.current_gradient_accumulation_steps = 1
        self._step += 1
        self._metrics["train"]["step_time"].append(time.perf_counter() - start)
        return total

    @property
    def half(self) -> bool:
        return bool(self.args.bf16 or self.args.fp16)

    def micro_batches(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float, bool]]:
        """Micro-batches of rows, each with its share of the batch's mean, and whether it is the last.

        All ranks make the same number, as even in tokens as whole rows allow.
        """
        mask_BC = loss_mask(batch)
        lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
        useful = (batch["advantages"] != 0) & mask_BC.any(1)
        if self.beta or self._entropy_bonus_enabled or self.aux_loss_enabled or self.top_entropy_quantile < 1:
            useful = torch.ones_like(useful)
        # Where a rank has fewer useful rows than another has micro-batches, the shortest of the rest keep it going.
        order = sorted(range(len(lengths)), key=lambda row: (not useful[row], lengths[row]))
        rows = order[: max(1, int(useful.sum()))]
        n = len(split([lengths[row] for row in rows], self.budget))
        n = int(self.accelerator.gather(torch.tensor([n], device=mask_BC.device)).max())
        rows = order[: max(n, len(rows))]
        parts = split([lengths[row] for row in rows], self.budget, at_least=n)
        assert len(parts) == n
        self._metrics["train"]["rows_computed"].append(len(rows) / len(lengths))
        for number, part in enumerate(parts):
            places = torch.tensor([rows[index] for index in part], device=mask_BC.device)
            micro = {
                name: value[places] if torch.is_tensor(value) and value.dim() and len(value) == len(lengths) else value
                for name, value in batch.items()
            }
            if self.loss_type in BY_ROWS:
                share = len(part) / len(lengths)
            else:
                share = float(mask_BC[places].sum() / mask_BC.sum().clamp(min=1))
            share = max(share, 1e-9)  # where all of it is masked
            # What TRL divides by the number of all tokens is a part of the whole already: this undoes the share.
            micro["num_items_in_batch"] = batch["num_items_in_batch"] * share
            yield micro, share, number == n - 1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        corrects = self.use_vllm
        self.use_vllm = corrects and not self.one_update
        batch = super()._generate_and_score_completions(inputs)
        self.use_vllm = corrects
        return batch

    @property
    def one_update(self) -> bool:
        """Whether each rollout is learned from once, by the weights that made it."""
        return bool(self.args.steps_per_generation == 1 and self.num_iterations == 1)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.micro = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As TRL's: log-probs and entropies (B, C), C = logits_to_keep; 0 where TRL's are of padding."""
        if torch.is_grad_enabled():
            found = self.packed_logps(model, input_ids, attention_mask, logits_to_keep, compute_aux_loss)
            self.correct(found[0].detach())
            return found
        with self.timed("old_logprobs"):
            logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
            for part in split(attention_mask.sum(1).tolist(), self.budget):
                logps[part], *_rest = self.packed_logps(model, input_ids[part], attention_mask[part], logits_to_keep)
        return logps, None, None

    def packed_logps(
        self, model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor, width: int, compute_aux_loss: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        packed = pack(ids_BL, mask_BL, width)
        extra = {"output_router_logits": True} if compute_aux_loss else {}
        with packed_attention(self.accelerator.unwrap_model(model), self.half), self.accelerator.autocast():
            outputs = model(**packed.inputs, **extra, fused_lm_head=True)
        logps, entropies = (
            None if values is None else packed.unpack(values[0])[:, -width - 1 : -1]  # a token's stand one place before
            for values in (outputs.log_probs, outputs.entropy)
        )
        return logps, entropies, outputs.aux_loss

    def correct(self, logps_BC: torch.Tensor) -> None:
        """Compare the rollout's log-probs with the trainer's, and give TRL's loss the correction that it asks for."""
        sampled_BC = self.micro["sampling_per_token_logps"]
        mask_BC = loss_mask(self.micro).bool()
        old_BC = self.micro.get("old_per_token_logps", logps_BC)
        if "importance_sampling_ratio" in self.micro:  # TRL has done both, when it scored the rollout
            return
        difference = (old_BC - sampled_BC).abs()[mask_BC].nan_to_num(0.0)
        if len(difference):
            self.note("sampling/sampling_logp_difference", {"mean": difference.mean(), "max": difference.max()})
        if self.use_vllm and self.vllm_importance_sampling_correction:
            ratio = self.importance_ratio(logps_BC, sampled_BC, mask_BC)
            self.micro["importance_sampling_ratio"] = ratio
            each = ratio[mask_BC] if ratio.shape[1] > 1 else ratio
            if len(each):
                found = {"min": each.min(), "mean": each.mean(), "max": each.max()}
                self.note("sampling/importance_sampling_ratio", found)

    def note(self, name: str, values: dict[str, torch.Tensor]) -> None:
        for key, value in values.items():
            self._metrics["train"][f"{name}/{key}"].append(value.item())

    def importance_ratio(self, logps_BC: torch.Tensor, sampled_BC: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
        """TRL's correction for an engine whose log-probs are not the trainer's: a token (B, C) or a sequence (B, 1)."""
        level, _, how = self.vllm_importance_sampling_mode.partition("_")
        log_ratio = ((logps_BC - sampled_BC) * mask_BC).nan_to_num(0.0)
        ratio = (log_ratio.sum(1, keepdim=True) if level == "sequence" else log_ratio).exp()
        least, most = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        least, most = (-math.inf if least is None else least), (math.inf if most is None else most)
        return ratio.clamp(least, most) if how == "truncate" else ratio.where((ratio >= least) & (ratio <= most), 0.0)


def loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """(B, C): which tokens the loss is about."""
    mask: torch.Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
