"""Grading under load: what stalls is cut off and counted, equal answers are compared once, and ranks and threads work."""

import subprocess
import sys
import time
from math import ceil

import pytest

import rewards.math
from r1lite.pool import Lost, Pool
from rewards.math import accuracy

TOWER = r"99999^{{99999^{{{}}}}}"


def boxed(answer: str) -> str:
    return rf"<think>so</think>\boxed{{{answer}}}"


def test_a_stalled_answer_scores_0_and_is_counted(monkeypatch):
    logged = {}
    stalled = Pool("rewards.equality:equal", 1.0, 2)
    monkeypatch.setattr(rewards.math, "pool", lambda _: stalled)
    monkeypatch.setattr(rewards.math, "verdicts", {})
    completions = [boxed(TOWER.format(99999)), boxed(r"\frac{\sqrt{4}}{2}")] * 32
    start = time.monotonic()
    assert accuracy(completions, ["1"] * 64, log_metric=logged.__setitem__) == [0.0, 1.0] * 32
    assert logged == {"accuracy/timeouts": 32.0, "accuracy/crashes": 0.0}
    assert time.monotonic() - start < 10, "the same answer is compared once, so it stalls once"
    stalled.close()


@pytest.mark.slow
@pytest.mark.alone
def test_sixty_four_stalls_in_a_batch_cost_their_limits_and_no_more():
    pool, seconds = Pool("rewards.equality:equal", 0.5, 2), 0.5
    items = [["1", TOWER.format(99999 + i) if i % 8 == 0 else rf"\frac{{{i}}}{{{i + 1}}}"] for i in range(512)]
    easy = [item for item in items if "9999" not in item[1]]
    pool.map(easy[:2])
    start = time.monotonic()
    pool.map(easy)
    rest = time.monotonic() - start
    start = time.monotonic()
    results = pool.map(items)
    assert results.count(Lost.TIMEOUT) == 64
    assert time.monotonic() - start < seconds * ceil(64 / 2) + rest + 4
    pool.close()


def test_a_groups_equal_answers_are_compared_once(monkeypatch):
    asked = []

    class Spy:
        def map(self, items):
            asked.extend(items)
            return [True for _ in items]

    monkeypatch.setattr(rewards.math, "pool", lambda _: Spy())
    monkeypatch.setattr(rewards.math, "verdicts", {})
    group = [boxed(answer) for answer in (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", r"$\frac{\pi}{2}$", "pi/2", "7")]
    assert accuracy(group, [r"\pi/2"] * 5) == [1.0] * 5
    assert accuracy(group, [r"\pi/2"] * 5) == [1.0] * 5
    assert len(asked) == len({tuple(item) for item in asked}) == 3


@pytest.mark.slow
@pytest.mark.alone
def test_it_works_in_accelerates_ranks_off_the_main_thread(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        "import threading\n"
        "from accelerate import Accelerator\n"
        "from accelerate.utils import gather_object\n"
        "from rewards.math import accuracy\n"
        "accelerator, scores = Accelerator(cpu=True), []\n"
        "rank = accelerator.process_index\n"
        r"done = [rf'<think>so</think>\boxed{{\frac{{\sqrt{{4}}}}{{{rank + 1}}}}}', r'\boxed{\sqrt{16}}']" + "\n"
        "thread = threading.Thread(target=lambda: scores.extend(accuracy(done, ['2', '4'])))\n"
        "thread.start()\n"
        "thread.join()\n"
        "gathered = gather_object([scores])\n"
        "if accelerator.is_main_process:\n"
        "    print('SCORES', gathered)\n"
    )
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=240)
    assert "SCORES [[1.0, 1.0], [0.0, 1.0]]" in done.stdout, done.stderr[-2000:]
