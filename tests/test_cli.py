"""Exit codes and messages: 0 done, 1 the run failed, 2 the request was wrong; never a traceback."""

import json
import signal
import subprocess
import sys
import time

import pytest


def r1lite(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "r1lite.cli", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["fly"], "No such command"),
        (["run", "recipes/tiny/zero.yaml", "--bogus"], "No such option"),
        (["check", "recipes/nil.yaml"], "there is no recipe recipes/nil.yaml"),
        (["show", "nowhere"], "is neither a stage's directory nor a recipe's"),
        (["eval", "nowhere/x", "--problems", "data/chain.yaml#test"], "nowhere/x is no directory here"),
        (["eval", "data/tiny_base", "--problems", "data/chain.yaml#test", "--engine", "warp"], "stages.report.engine"),
        (["eval", "data/tiny_base", "--problems", "data/chain.yaml#test", "--prompt", "haiku"], "stages.report.prompt"),
    ],
)
def test_a_wrong_request_is_exit_code_2_and_a_message(arguments, message):
    done = r1lite(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "plan", "run", "eval", "compare", "score", "show"])
def test_every_command_has_help_with_an_example(command):
    done = r1lite(command, "--help")
    assert done.returncode == 0
    assert f"r1lite {command} " in done.stdout.replace("Usage: r1lite", "")


@pytest.mark.slow
def test_eval_prints_the_report_as_json_and_generates_once(toy_model, tmp_path):
    command = ["eval", str(toy_model), "--problems", "data/chain.yaml#test", "--prompt", "plain", "--limit", "3",
               "--samples", "2", "--max-tokens", "8", "--json", "--runs", str(tmp_path)]  # fmt: skip
    done = r1lite(*command)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["n_problems"], result["n_samples"]) == (3, 2)
    again = r1lite(*command)
    assert "report: done" in again.stderr
    assert json.loads(again.stdout)["results"] == [result]


@pytest.mark.slow
def test_control_c_stops_the_stage_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "r1lite.cli", "run", "recipes/tiny/zero.yaml", "--runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "stage zero was interrupted; the same command goes on with it" in err
    assert "Traceback" not in err
