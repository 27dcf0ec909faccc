"""Speed of the sandbox on this machine: small programs a second, beside bare processes one after the other.

    python bench/sandbox.py [--programs 200] [--repeat 3]

Prints medians, and the ratio for each core that the sandbox has used. Bare is `subprocess.run([python, "-I", file])`,
which loads the interpreter's site-packages; in the sandbox there are none.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from r1lite.pool import workers_here
from r1lite.sandbox import PYTHON, isolated, run_all

PROGRAM = "print(int(input()) + 1)"


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the sandbox beside bare processes")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    inputs = [str(number) for number in range(options.programs)]
    expected = [f"{number + 1}\n" for number in range(options.programs)]

    def ours() -> None:
        assert [outcome.stdout for outcome in run_all([(PROGRAM, stdin) for stdin in inputs])] == expected

    def bare() -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "program.py")
            file.write_text(PROGRAM)
            command = [PYTHON, "-I", str(file)]
            outputs = [subprocess.run(command, input=each, capture_output=True, text=True).stdout for each in inputs]
        assert outputs == expected

    cores, rates = workers_here(), [median_rate(each, options) for each in (ours, bare)]
    print(f"{'sandbox':14}{rates[0]:10.1f} programs/s on {cores} cores, {'' if isolated() else 'NOT '}isolated")
    print(f"{'bare':14}{rates[1]:10.1f} programs/s on 1 core")
    print(f"{'ratio':14}{rates[0] / cores / rates[1]:10.2f} for each core")


def median_rate(run: Callable[[], None], options: argparse.Namespace) -> float:
    """Programs a second, the median of calls after one that warms up."""
    run()
    rates: list[float] = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        run()
        rates.append(options.programs / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main()
