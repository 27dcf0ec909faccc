"""The pool with real processes: what hangs, crashes or eats memory costs its own limit and nothing else."""

import os
import subprocess
import sys
import threading
import time
from math import ceil

import pytest

from r1lite.pool import Lost, Pool

ITEMS = """
import ctypes, os, time

def double(x):
    print("what is printed is no result")
    return 2 * x

def odd(what):
    if what == "hang":
        while True: pass
    if what == "ignore signals and hang":
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        time.sleep(60)
    if what == "raise":
        raise ValueError(what)
    if what == "exit":
        os._exit(0)
    if what == "fault":
        ctypes.string_at(0)
    if what == "memory":
        return len(b"x" * (8 << 30))
    if what == "recursion":
        return odd_again(what)
    if what == "alarm":
        import signal
        signal.alarm(1)
        time.sleep(60)
    return what

def odd_again(what):
    return odd_again(what)

def pid(_):
    return os.getpid()

def sleep_beside_a_child(path):
    if os.fork() == 0:
        time.sleep(2)
        open(path, "w").close()
    time.sleep(60)
"""


@pytest.fixture
def pool(tmp_path):
    pools = []

    def make(name: str, seconds: float = 0.5, size: int = 2) -> Pool:
        path = tmp_path / "items.py"
        path.write_text(ITEMS)
        pools.append(Pool(f"{path}:{name}", seconds, size))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def test_results_come_in_the_order_of_the_items(pool):
    doubles = pool("double")
    assert doubles.map([[x] for x in range(200)]) == [2 * x for x in range(200)]
    assert doubles.map([]) == []


@pytest.mark.parametrize(
    ("what", "fate"),
    [
        ("hang", Lost.TIMEOUT),
        ("ignore signals and hang", Lost.TIMEOUT),
        ("raise", Lost.CRASH),
        ("exit", Lost.CRASH),
        ("fault", Lost.CRASH),
        ("memory", Lost.CRASH),
        ("recursion", Lost.CRASH),
        ("alarm", Lost.TIMEOUT),
    ],
)
def test_an_item_that_is_lost_leaves_the_others_alone(pool, what, fate):
    results = pool("odd").map([["a"], [what], ["b"], ["c"], ["\ud800 \0 \n"]])
    assert results == ["a", fate, "b", "c", "\ud800 \0 \n"]


def test_lost_items_cost_their_limit_and_no_more(pool):
    odd = pool("odd", seconds=0.5, size=2)
    odd.map([["a"], ["b"]])  # started
    start = time.monotonic()
    results = odd.map([["hang"] if i % 8 == 0 else [str(i)] for i in range(64)])
    assert results.count(Lost.TIMEOUT) == 8
    assert time.monotonic() - start < 0.5 * ceil(8 / 2) + 1.0


def test_it_works_off_the_main_thread_and_from_several_at_once(pool):
    doubles, results = pool("double"), {}

    def work(name):
        results[name] = doubles.map([[x] for x in range(50)])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [[2 * x for x in range(50)]] * 4


def test_what_a_killed_item_started_is_killed_with_it(pool, tmp_path):
    left = tmp_path / "left"
    assert pool("sleep_beside_a_child").map([[str(left)]]) == [Lost.TIMEOUT]
    time.sleep(2.5)
    assert not left.exists()


def test_nothing_outlives_an_owner_that_is_killed(tmp_path):
    path = tmp_path / "items.py"
    path.write_text(ITEMS)
    code = (
        f"from r1lite.pool import Pool; p = Pool({f'{path}:pid'!r}, 60, 2); print(*p.map([[1], [2]]), flush=True);"
        f"Pool({f'{path}:odd'!r}, 60, 2).map([['hang']])"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert all(map(alive, pids))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not any(map(alive, pids)))


def test_an_interrupted_map_leaves_no_reply_behind(pool, monkeypatch):
    import r1lite.pool

    doubles = pool("double")
    with monkeypatch.context() as patch:
        patch.setattr(r1lite.pool, "read_reply", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            doubles.map([[1], [2]])
    assert doubles.map([[3], [4]]) == [6, 8]


def test_a_wrong_name_is_said_at_once():
    with pytest.raises(ValueError, match="has no function 'no'"):
        Pool("rewards.equality:no", 1.0, 1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def wait_until(true, seconds: float = 10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
