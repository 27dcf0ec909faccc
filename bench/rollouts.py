"""Rollout speed on this machine: the transformers engine beside transformers' own `generate`, one after the other.

    python bench/rollouts.py [--model data/tiny_base] [--prompts 32] [--generations 8] [--max-tokens 160] [--repeat 3]

Both sample at temperature 1 from the same model and prompts. Prints medians, and the ratio of their tokens a second.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from r1lite.engines import Sampling, TransformersEngine, in_order
from r1lite.models import end_tokens, load_model, load_tokenizer
from r1lite.problems import load_problems
from r1lite.prompts import encode, render


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollout speed beside transformers' own generate")
    parser.add_argument("--model", type=Path, default=Path("data/tiny_base"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    model, tokenizer = load_model(options.model, "float32"), load_tokenizer(options.model)
    problems = load_problems("data/chain.yaml#train", options.prompts)
    prompts = [encode(tokenizer, render("plain", problem.problem)) for problem in problems]
    eos_token_ids = end_tokens(model.generation_config, tokenizer)
    engine = TransformersEngine(model, eos_token_ids, tokenizer.pad_token_id)

    def ours() -> int:
        groups = in_order(engine.generate(prompts, options.generations, Sampling(options.max_tokens)))
        return sum(len(completion.token_ids) for group in groups for completion in group)

    def theirs() -> int:
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        output = model.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=options.generations,
            max_new_tokens=options.max_tokens,
            eos_token_id=eos_token_ids,
        )[:, inputs["input_ids"].shape[1] :]
        return int((output != tokenizer.pad_token_id).sum())

    rates = {
        name: median_rate(generate, options.repeat) for name, generate in (("r1lite", ours), ("transformers", theirs))
    }
    for name, rate in rates.items():
        print(f"{name:14}{rate:10,.0f} tokens/s")
    print(f"{'ratio':14}{rates['r1lite'] / rates['transformers']:10.2f}")


def median_rate(generate: Callable[[], int], repeat: int) -> float:
    """Tokens a second, the median of `repeat` calls after one that warms up."""
    generate()
    rates: list[float] = []
    for _ in range(repeat):
        torch.manual_seed(0)
        start = time.perf_counter()
        rates.append(generate() / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main()
