"""Gradings a second by `rewards.math:accuracy`, beside math-verify called in this process: `python bench/grading.py`.

Every answer is another one, so nothing comes from the cache of verdicts but where the line says so.
"""

import logging
import time
from collections.abc import Callable

from r1lite.pool import pool, workers_here
from rewards import math
from rewards.equality import equal
from rewards.math import accuracy


def main() -> None:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    warm_up = [rf"\boxed{{\frac{{\pi}}{{{n}}}}}" for n in range(2, 34)]
    accuracy(warm_up, [r"\pi"] * 32)

    easy = [rf"<think>so</think><answer>{n}</answer>" for n in range(4000)]
    fractions = [rf"\boxed{{\frac{{{n}}}{{{n + 2}}}}}" for n in range(4000)]
    algebra = [rf"\boxed{{\frac{{{n}\pi}}{{2}}}}" for n in range(1, 401)]
    towers = [rf"\boxed{{99999^{{99999^{{{n % 8 + 2}}}}}}}" for n in range(64)]

    def graded_by_math_verify(completions: list[str], golds: list[str]) -> None:
        for completion, gold in zip(completions, golds, strict=True):
            verify(parse(f"${gold}$", parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)

    numbers = [str(n // 2 * 2) for n in range(4000)]
    ours = rate("whole numbers", accuracy, easy, numbers)
    rate("fractions", accuracy, fractions, numbers)
    pi = rate("multiples of pi, by math-verify in the pool", accuracy, algebra, [r"\frac{6\pi}{4}"] * 400)
    rate("the same again, from the cache of verdicts", accuracy, algebra, [r"\frac{6\pi}{4}"] * 400)
    theirs = rate("math-verify in this process, whole numbers", graded_by_math_verify, easy[:400], numbers[:400])
    other = rate("math-verify in this process, multiples of pi", graded_by_math_verify, algebra, [r"\frac{6\pi}{4}"] * 400)
    print(f"ratio: {ours / theirs:.1f} (whole numbers), {pi / other:.1f} (multiples of pi, {workers_here()} workers)")

    batch = [*easy[:448], *towers]
    start = time.perf_counter()
    math.verdicts.clear()
    accuracy(batch, ["1"] * len(batch))
    print(f"a batch of 512 with 64 towers, 8 different: {time.perf_counter() - start:.1f} s")
    pool(equal).close()


def rate(name: str, grade: Callable, completions: list[str], golds: list[str]) -> float:
    start = time.perf_counter()
    grade(completions, golds)
    per_second = len(completions) / (time.perf_counter() - start)
    print(f"{name}: {per_second:,.0f} gradings/s")
    return per_second


if __name__ == "__main__":
    main()
