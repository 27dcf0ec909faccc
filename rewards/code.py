"""Does the program pass its tests?"""

import secrets
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from r1lite.prompts import after_reasoning, texts_of
from r1lite.sandbox import Limits, Outcome, run_all

Test = Mapping[str, str] | str


def code(
    completions: list,
    tests: list[list[Test]],
    partial: bool = False,
    seconds: float = 5.0,
    prefill: list[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    """1 where the program in a completion passes all its tests, else 0; with `partial` the share it passes, in [0, 1].

    The program is the last block of Python after the reasoning, fenced by ```python, ```py or ```. A test is
    {"stdin": ..., "stdout": ...}, what the program must print, but for white space at the ends of lines and empty lines
    at the end; or lines of Python with asserts, which follow the program in its file (MBPP). Every test is a process in
    r1lite.sandbox with `seconds` of wall clock; how many ran out of them is logged as code/timeouts. What stdout must
    be is never in the sandbox.

    An assert test passes if a secret is printed after it, so that to exit early is no way out. What remains possible to
    a program that is written to cheat: to look for that secret in its own file, and to return objects that equal all.

    DeepSeek-R1 (arXiv 2501.12948v2) §2.2 and B.3.1: feedback from a compiler on predefined test cases.
    """
    secret = secrets.token_hex(16)
    programs = [program_of(text) for text in texts_of(completions, prefill)]
    jobs: list[list[tuple[str, str]]] = []  # for each completion
    for row, (program, cases) in enumerate(zip(programs, tests, strict=True)):
        if not cases:
            raise ValueError(f"row {row}: `tests` is empty, so nothing could fail; drop the row or give it a test")
        jobs.append([] if program is None else [job(program, test, secret) for test in cases])

    distinct = list(dict.fromkeys(chain.from_iterable(jobs)))
    outcomes = dict(zip(distinct, run_all(distinct, Limits(seconds=seconds)), strict=True))
    if log_metric:
        timeouts = sum(outcomes[each].status == "timeout" for each in chain.from_iterable(jobs))
        log_metric("code/timeouts", float(timeouts))

    rewards: list[float] = []
    for own, cases in zip(jobs, tests, strict=True):
        passed = [passes(outcomes[each], test, secret) for each, test in zip(own, cases, strict=False)]
        share = sum(passed) / len(cases)
        rewards.append(share if partial else float(share == 1))
    return rewards


def program_of(text: str) -> str | None:
    """The last fenced block of Python after the reasoning; None where there is none or the last fence is not closed."""
    program: str | None = None
    block: list[str] | None = None  # that we are in
    language = ""
    for line in after_reasoning(text).split("\n"):
        fence = line.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
        if block is None and fence.startswith("```"):
            language, block = fence[3:].strip().lower(), []
        elif block is not None and fence == "```":
            program = "\n".join(block) if language in ("", "python", "py") else program
            block = None
        elif block is not None:
            block.append(line)
    return program if block is None else None


def job(program: str, test: Test, secret: str) -> tuple[str, str]:
    """What runs, and its stdin."""
    if isinstance(test, str):
        # Not print, which the program may have redefined; and on a line of its own whatever came before.
        return f"{program}\n{test}\n__import__('os').write(1, b'\\n{secret}\\n')\n", ""
    return program, test["stdin"]


def passes(outcome: Outcome, test: Test, secret: str) -> bool:
    if outcome.status != "ok":
        return False
    if isinstance(test, str):
        return secret in outcome.stdout
    return lines_of(outcome.stdout) == lines_of(test["stdout"])


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
