"""Gradings a second by `rewards.math:accuracy`, beside math-verify called in this process.

    python bench/grading.py [--rows 4000]

Every answer is another one, so that nothing comes from the cache of verdicts but where the line says so.
"""

import argparse
import logging
import time
from collections.abc import Callable

from math_verify import parse, verify

from r1lite.pool import workers_here
from rewards import math
from rewards.math import accuracy

PI = r"\frac{6\pi}{4}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of grading beside math-verify")
    parser.add_argument("--rows", type=int, default=4000)
    rows = parser.parse_args().rows
    few = max(rows // 10, 1)  # of what takes long
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    numbers = [rf"<think>so</think><answer>{n}</answer>" for n in range(rows)]
    golds = [str(n // 2 * 2) for n in range(rows)]
    algebra = [rf"\boxed{{\frac{{{n}\pi}}{{2}}}}" for n in range(few)]
    accuracy([rf"\boxed{{\sqrt{{{n}}}}}" for n in range(2, 34)], [r"\pi"] * 32)  # starts the pool
    by_math_verify(algebra[:1], [PI])

    ours = rate("whole numbers", accuracy, numbers, golds)
    pooled = rate(f"multiples of pi, {workers_here()} workers", accuracy, algebra, [PI] * few)
    rate("the same again, from the cache of verdicts", accuracy, algebra, [PI] * few)
    theirs = rate("math-verify here: whole numbers", by_math_verify, numbers[:few], golds[:few])
    other = rate("math-verify here: multiples of pi", by_math_verify, algebra, [PI] * few)
    print(f"{'ratio':48}{ours / theirs:9.1f} (whole numbers) {pooled / other:.1f} (multiples of pi)")

    towers = [rf"\boxed{{99999^{{99999^{{{99999 + n}}}}}}}" for n in range(max(few // 100, 1))]
    batch = [*numbers[: 512 - len(towers)], *towers]
    math.verdicts.clear()
    start = time.perf_counter()
    accuracy(batch, ["1"] * len(batch))
    print(f"a batch of {len(batch)}, {len(towers)} different towers in it: {time.perf_counter() - start:.1f} s")


def by_math_verify(completions: list[str], golds: list[str]) -> None:
    for completion, gold in zip(completions, golds, strict=True):
        found = parse(completion, parsing_timeout=None)
        verify(parse(f"${gold}$", parsing_timeout=None), found, timeout_seconds=None)


def rate(name: str, grade: Callable, completions: list[str], golds: list[str]) -> float:
    start = time.perf_counter()
    grade(completions, golds)
    per_second = len(completions) / (time.perf_counter() - start)
    print(f"{name:48}{per_second:9,.0f} gradings/s")
    return per_second


if __name__ == "__main__":
    main()
