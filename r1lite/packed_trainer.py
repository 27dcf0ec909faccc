"""GRPO on packed rows: TRL's loss and options, without padding and without what adds nothing to the gradient.

A micro-batch is as many whole sequences as `tokens_per_micro_batch` holds, so that memory is bounded by the budget and
not by the longest completion. Rows that cannot move the weights are not computed. Where one update follows each
rollout, the update's own forward pass also corrects for the engine's log-probs, so TRL's extra pass for them is saved.
"""

import math
import time
from collections.abc import Iterator, Sized
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from r1lite.packing import compile_layers, pack, packed_attention, split
from r1lite.rollout_trainer import RolloutTrainer
from r1lite.sharding import is_sharded
from r1lite.training import precision

# Losses that are a mean over rows, whatever their lengths; all others go by tokens.
BY_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")


class PackedTrainer(RolloutTrainer):
    """RolloutTrainer that computes log-probs and gradients over packed rows."""

    budget: int  # tokens a micro-batch
    longest: int  # tokens of a sequence
    compiles = False  # the layers
    use_vllm: bool  # whether TRL corrects for an engine's log-probs

    def compile(self) -> None:
        """Use compiled layers for packed rows from here on."""
        self.compiles = True
        for model in (self.model, self.ref_model):
            if model is not None:
                compile_layers(self.accelerator.unwrap_model(model))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's gradient: the whole batch, a micro-batch at a time."""
        start = time.perf_counter()
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # a schedule-free one has modes
            self.optimizer.train()
        batch = self._prepare_inputs(inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        total = torch.zeros((), device=self.accelerator.device)
        self.differences: list[torch.Tensor] = []
        self.ratios: list[torch.Tensor] = []
        with self.timed("forward_backward"), packed_attention(unwrapped, self.half):
            for micro, share, last in self.micro_batches(batch):
                self.accelerator.gradient_state._set_sync_gradients(last)  # TRL's adaptive entropy goes by it
                # TRL divides what a micro-batch is the mean of by this, so 1/share makes it a part of the batch's mean.
                self.current_gradient_accumulation_steps = 1 / share
                with nullcontext() if last else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, micro)
                    self.accelerator.backward(loss)
                total += loss.detach()
        empty_steps = self.args.torch_empty_cache_steps
        if empty_steps is not None and self.state.global_step % empty_steps == 0:
            clear_device_cache()
        self.note("sampling/sampling_logp_difference", self.differences)
        self.note("sampling/importance_sampling_ratio", self.ratios)
        self.current_gradient_accumulation_steps = 1
        self._step += 1
        self._metrics["train"]["step_time"].append(time.perf_counter() - start)
        return total

    @property
    def half(self) -> bool:
        return precision(self.args) != "float32"

    def micro_batches(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float, bool]]:
        """This rank's micro-batches, each with its share of the rank's part of the mean, and whether it is the last.

        All ranks make the same number of them from all ranks' rows, as even in tokens as whole rows allow.
        """
        batch = self.all_rows(batch)
        mask_BC = loss_mask(batch)
        lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
        useful = (batch["advantages"] != 0) & mask_BC.any(1)
        if self.beta or self._entropy_bonus_enabled or self.aux_loss_enabled or self.top_entropy_quantile < 1:
            useful = torch.ones_like(useful)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        # Every rank computes something, even where too few rows are useful: then the shortest of the others.
        order = sorted(range(len(lengths)), key=lambda row: (not useful[row], lengths[row]))
        rows = order[: ranks * max(1, -(-int(useful.sum()) // ranks))]
        parts = split([lengths[row] for row in rows], self.budget, multiple=ranks)
        self._metrics["train"]["rows_computed"].append(len(rows) / len(lengths))
        for first in range(0, len(parts), ranks):
            part = parts[first + rank]
            count = max(map(len, parts[first : first + ranks]))  # TRL gathers a number of each row from all ranks
            places = torch.tensor([rows[index] for index in part], device=mask_BC.device)
            micro = {
                name: padded_rows(value[places], count) if is_by_row(value, lengths) else value
                for name, value in batch.items()
            }
            if self.loss_type in BY_ROWS:
                share = ranks * count / len(lengths)
            else:
                share = ranks * float(mask_BC[places].sum() / mask_BC.sum().clamp(min=1))
            share = max(share, 1e-9)  # where all of it is masked
            # What TRL divides by the number of all tokens is a part of the whole already: this undoes the share.
            micro["num_items_in_batch"] = batch["num_items_in_batch"] * share
            yield micro, share, first + ranks == len(parts)

    def all_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows of all ranks, so that each can take its part of the tokens and not of the rows."""
        rows = range(len(batch["advantages"]))
        found = dict(batch)
        for name, value in batch.items():
            if is_by_row(value, rows):
                if value.dim() > 1:  # ranks have padded to widths of their own
                    value = self.accelerator.pad_across_processes(value, 1, pad_first=name.startswith("prompt"))
                found[name] = self.accelerator.gather(value)
        return found

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
        with self.timed("old_logprobs"), packed_attention(self.accelerator.unwrap_model(model), self.half):
            logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
            parts = split(attention_mask.sum(1).tolist(), self.budget)
            if is_sharded(self.model):  # a pass gathers weights from all, so that all have to make as many
                parts += parts[-1:] * (max(gather_object([len(parts)])) - len(parts))
            for part in parts:
                logps[part], *_rest = self.packed_logps(model, input_ids[part], attention_mask[part], logits_to_keep)
        return logps, None, None

    def packed_logps(
        self, model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor, width: int, compute_aux_loss: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        packed = pack(ids_BL, mask_BL, width)
        if self.compiles:  # else a longest sequence that no row had before compiles all layers again
            packed.inputs.update(max_length_q=self.longest, max_length_k=self.longest)
        extra = {"output_router_logits": True} if compute_aux_loss else {}
        with self.accelerator.autocast():
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
        self.differences.append((old_BC - sampled_BC).abs()[mask_BC].nan_to_num(0.0))
        if self.use_vllm and self.vllm_importance_sampling_correction:
            ratio = self.importance_ratio(logps_BC, sampled_BC, mask_BC)
            self.micro["importance_sampling_ratio"] = ratio
            self.ratios.append(ratio[mask_BC] if ratio.shape[1] > 1 else ratio[mask_BC.any(1), 0])

    def note(self, name: str, values: list[torch.Tensor]) -> None:
        """Log what the micro-batches of all ranks come to."""
        flat = torch.cat([*values, torch.zeros(0, device=self.accelerator.device)])
        mine = [(flat.sum().item(), len(flat), flat.min().item(), flat.max().item())] if len(flat) else []
        everywhere = gather_object(mine)
        if everywhere:
            sums, counts, least, most = zip(*everywhere, strict=True)
            for kind, value in (("mean", sum(sums) / sum(counts)), ("min", min(least)), ("max", max(most))):
                self._metrics["train"][f"{name}/{kind}"].append(value)

    def importance_ratio(self, logps_BC: torch.Tensor, sampled_BC: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
        """TRL's correction for an engine whose log-probs are not the trainer's: a token (B, C) or a sequence (B, 1)."""
        level, _, how = self.vllm_importance_sampling_mode.partition("_")
        log_ratio = ((logps_BC - sampled_BC) * mask_BC).nan_to_num(0.0)
        ratio = (log_ratio.sum(1, keepdim=True) if level == "sequence" else log_ratio).exp()
        least, most = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        least, most = (-math.inf if least is None else least), (math.inf if most is None else most)
        return ratio.clamp(least, most) if how == "truncate" else ratio.where((ratio >= least) & (ratio <= most), 0.0)


def padded_rows(values: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows, of which those that were not there are 0: no tokens, no advantage."""
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def is_by_row(value: Any, rows: Sized) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and len(value) == len(rows)


def loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """(B, C): which tokens the loss is about."""
    mask: torch.Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
