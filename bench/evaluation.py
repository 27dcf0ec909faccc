"""`r1lite eval` against vLLM's own offline generation: the same requests on one GPU, tokens per second, and the ratio.

    python bench/evaluation.py --problems 512 --samples 64

Ours holds everything that an evaluation does with a sample: handing it over, writing it, grading it. Neither holds the
start of the engine.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from r1lite.memory import WHOLE_GPU
from r1lite.models import end_tokens, load_generation_config, load_tokenizer
from r1lite.problems import load_problems
from r1lite.prompts import encode, render
from r1lite.vllm_process import SETTINGS

MODEL = "data/tiny_base"
CARD = """description: as many problems of the chain as are asked for
license: none needed
splits: {{test: {{generator: "data/chain.py:problems", args: {{split: test, count: {count}, seed: 0}}}}}}
"""


def offline(card: str, samples: int, max_tokens: int) -> float:
    """Tokens per second of one call of LLM.generate, after a warm-up, with the settings of our own engine."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    from vllm import LLM, SamplingParams

    tokenizer = load_tokenizer(MODEL)
    prompts = [
        {"prompt_token_ids": encode(tokenizer, render("plain", problem.problem))} for problem in load_problems(card)
    ]
    llm = LLM(model=MODEL, max_model_len=64 + max_tokens, gpu_memory_utilization=WHOLE_GPU, **SETTINGS)
    speed = 0.0
    for n in (1, samples):
        parameters = SamplingParams(
            n=n,
            max_tokens=max_tokens,
            temperature=0.6,
            top_p=0.95,
            stop_token_ids=end_tokens(load_generation_config(MODEL), tokenizer),
            detokenize=False,
        )
        start = time.monotonic()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
        speed = tokens / (time.monotonic() - start)
    llm.llm_engine.engine_core.shutdown()
    return speed


def ours(card: str, samples: int, max_tokens: int, runs: str) -> float:
    """Tokens per second as `r1lite eval` prints them with its last samples."""
    command = [sys.executable, "-m", "r1lite.cli", "eval", MODEL, "--problems", card, "--samples", str(samples)]
    options = ["--max-tokens", str(max_tokens), "--prompt", "plain", "--engine", "vllm", "--runs", runs]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    *_, last = re.findall(r"([\d,]+) tokens/s", done.stdout)
    return float(last.replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--offline", help="a card: measure vLLM alone, in this process")
    options = parser.parse_args()
    if options.offline:
        print(offline(options.offline, options.samples, options.max_tokens))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card.yaml"
        path.write_text(CARD.format(count=options.problems))
        sizes = ["--samples", str(options.samples), "--max-tokens", str(options.max_tokens)]
        alone = subprocess.run(
            [sys.executable, __file__, "--offline", f"{path}#test", *sizes],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        base = float(alone.stdout.splitlines()[-1])
        mine = ours(f"{path}#test", options.samples, options.max_tokens, folder)
    print(
        f"{options.problems} problems x {options.samples} samples of {MODEL}, at most {options.max_tokens} tokens each"
    )
    print(f"vLLM offline  {base:10,.0f} tokens/s")
    print(f"r1lite eval   {mine:10,.0f} tokens/s")
    print(f"ratio         {mine / base:10.2f}")


if __name__ == "__main__":
    main()
