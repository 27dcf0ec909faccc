"""A limit on what takes seconds where all is well, and hangs for ever where it is not."""

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from r1lite.observe import say
from r1lite.ranks import rank

SYNC_TIMEOUT = "R1LITE_SYNC_TIMEOUT"  # seconds, as `launch.sync_timeout` has it


@contextmanager
def watched(phase: str) -> Iterator[None]:
    """End this process, and tell where all of its threads are, where `phase` takes longer than a weight sync may."""
    seconds = float(os.environ.get(SYNC_TIMEOUT, "300"))

    def end() -> None:
        print(f"rank {rank()} hangs in {phase}; its threads are here:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        say(
            f"error: rank {rank()} hangs in {phase}, which has taken more than {seconds:g} s; the log says where. "
            "Raise launch.sync_timeout if that is not long here; the same command goes on from the newest checkpoint"
        )
        os._exit(1)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
