"""A step of GRPO: r1lite beside stock TRL on the same machine, weights, problems and lengths, one after the other.

    python bench/grpo_step.py tiny [--steps 4]       # or equal, tailed, large, which need a GPU with vLLM

Each side runs in a process of its own: TRL's GRPOTrainer as it comes, with the engine that it has here; r1lite with
TRL's padded passes (`stock: true`); r1lite. On a GPU also what bounds them: the engine alone, and packed forward and
backward passes alone. Prints the median seconds of a step by phase, without the first step, which warms up.
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

from workloads import TINY, WORKLOADS, Workload, force_lengths, make_model

PROBLEMS, PROMPT = "data/chain.yaml#train", "plain"
TRAINER = {"learning_rate": 1e-6, "loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}
PHASES = ("generate", "grade", "sync", "prove_sync", "old_logprobs", "forward_backward", "optimizer", "idle")
ROWS = (*PHASES, "step", "tokens/s", "mfu", "GiB")
SIDES = {"TRL": "stock TRL", "padded": "r1lite, stock: true", "r1lite": "r1lite", "floor": "each alone"}


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of GRPO beside stock TRL")
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sides", nargs="+", choices=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            steps = MEASURES[options.side](workload, options.model, options.steps, Path(folder))
        print(json.dumps(steps))
        return

    import torch

    sides = options.sides or [side for side in SIDES if side != "floor" or torch.cuda.is_available()]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(workload.shape, Path(folder)) if workload.shape else TINY
        medians = {side: run_side(side, ["--model", str(model)]) for side in sides}
    print(f"{workload.about}; medians of {options.steps - 1} steps")
    print(f"{'seconds a step':18}" + "".join(f"{SIDES[side]:>22}" for side in sides))
    for name in (name for name in ROWS if any(name in medians[side] for side in sides)):
        cells = (f"{medians[side][name]:22,.3f}" if name in medians[side] else f"{'':22}" for side in sides)
        print(f"{name:18}" + "".join(cells))
    for side in sides:
        if "r1lite" in sides and side in ("TRL", "padded"):
            ratio = medians["r1lite"]["tokens/s"] / medians[side]["tokens/s"]
            print(f"tokens a second, r1lite to {SIDES[side]}: {ratio:.2f}")


def run_side(side: str, more: list[str]) -> dict[str, float]:
    """Of each phase the median over the steps after the first, which warms up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    steps = json.loads(done.stdout.splitlines()[-1])
    medians = {name: statistics.median(step[name] for step in steps[1:]) for name in steps[-1]}
    print(f"{SIDES[side]}:", ", ".join(f"{name} {median:,.3f}" for name, median in medians.items()), flush=True)
    return medians


def padded(workload: Workload, model: Path, steps: int, folder: Path) -> list[dict[str, float]]:
    return ours(workload, model, steps, folder, stock=True, micro_batch=workload.micro_batch)


def ours(workload: Workload, model: Path, steps: int, folder: Path, **more: Any) -> list[dict[str, float]]:
    import torch

    from r1lite import vllm_process
    from r1lite.artifacts import Artifact, Spec
    from r1lite.observe import read_metrics
    from r1lite.stages.grpo import Config
    from r1lite.trainer import train_grpo
    from r1lite.worker import Stage

    if workload.shape:
        (name,) = (name for name, each in WORKLOADS.items() if each is workload)
        vllm_process.PROGRAM = [sys.executable, str(Path(__file__).with_name("forced_vllm.py")), name]
    config = Config.model_validate(
        {
            "kind": "grpo",
            "prompt": PROMPT,
            "model": str(model),
            "problems": PROBLEMS,
            "rewards": workload.rewards,
            "prompts_per_step": workload.prompts,
            "generations": workload.generations,
            "max_tokens": workload.max_tokens,
            "temperature": 1.0,
            "trainer": {
                **TRAINER,
                "max_steps": steps,
                "gradient_checkpointing": False,
                "vllm_gpu_memory_utilization": workload.memory_share,
            },
            **more,
        }
    )
    spec = Spec("bench", "grpo_step", "grpo", {}, {}, config.model_dump(mode="json"))
    Artifact(folder).prepare(spec)
    train_grpo(config, Stage(folder, spec))
    found = []
    for row in read_metrics(folder / "metrics.jsonl"):
        seconds = {name: row[f"seconds/{name}"] for name in PHASES if f"seconds/{name}" in row}
        step = sum(seconds.values())
        tokens = row["completions/mean_length"] * workload.rows
        found.append({**seconds, "step": step, "tokens/s": tokens / step})
        if torch.cuda.is_available():
            found[-1] |= {"mfu": row["mfu"], "GiB": row["gpu_gib"]}
    return found


def stock_trl(workload: Workload, model: Path, steps: int, folder: Path) -> list[dict[str, float]]:
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from r1lite.models import load_model, load_tokenizer
    from r1lite.problems import load_problems
    from r1lite.rubric import load_reward
    from r1lite.stages.config import Reward
    from r1lite.trainer import to_dataset
    from r1lite.training import gpu_gib

    cuda = torch.cuda.is_available()
    if workload.shape:
        force_lengths(workload)
    tokenizer = load_tokenizer(model)
    problems = load_problems(PROBLEMS, workload.prompts * steps)
    rewards = [Reward.model_validate(reward) for reward in workload.rewards]
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=workload.micro_batch,
        gradient_accumulation_steps=workload.rows // workload.micro_batch,
        num_generations=workload.generations,
        max_completion_length=workload.max_tokens,
        max_steps=steps,
        reward_weights=[reward.weight for reward in rewards],
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        use_vllm=cuda,
        vllm_mode="colocate",
        vllm_max_model_length=workload.max_tokens + 64,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **TRAINER,
    )
    found: list[dict[str, float]] = []

    class Timed(GRPOTrainer):  # type: ignore[misc]
        """Stock TRL, measured from outside: nothing of it is changed."""

        def training_step(self, *given: Any, **named: Any) -> Any:
            if self._step % self.args.gradient_accumulation_steps == 0:
                began.append(time.perf_counter())
                found.append({})
            return self.clocked("forward_backward", super().training_step, *given, **named)

        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            return self.clocked("generate", super()._generate_single_turn, *given, **named)

        def _calculate_rewards(self, *given: Any) -> Any:
            return self.clocked("grade", super()._calculate_rewards, *given)

        def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
            phase = "forward_backward" if torch.is_grad_enabled() else "old_logprobs"
            return self.clocked(phase, super()._get_per_token_logps_and_entropies, *given, **named)

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
                found[-1]["idle"] = time.perf_counter() - began[-1] - sum(found[-1].values())
                tokens.append(self._metrics["train"]["completions/mean_length"][-1] * workload.rows)
            super().log(logs, *given)

    tokens: list[float] = []
    began: list[float] = []
    trainer = Timed(
        model=load_model(model, "float32"),
        reward_funcs=[load_reward(reward) for reward in rewards],
        args=arguments,
        train_dataset=to_dataset(PROMPT, tokenizer, problems),
        processing_class=tokenizer,
    )
    if cuda:  # TRL loads its engine from the model's directory, and its sync is part of what it calls generating
        sync = trainer.vllm_generation.sync_weights
        trainer.vllm_generation.sync_weights = lambda: trainer.clocked("sync", sync)
    trainer.train()
    memory = {"GiB": gpu_gib()} if cuda else {}  # nothing goes back while it lives, so it is the peak
    total = [sum(step.values()) for step in found]
    return [
        {**step, "step": seconds, "tokens/s": count / seconds, **memory}
        for step, seconds, count in zip(found, total, tokens, strict=True)
    ]


def alone(workload: Workload, model: Path, steps: int, folder: Path) -> list[dict[str, float]]:
    """The engine without a trainer in its process, and packed passes without anything else, on the same lengths."""
    generate = engine_alone(workload, model, steps)
    passes = passes_alone(workload, model, steps)
    return [{"generate": a, "forward_backward": b} for a, b in zip(generate, passes, strict=True)]


def engine_alone(workload: Workload, model: Path, steps: int) -> list[float]:
    from vllm import LLM, SamplingParams

    from r1lite.models import load_tokenizer
    from r1lite.problems import load_problems
    from r1lite.prompts import encode, render

    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    force_lengths(workload)
    tokenizer = load_tokenizer(model)
    problems = load_problems(PROBLEMS, workload.prompts)
    prompts = [{"prompt_token_ids": encode(tokenizer, render(PROMPT, problem.problem))} for problem in problems]
    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        max_model_len=workload.max_tokens + 64,
        max_num_seqs=1024,
        gpu_memory_utilization=workload.memory_share,
        dtype="bfloat16",
        logprobs_mode="processed_logprobs",
    )
    parameters = SamplingParams(n=workload.generations, temperature=1.0, logprobs=0, detokenize=False)
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        llm.generate(prompts, parameters, use_tqdm=False)
        found.append(time.perf_counter() - start)
    llm.llm_engine.engine_core.shutdown()
    return found


def passes_alone(workload: Workload, model: Path, steps: int) -> list[float]:
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from r1lite.memory import PACKED_TOKENS
    from r1lite.models import load_model
    from r1lite.packing import compile_layers, pack, packed_attention, split

    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = load_model(model, "float32").to(device).train()
    add_fused_lm_head(trained)
    if device == "cuda":
        compile_layers(trained)
    lengths, width = workload.lengths(), workload.max_tokens
    parts = split([20 + length for length in lengths], max(PACKED_TOKENS[device], 20 + width))
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        with packed_attention(trained, half=device == "cuda"):
            for part in parts:
                ends = torch.tensor([lengths[index] for index in part], device=device)
                mask = torch.arange(-20, width, device=device) < ends[:, None]
                packed = pack(torch.randint(5, 1000, mask.shape, device=device), mask, width)
                if device == "cuda":
                    packed.inputs.update(max_length_q=20 + width, max_length_k=20 + width)
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    loss = -trained(**packed.inputs, fused_lm_head=True).log_probs.mean()
                loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
        trained.zero_grad()
    return found


MEASURES = {"TRL": stock_trl, "padded": padded, "r1lite": ours, "floor": alone}

if __name__ == "__main__":
    main()
