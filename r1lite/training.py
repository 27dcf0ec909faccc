"""What every training stage does around transformers' Trainer: arguments, resume, metrics, progress, checkpoints."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments

from r1lite.artifacts import STOP, Stopped, newest_checkpoint, seal
from r1lite.curves import draw_training
from r1lite.observe import MetricsFile, Progress, say
from r1lite.ranks import from_main, is_main, join, share, timeout, wait_for_all, world_size
from r1lite.sharding import as_without_deepspeed, settle_deepspeed, zero_stage

if TYPE_CHECKING:
    from r1lite.worker import Stage

# Tokens, padding included, that go through the model at once where a recipe does not say how many.
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}


def training_arguments(
    stage: "Stage",
    config: Any,
    asked: str,
    row_tokens: int,
    max_steps: int,
    arguments: type = TrainingArguments,
    rows_each: int = 1,
    **more: Any,
) -> Any:
    """TrainingArguments, or GRPOConfig, from a stage's config: r1lite's own settings, then the recipe's `trainer:`.

    The key `asked` of the config says what an optimizer step learns from, `rows_each` rows for each; the processes that
    train share it evenly.
    """
    device = device_type()
    batch = share(asked, getattr(config, asked)) * rows_each
    micro_batch = config.micro_batch or derive_micro_batch(batch, MICRO_BATCH_TOKENS[device] // row_tokens)
    if batch % micro_batch:
        raise ValueError(
            f"micro_batch: {micro_batch} does not divide the {batch} rows of each of {world_size()} processes; leave "
            "it out, or set it to a number that does"
        )
    if zero_stage() and config.trainer.get("fp16"):
        raise ValueError("trainer.fp16: has not been proven with DeepSpeed; take bf16, or recipes/accelerate/ddp.yaml")
    if device == "cpu":  # which accelerate would number, and a checkpoint's tensors cannot be loaded to "cpu:0"
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        join(timeout())  # to which transformers would not hold several of them
    settings = {
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "report_to": "none",
        "save_steps": 50,
        **config.trainer,
        "output_dir": str(stage.path / "checkpoints"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": batch // micro_batch,
        "max_steps": max_steps,
        "seed": config.seed,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_total_limit": 2,
        "ddp_timeout": int(timeout().total_seconds()),
        **more,
    }
    settings.pop("num_train_epochs", None)
    made = arguments(**settings)
    if zero_stage():
        settle_deepspeed(made.deepspeed_plugin)
    return made


def precision(arguments: TrainingArguments) -> str:
    """The type that a model is computed in, by its name in torch."""
    return "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_gib() -> float:
    """GiB of this process's GPU that all processes hold."""
    import torch

    free, whole = torch.cuda.mem_get_info()
    return float(whole - free) / 2**30


def derive_micro_batch(batch: int, most: int) -> int:
    """The largest divisor of `batch` that is at most `most`; at least 1."""
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= max(most, 1))


class StageCallback(TrainerCallback):  # type: ignore[misc]
    """Metrics, progress lines, probes and sealed checkpoints of a training stage.

    `prober` is the RolloutTrainer of a GRPO stage, which has probes, phases to time and a reference model to keep.
    """

    def __init__(self, stage: "Stage", steps: int, prober: Any = None) -> None:
        self.stage, self.steps, self.prober = stage, steps, prober
        self.last: dict[str, Any] = {}
        self.metrics: MetricsFile | None = None
        self.stopped = False

    def train(self, trainer: Any, what: str) -> None:
        """Train, from the newest whole checkpoint where there is one, save the model as plain safetensors, and draw the
        curves of `what` this is."""
        checkpoint = from_main(newest_checkpoint(self.stage.path / "checkpoints") if is_main() else None)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if checkpoint:
            say(f"  resuming from step {step} of {self.steps}")
        if is_main():
            self.metrics = MetricsFile(self.stage.path / "metrics.jsonl", step)
        self.progress = Progress(self.steps, step)
        if zero_stage():
            as_without_deepspeed(trainer, precision(trainer.args))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.stopped:
            raise Stopped(f"stopped after step {trainer.state.global_step} of {self.steps}, with a checkpoint")
        trainer.save_model(str(self.stage.path / "model"))
        if is_main():
            (self.stage.path / "model" / "training_args.bin").unlink()  # a pickle, and all of it is in spec.json
            draw_training(self.stage.path, f"{self.stage.spec.recipe}/{self.stage.spec.stage}: {what}")
        wait_for_all()  # nobody reads it before it is written

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.prober and self.prober.config.probe and state.global_step == 0:
            self.write(0, {"probe/pass@1": self.prober.probe()})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()
        if self.prober:
            self.prober.seconds = {}  # by phase, of this step alone

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updating = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.prober:
            self.prober.seconds["optimizer"] = time.perf_counter() - self.updating

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.prober:
            elapsed = time.perf_counter() - self.began
            self.speed = self.prober.speed(elapsed)
            self.prober.seconds["idle"] = elapsed - sum(self.prober.seconds.values())
        if self.may_stop(state.global_step) and from_main(is_main() and (self.stage.path / STOP).exists()):
            self.stopped = control.should_save = control.should_training_stop = True

    def may_stop(self, step: int) -> bool:
        """Whether a run that ends after this step goes on as if it had not: not within a rollout's updates."""
        return step < self.steps and step % (self.prober.steps_per_rollout if self.prober else 1) == 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        row = dict(logs or {})
        if "train_runtime" in row:  # the closing summary is no step
            return
        self.progress.advance(state.global_step - self.progress.done)
        if self.prober:
            row |= {f"seconds/{name}": seconds for name, seconds in self.prober.seconds.items()} | self.speed
            probe = self.prober.config.probe
            if probe and (state.global_step % probe.every_steps == 0 or state.global_step == self.steps):
                row["probe/pass@1"] = self.prober.probe()
        self.write(state.global_step, row)
        self.last = row
        if state.global_step % max(1, self.steps // 100) == 0:
            say(f"  step {state.global_step}/{self.steps}  {summary(row)}  ETA {self.progress.eta()}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_all()  # each writes its own random state
        if is_main():
            if self.prober:
                self.prober.save_reference(checkpoint)
            seal(checkpoint)

    def write(self, step: int, row: dict[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(step, row)


def summary(row: dict[str, Any]) -> str:
    """The part of a metrics row that one watches."""
    if "reward" not in row:
        return f"loss {row['loss']:.4f}"
    parts = [
        f"reward {row['reward']:.3f}",
        *([f"pass {row['pass_rate']:.3f}"] if "pass_rate" in row else []),  # where nothing had a right answer
        f"length {row['completions/mean_length']:.1f}",
        f"signal {1 - row['frac_reward_zero_std']:.0%}",
        f"{row['step_time']:.1f} s",
    ]
    if "probe/pass@1" in row:
        parts.append(f"held-out {row['probe/pass@1']:.3f}")
    parts += [f"{name} {n:g}" for name, n in row.items() if name.endswith(("/timeouts", "/crashes")) and n]
    return "  ".join(parts)
