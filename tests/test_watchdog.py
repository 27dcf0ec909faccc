"""A weight sync that hangs ends the run, and tells where."""

import os
import subprocess
import sys
import time

import pytest
from test_trainer import make_config, make_stage

from r1lite.watchdog import SYNC_TIMEOUT, watched

HANGS = """
import sys, time
from pathlib import Path
from r1lite import engines, worker

def hang_in_sync(self, model):
    time.sleep(600)

engines.TransformersEngine.sync = hang_in_sync
sys.exit(worker.main(Path(sys.argv[1])))
"""


def test_what_ends_in_time_is_left_alone(monkeypatch):
    monkeypatch.setenv(SYNC_TIMEOUT, "0.2")
    for _ in range(3):
        with watched("something short"):
            time.sleep(0.01)
    time.sleep(0.4)  # and no timer is left that would end this process


@pytest.mark.slow
@pytest.mark.alone
def test_a_sync_that_hangs_ends_the_run_and_tells_where(toy_model, tmp_path):
    stage = make_stage(tmp_path / "stage", make_config(toy_model, probe=None))
    environment = {**os.environ, SYNC_TIMEOUT: "1", "PYTHONPATH": ".", "RANK": "0"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(stage.path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and time.monotonic() - start < 60
    assert "error: rank 0 hangs in the weight sync, which has taken more than 1 s; the log says where." in done.stdout
    assert "rank 0 hangs in the weight sync; its threads are here:" in done.stderr
    assert "in hang_in_sync" in done.stderr, "its stack"
    assert not (stage.path / "manifest.json").exists()
