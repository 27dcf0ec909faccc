"""GRPO by TRL's GRPOTrainer: the seams that it leaves open, filled.

Its rollouts come from an `Engine`, its loss, advantages and all of GRPOConfig's other options are TRL's own.
"""

import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model
from trl import GRPOTrainer
from trl.trainer.utils import get_peak_flops_per_device

from r1lite.dynamic_sampling import Group, draw, places_by_set, substitutes_for
from r1lite.engines import Finished
from r1lite.metrics import mean_or_none, reflective_words
from r1lite.prompts import text_of
from r1lite.records import Rollout
from r1lite.rollouts import EngineRollouts, Sampled
from r1lite.rubric import all_scores, as_prompted
from r1lite.training import gpu_gib, precision

if TYPE_CHECKING:
    from r1lite.stages.grpo import Config
    from r1lite.worker import Stage

REFERENCE = "reference.safetensors"


class RolloutTrainer(EngineRollouts, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer whose rollouts come from `engine` and are kept as rows."""

    def __init__(self, config: "Config", stage: "Stage", problems: Dataset, **arguments: Any) -> None:
        """`problems` are all that there are, a row each, from which dynamic sampling takes its substitutes."""
        self.size = arguments["model"].num_parameters()  # before anything shards it
        super().__init__(**arguments)
        probed = stage.problems(config.probe.problems, config.probe.limit) if config.probe else []
        self.prepare(config, stage, probed, config.rewards[0])
        self.steps_per_rollout = config.steps_per_rollout
        self.problems = problems
        self.places = places_by_set(problems) if config.dynamic_sampling else {}
        self.counted = dict.fromkeys(("tokens", "cells", "flops"), 0.0)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        left_out: list[Group] = []
        rows = inputs[:: self.config.generations]
        if self.config.dynamic_sampling:
            self.rollout, left_out = self.draw(rows)
        else:
            self.rollout = self.sample_groups(rows)
        inputs = [group.row for group in self.rollout for _ in group.completions]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.config.maxrl:
            self.divide_by_mean(batch)
        self.keep(inputs, self.rows_left_out(left_out))
        return batch

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, **_: Any
    ) -> tuple[list[np.ndarray], list[list[float]]]:
        # Tokens as arrays, since transformers looks at each of a list when it decodes them.
        return [np.array(c.token_ids) for c in self.sampled], [c.logprobs for c in self.sampled]

    def _calculate_rewards(self, *arguments: Any) -> Any:
        rows = [row for group in self.rollout for row in zip(*group.scores, strict=True)]
        table = [[math.nan if score is None else score for score in row] for row in rows]
        return gather(torch.tensor(table, dtype=torch.float32, device=self.accelerator.device))

    def draw(self, rows: list[dict[str, Any]]) -> tuple[list[Group], list[Group]]:
        """Make a rollout by dynamic sampling: its groups, and those that were left out of it."""
        key = f"{self.config.seed}/{self.state.global_step}"
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        asked = set(gather_object([row["problem_id"] for row in rows]))
        drawn = draw(
            rows,
            self.sample_groups,
            substitutes_for(asked, self.problems, self.places, key, rank, ranks),
            [reward.weight for reward in self.config.rewards],
            self.config.dynamic_sampling,
        )
        wasted = sum(len(completion.token_ids) for group in drawn.left_out for completion in group.completions)
        found = {"rounds": drawn.rounds, "groups_left_out": len(drawn.left_out), "tokens_left_out": wasted}
        for name, value in found.items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(fmean(gather_object([float(value)])))
        return drawn.chosen, drawn.left_out

    def sample_groups(self, rows: list[dict[str, Any]], round_: int = 0) -> list[Group]:
        """A group for each problem, graded while others are still sampled; the seed follows from the step and the round
        of dynamic sampling."""
        prompts = self._tokenize_prompts([row["prompt"] for row in rows])[0]
        groups: dict[int, Group] = {}
        for finished in self.sample(prompts, round_):
            graded = self.grade_groups([rows[each.index] for each in finished], finished)
            groups |= {each.index: group for each, group in zip(finished, graded, strict=True)}
        return [groups[index] for index in range(len(rows))]

    def grade_groups(self, rows: list[dict[str, Any]], finished: list[Finished]) -> list[Group]:
        """What has been sampled for these problems, with the scores of all rewards."""
        completions = [completion for each in finished for completion in each.completions]
        ids = [completion.token_ids for completion in completions]
        n = self.config.generations
        each_row = [row for row in rows for _ in range(n)]
        prompts = [row["prompt"] for row in each_row]
        texts = self.processing_class.batch_decode([np.array(each) for each in ids], skip_special_tokens=True)
        scores = all_scores(
            self.reward_funcs,
            self.async_loop if self._has_async_funcs else None,
            prompts=prompts,
            completions=as_prompted(prompts, texts),
            completion_ids=ids,
            trainer_state=self.state,
            log_extra=lambda *_: None,  # a column of TRL's table of completions, which is off
            log_metric=self._log_metric,
            **{name: [row[name] for row in each_row] for name in rows[0] if name != "prompt"},
        )
        parts = [slice(place, place + n) for place in range(0, len(completions), n)]
        return [
            Group(row, completions[part], texts[part], [by_one[part] for by_one in scores], each.seed)
            for row, each, part in zip(rows, finished, parts, strict=True)
        ]

    def rows_left_out(self, groups: list[Group]) -> list[Rollout]:
        """Rollouts that dynamic sampling made for nothing, which have no advantage."""
        names = self.reward_func_names
        return [
            Rollout(
                problem_id=group.row["problem_id"],
                sample=index,
                completion=text,
                length=len(completion.token_ids),
                truncated=completion.truncated,
                rewards={name: mine[index] for name, mine in zip(names, group.scores, strict=True)},
                seed=group.seed,
            )
            for group in groups
            for index, (completion, text) in enumerate(zip(group.completions, group.texts, strict=True))
        ]

    def divide_by_mean(self, batch: dict[str, Any]) -> None:
        """MaxRL's advantage (arXiv 2602.02710): the centred reward over the group's mean; no reward may be below 0."""
        scores = torch.tensor([list(self._logs["rewards"][name]) for name in self.reward_func_names])
        total = (scores * self.reward_weights.cpu()[:, None]).nansum(0)
        total[scores.isnan().all(0)] = torch.nan
        if total.nan_to_num().min() < 0:
            raise ValueError("maxrl: a completion has a reward below 0; it needs rewards and weights of at least 0")
        mean = total.view(-1, self.num_generations).nanmean(1).repeat_interleave(self.num_generations)
        scale = torch.where(mean > 0, 1 / mean, 0.0)
        advantages = torch.tensor(list(self._logs["advantages"])) * scale
        self._logs["advantages"].extend(advantages.tolist())
        first = self.accelerator.process_index * len(batch["advantages"])
        batch["advantages"] = advantages[first : first + len(batch["advantages"])].to(batch["advantages"])

    def _prepare_inputs(self, rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._prepare_inputs(rows)
        for mask in (batch["prompt_mask"], batch["completion_mask"]):
            self.counted["tokens"] += int(mask.sum())
            self.counted["cells"] += mask.numel()
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        lengths = inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)
        config = self.accelerator.unwrap_model(model).config.get_text_config()
        pairs = int((lengths**2).sum()) / 2  # of tokens that attend to one another, as attention is causal
        attention = 12 * config.num_hidden_layers * config.hidden_size * pairs
        self.counted["flops"] += 6 * self.size * int(lengths.sum()) + attention
        return super()._compute_loss(model, inputs)

    def speed(self, elapsed: float) -> dict[str, float]:
        """Tokens a second without padding; the share of padding in the batch as a rectangle, which packed rows leave
        out; and on a GPU the GiB of it that all processes hold, and where its peak is known, the model FLOPs
        utilisation of the forward and backward passes."""
        total = torch.tensor(list(self.counted.values()), dtype=torch.float64, device=self.accelerator.device)
        tokens, cells, flops = self.accelerator.reduce(total).tolist()
        self.counted = dict.fromkeys(self.counted, 0.0)
        found = {"tokens_per_second": tokens / elapsed, "padding_share": 1 - tokens / cells}
        cuda = torch.cuda.is_available()
        if cuda:
            found["gpu_gib"] = gpu_gib()
        peak = get_peak_flops_per_device(self.accelerator, precision(self.args)) if cuda else None
        if peak:
            found["mfu"] = flops / self.accelerator.num_processes / self.seconds["forward_backward"] / peak
        return found

    def rows_of(self, sampled: list[Sampled]) -> list[Rollout]:
        """The rollout as rows; what TRL does not measure of it is added to the step's metrics."""
        scores = {name: list(values) for name, values in self._logs["rewards"].items()}
        rows = [
            Rollout(
                problem_id=problem_id,
                sample=index % self.num_generations,
                completion=text_of(completion),
                length=len(ids),
                truncated=truncated,
                rewards={name: nan_to_none(values[index]) for name, values in scores.items()},
                seed=seed,
                advantage=advantage,
            )
            for index, ((problem_id, ids, truncated, seed), completion, advantage) in enumerate(
                zip(sampled, self._logs["completion"], self._logs["advantages"], strict=True)
            )
        ]
        for name, value in measure(rows, self.config.rewards[0].name).items():
            if value is not None:
                self._metrics["train"][name].append(value)
        return rows

    def save_reference(self, checkpoint: Path) -> None:
        """Keep a reference model that follows the policy; TRL would start again from the initial one."""
        if self.ref_model is not None and self.args.sync_ref_model:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / REFERENCE))

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        if (Path(checkpoint) / REFERENCE).exists():
            load_safetensors(self.accelerator.unwrap_model(self.ref_model), str(Path(checkpoint) / REFERENCE))


def measure(kept: list[Rollout], right_by: str) -> dict[str, float | None]:
    """What figures 2 and 3 of the R1 paper show, and more: right and wrong go by the recipe's first reward, where it
    gives a score."""
    judged = [(row, score >= 1.0) for row in kept if (score := row.rewards[right_by]) is not None]
    return {
        "pass_rate": mean_or_none([float(right) for _, right in judged]),
        "length/right": mean_or_none([float(row.length) for row, right in judged if right]),
        "length/wrong": mean_or_none([float(row.length) for row, right in judged if not right]),
        "reflective_words": fmean(reflective_words(row.completion) for row in kept),
    }


def nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value
