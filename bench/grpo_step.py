"""A step of GRPO: r1lite beside stock TRL on the same machine, weights, problems and rewards, one after the other.

    python bench/grpo_step.py [--model data/tiny_base] [--prompts 32] [--generations 8] [--max-tokens 160] [--steps 4]

Three sides, each in a process of its own: TRL's GRPOTrainer as it comes, with the engine that it has here; r1lite with
TRL's padded passes (`stock: true`); r1lite. Prints the median seconds of a step by phase, without the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROBLEMS, PROMPT = "data/chain.yaml#train", "plain"
REWARDS = [{"use": "rewards.math:accuracy"}, {"use": "rewards.format:think_answer", "weight": 0.1}]
TRAINER = {"learning_rate": 1e-6, "loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}
PHASES = ("generate", "grade", "sync", "prove_sync", "old_logprobs", "forward_backward", "optimizer", "idle")
SIDES = {"TRL": "stock TRL", "padded": "r1lite, stock: true", "r1lite": "r1lite"}


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of GRPO beside stock TRL")
    parser.add_argument("--model", default="data/tiny_base")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--micro-batch", type=int, default=32, help="completions at once on the padded sides")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            measure = stock_trl if options.side == "TRL" else ours
            print(json.dumps(measure(options, Path(folder))))
        return
    medians = {side: run_side(side) for side in SIDES}
    print(f"{'seconds a step':18}" + "".join(f"{title:>22}" for title in SIDES.values()))
    for phase in (*PHASES, "step", "tokens/s"):
        cells = (f"{medians[side][phase]:22,.3f}" if phase in medians[side] else f"{'':22}" for side in SIDES)
        print(f"{phase:18}" + "".join(cells))
    for side in ("TRL", "padded"):
        ratio = medians["r1lite"]["tokens/s"] / medians[side]["tokens/s"]
        print(f"tokens a second, r1lite to {SIDES[side]}: {ratio:.2f}")


def run_side(side: str) -> dict[str, float]:
    """Medians over a side's steps after the first, which warms up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    steps = json.loads(done.stdout.splitlines()[-1])[1:]
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


def ours(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    from r1lite.artifacts import Artifact, Spec
    from r1lite.observe import read_metrics
    from r1lite.stages.grpo import Config
    from r1lite.trainer import train_grpo
    from r1lite.worker import Stage

    padded = {"stock": True, "micro_batch": options.micro_batch} if options.side == "padded" else {}
    config = Config.model_validate(
        {
            "kind": "grpo",
            "prompt": PROMPT,
            "model": options.model,
            "problems": PROBLEMS,
            "rewards": REWARDS,
            "prompts_per_step": options.prompts,
            "generations": options.generations,
            "max_tokens": options.max_tokens,
            "temperature": 1.0,
            "trainer": {**TRAINER, "max_steps": options.steps, "gradient_checkpointing": False},
            **padded,
        }
    )
    spec = Spec("bench", "grpo_step", "grpo", {}, {}, config.model_dump(mode="json"))
    Artifact(folder).prepare(spec)
    train_grpo(config, Stage(folder, spec))
    found = []
    for row in read_metrics(folder / "metrics.jsonl"):
        seconds = {name: row[f"seconds/{name}"] for name in PHASES if f"seconds/{name}" in row}
        step = sum(seconds.values())
        found.append({**seconds, "step": step, "tokens/s": row["completions/mean_length"] * rows(options) / step})
    return found


def stock_trl(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from r1lite.models import load_model, load_tokenizer
    from r1lite.problems import load_problems
    from r1lite.rubric import load_reward
    from r1lite.stages.config import Reward
    from r1lite.trainer import to_dataset

    cuda = torch.cuda.is_available()
    tokenizer = load_tokenizer(options.model)
    problems = load_problems(PROBLEMS, options.prompts * options.steps)
    rewards = [Reward.model_validate(reward) for reward in REWARDS]
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=rows(options) // options.micro_batch,
        num_generations=options.generations,
        max_completion_length=options.max_tokens,
        max_steps=options.steps,
        reward_weights=[reward.weight for reward in rewards],
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        use_vllm=cuda,
        vllm_mode="colocate",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **TRAINER,
    )
    found: list[dict[str, float]] = []

    class Timed(GRPOTrainer):  # type: ignore[misc]
        """Stock TRL; what it does is measured from outside, and nothing of it is changed."""

        def training_step(self, *given: Any, **named: Any) -> Any:
            if self._step % self.args.gradient_accumulation_steps == 0:
                found.append({})
            return self.clocked("forward_backward", super().training_step, *given, **named)

        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            return self.clocked("generate", super()._generate_single_turn, *given, **named)

        def _calculate_rewards(self, *given: Any) -> Any:
            return self.clocked("grade", super()._calculate_rewards, *given)

        def clocked(self, phase: str, function: Any, *given: Any, **named: Any) -> Any:
            inside, start = sum(found[-1].values()), time.perf_counter()
            result = function(*given, **named)
            if cuda:
                torch.cuda.synchronize()
            inside = sum(found[-1].values()) - inside  # phases that ran within this one
            found[-1][phase] = found[-1].get(phase, 0.0) + time.perf_counter() - start - inside
            return result

        def log(self, logs: dict[str, float], *given: Any) -> None:
            if "loss" in logs:
                mean = self._metrics["train"]["completions/mean_length"][-1]
                found[-1]["tokens/s"] = mean * rows(options)
            super().log(logs, *given)

    trainer = Timed(
        model=load_model(Path(options.model), "float32"),
        reward_funcs=[load_reward(reward) for reward in rewards],
        args=arguments,
        train_dataset=to_dataset(argparse.Namespace(prompt=PROMPT), tokenizer, problems),
        processing_class=tokenizer,
    )
    trainer.train()
    for step in found:
        tokens = step.pop("tokens/s")
        step["step"] = sum(step.values())
        step["tokens/s"] = tokens / step["step"]
    return found


def rows(options: argparse.Namespace) -> int:
    return int(options.prompts * options.generations)


if __name__ == "__main__":
    main()
