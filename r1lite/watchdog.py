"""The end of what would go on for ever: a phase that hangs, and a process for which there is nothing left to do."""

import faulthandler
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from threading import Event, Thread, Timer

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


@contextmanager
def ending_when(over: Callable[[], bool], worker: "Popen[str]", seconds: float) -> Iterator[Event]:
    """Kill a process once something is so, of which a look is had every so many seconds; yields what is set then."""
    left, happened = Event(), Event()

    def watch() -> None:
        while not left.wait(seconds):
            if over():
                happened.set()
                worker.kill()
                return

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield happened
    finally:
        left.set()
        watcher.join()
