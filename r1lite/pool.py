"""A pool of processes for work that may never end: every item has a time limit, after which its process is killed.

`pool(function).map(items)` calls the function on each item, the list of its arguments. Items and results are lines of
JSON: what a worker makes of a model's text is never unpickled. It works in any thread and in every rank,
since it neither forks its caller nor uses signals there.

Each worker is a supervisor with a child (`python -m r1lite.pool`): the child works, the supervisor watches the clock,
kills the child by force and forks the next one, which has everything imported already.
"""

import atexit
import ctypes
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from enum import Enum
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NoReturn

from r1lite.plugins import load_function, reference_to

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 2 << 30  # bytes of address space that an item may use
WORKERS = 8  # at most; a trainer needs its other cores


class Lost(Enum):
    """Why an item has no result."""

    TIMEOUT = "timeout"
    CRASH = "crash"  # an exception, too much memory, a fault


@functools.cache
def pool(function: Callable[..., Any], seconds: float = 5.0) -> "Pool":
    """This process's pool for a function of a module's top level, each call of which may take `seconds`."""
    return Pool(reference_to(function), seconds, workers_here())


def workers_here() -> int:
    """This process's share of the cores, where a launcher has started several processes."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class Pool:
    """`size` workers for the function `module:name`, started when they are first needed; `memory` in bytes an item."""

    def __init__(self, reference: str, seconds: float, size: int, memory: int = MEMORY) -> None:
        load_function(reference)  # a wrong name is the caller's error
        self.command = [sys.executable, "-m", "r1lite.pool", reference, str(seconds), str(memory)]
        self.size = size
        self.workers: list[subprocess.Popen] = []
        self.lock = threading.Lock()
        atexit.register(self.close)

    def map(self, items: list[list[Any]]) -> list[Any]:
        """The result for each item, or why there is none. Lost items add at most `seconds` x ceil(lost / workers)."""
        with self.lock:
            try:
                return self._map(items)
            except BaseException:  # Ctrl-C too: a reply that nobody has read would be taken for the next item's
                self.close()
                raise

    def _map(self, items: list[list[Any]]) -> list[Any]:
        waiting = deque(enumerate(items))
        results: list[Any] = [None] * len(items)
        working: dict[Any, tuple[subprocess.Popen, int]] = {}  # by the file that the reply comes from

        def hand_over(worker: subprocess.Popen) -> None:
            index, item = waiting.popleft()
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(item).encode() + b"\n")
            worker.stdin.flush()
            working[worker.stdout] = worker, index

        for worker in self._started(min(self.size, len(items))):
            hand_over(worker)
        while working:
            for file in wait(list(working)):
                worker, index = working.pop(file)
                results[index] = read_reply(worker)
                if waiting:
                    hand_over(worker)
        return results

    def _started(self, count: int) -> list[subprocess.Popen]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        while len(self.workers) < count:
            self.workers.append(
                subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": path},
                )
            )
        return self.workers[:count]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()  # and with it its child
            worker.communicate()
        self.workers = []


def read_reply(worker: subprocess.Popen) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the pool ended with exit code {worker.wait()}; stderr has its last words")
    reply = json.loads(line)
    return Lost(reply["lost"]) if "lost" in reply else reply["result"]


def supervise(reference: str, seconds: float, memory: int) -> None:
    """Answer each line of stdin with one on stdout, whatever becomes of the child that does the work."""
    function = load_function(reference)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the function prints is no reply
    child = Child(function, memory)
    for line in sys.stdin.buffer:
        reply = child.answer(line, seconds)
        if isinstance(reply, Lost):
            child.kill()
            child = Child(function, memory)
            reply = json.dumps({"lost": reply.value}).encode() + b"\n"
        replies.write(reply)
    child.kill()


class Child:
    """A forked process that calls the function on one line after the other."""

    def __init__(self, function: Callable[..., Any], memory: int) -> None:
        request_end, self.requests = os.pipe()
        self.replies, reply_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.requests)
            os.close(self.replies)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            work(function, os.fdopen(request_end, "rb"), os.fdopen(reply_end, "wb", buffering=0))
        os.setpgid(self.pid, self.pid)
        os.close(request_end)
        os.close(reply_end)
        self.reader = os.fdopen(self.replies, "rb")
        self.poll = select.poll()
        self.poll.register(self.replies, select.POLLIN)

    def answer(self, line: bytes, seconds: float) -> bytes | Lost:
        with os.fdopen(os.dup(self.requests), "wb") as file:
            file.write(line)
        if not self.poll.poll(seconds * 1000):
            return Lost.TIMEOUT
        return self.reader.readline() or Lost.CRASH

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.requests)
        self.reader.close()


def work(function: Callable[..., Any], requests: IO[bytes], replies: IO[bytes]) -> NoReturn:
    os.setpgid(0, 0)  # here and in the parent, whoever comes first: what the item starts is killed with it
    end_with_parent()
    for line in requests:
        try:
            reply = json.dumps({"result": function(*json.loads(line))})
        except Exception:
            traceback.print_exc()
            reply = json.dumps({"lost": Lost.CRASH.value})
        replies.write(reply.encode() + b"\n")
    os._exit(0)


def end_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    supervise(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
