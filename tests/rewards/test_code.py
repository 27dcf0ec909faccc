import pytest

import rewards.code
from rewards.code import code, program_of

ECHO = [{"stdin": "3\n", "stdout": "4\n"}, {"stdin": "-1\n", "stdout": "0\n"}]
SQUARE = ["assert square(3) == 9", "assert square(-2) == 4\nassert square(0) == 0"]
ONE = [{"stdin": "", "stdout": "1"}]


def block(program: str, language: str = "python") -> str:
    return f"```{language}\n{program}\n```"


ADD = block("print(int(input()) + 1)")
RIGHT = block("def square(x):\n    return x * x")

TABLE = [
    # where the program is
    (ADD, ECHO, 1.0, "alone"),
    (f"<think>add one</think>\nSo:\n{ADD}\nDone.", ECHO, 1.0, "with text around it"),
    (f"<think>add one</think><answer>\n{ADD}\n</answer>", ECHO, 1.0, "in an answer"),
    (f"<think>add one</think><answer>{ADD}</answer>", ECHO, 1.0, "in an answer without line breaks"),
    (block("print(int(input()) + 1)", "py"), ECHO, 1.0, "fenced as py"),
    (block("print(int(input()) + 1)", "Python"), ECHO, 1.0, "fenced as Python"),
    (block("print(int(input()) + 1)", ""), ECHO, 1.0, "fenced as nothing"),
    (block("print(int(input()) + 1)", "cpp"), ECHO, 0.0, "fenced as another language"),
    (f"{block('print(5)')}\nno:\n{ADD}", ECHO, 1.0, "the last of two"),
    (f"{ADD}\nno:\n{block('print(5)')}", ECHO, 0.0, "the first of two"),
    (f"{ADD}\nIt prints\n{block('4', 'text')}", ECHO, 1.0, "followed by a block of text"),
    (f"{ADD}\n```python\nprint(int(", ECHO, 0.0, "followed by a block that was cut off"),
    (ADD.removesuffix("```"), ECHO, 0.0, "not closed"),
    (ADD.replace("\n", "\r\n"), ECHO, 1.0, "with carriage returns"),
    (f"<think>{ADD}</think> done", ECHO, 0.0, "only thought"),
    (f"<think>{ADD}", ECHO, 0.0, "in thinking without end"),
    ("print(int(input()) + 1)", ECHO, 0.0, "without a fence"),
    ("", ECHO, 0.0, "nowhere"),
    (block(""), ECHO, 0.0, "empty"),
    # stdout
    (block("print('1  \\n\\n')"), ONE, 1.0, "white space at the ends"),
    (block("import sys; sys.stdout.write('1')"), ONE, 1.0, "no line break at the end"),
    (block("print(' 1')"), ONE, 0.0, "white space in front"),
    (block("print('1.0')"), ONE, 0.0, "compared as text"),
    (block("print('\\n1')"), ONE, 0.0, "an empty line in front"),
    (block("print(1); raise SystemExit(2)"), ONE, 0.0, "right, then an error"),
    (block("print(1); 1 / 0"), ONE, 0.0, "right, then an exception"),
    (block("import sys; print(1, file=sys.stderr)"), ONE, 0.0, "on stderr"),
    (block("print(4)"), ECHO, 0.0, "passes one of two"),
    (block("print(input() and 1)"), ONE, 0.0, "reads what is not there"),
    (block("pass"), [{"stdin": "", "stdout": ""}], 1.0, "nothing asked, nothing said"),
    (block("print('\ud800')"), ONE, 0.0, "a lone surrogate"),
    (block("print(1)\0"), [{"stdin": "", "stdout": "2"}], 0.0, "a null byte"),
    # asserts
    (RIGHT, SQUARE, 1.0, "right"),
    (block("def square(x):\n    return 3 * x"), SQUARE, 0.0, "right for 3 only"),
    (block("def square(x):\n    return x ** x"), SQUARE, 0.0, "wrong"),
    (block("def sqaure(x):\n    return x * x"), SQUARE, 0.0, "another name"),
    (block("def square(x): return x * x\nprint(square(5))\n# done"), SQUARE, 1.0, "prints, ends with a comment"),
    (block("def square(x): return x * x\nprint = None"), SQUARE, 1.0, "redefines print"),
    (block("from __future__ import annotations\ndef square(x: A): return x * x"), SQUARE, 1.0, "a future import"),
    (block("def square(x): return x * x\nif __name__ == '__main__': print(square(2))"), SQUARE, 1.0, "a main part"),
    (block("import sys\nsys.exit(0)"), SQUARE, 0.0, "exit before the asserts"),
    (block("import os\nos._exit(0)"), SQUARE, 0.0, "exit without clean-up"),
    (block("raise SystemExit"), SQUARE, 0.0, "exit by exception"),
    (block("quit()"), SQUARE, 0.0, "exit by quit"),
    (block("def square(x):\n    import os; os._exit(0)"), SQUARE, 0.0, "exit in the assert"),
    (block("import atexit, os\natexit.register(os._exit, 0)"), SQUARE, 0.0, "an exception, then exit code 0"),
    (block("def square(x): return x * x\nif False:"), SQUARE, 0.0, "asserts in a dead branch"),
    (block("def square(x): return x * x\n'''"), SQUARE, 0.0, "asserts in a string"),
    (block("def square(x): return x * x\nimport os, sys\nos.execv(sys.executable, ['-c', ''])"), SQUARE, 0.0, "another process"),
    (block("def square(x): return x * x\nprint('\\n' + '0' * 32)"), ["assert square(1) == 2"], 0.0, "a made-up secret"),
]  # fmt: skip


def test_table():
    completions, tests, expected, why = (list(column) for column in zip(*TABLE, strict=True))
    rewards = code(completions, tests, seconds=5.0)
    assert list(zip(why, rewards, strict=True)) == list(zip(why, expected, strict=True))
    messages = [[{"role": "assistant", "content": completion}] for completion in completions]
    assert code(messages, tests) == expected


def test_partial():
    halves = [block("print(4)"), ADD, "none", block("def square(x): return 3 * x")]
    assert code(halves, [ECHO, ECHO, ECHO, SQUARE], partial=True) == [0.5, 1.0, 0.0, 0.5]


def test_prefill():
    assert code([f"so</think>{ADD}", ADD], [ECHO] * 2, prefill=["<think>", "<think>"]) == [1.0, 0.0]


def test_timeouts_are_logged():
    logged = []
    completions = [block("while True: pass"), block("print(1)"), block("while True: pass")]
    assert code(completions, [ONE] * 3, seconds=0.5, log_metric=lambda *pair: logged.append(pair)) == [0.0, 1.0, 0.0]
    assert logged == [("code/timeouts", 2.0)]


def test_equal_programs_run_once(monkeypatch):
    runs = []

    def run_all(jobs, limits):
        runs.extend(jobs)
        return real(jobs, limits)

    real = rewards.code.run_all
    monkeypatch.setattr(rewards.code, "run_all", run_all)
    assert code([ADD, ADD, f"again\n{ADD}", RIGHT, RIGHT], [ECHO, ECHO, ECHO, SQUARE, SQUARE]) == [1.0] * 5
    assert len(runs) == len(set(runs)) == 4


def test_what_stdout_must_be_is_not_in_the_sandbox(monkeypatch):
    seen = []
    monkeypatch.setattr(rewards.code, "run_all", lambda jobs, limits: seen.extend(jobs) or [])
    with pytest.raises(ValueError, match="zip"):
        code([ADD], [[{"stdin": "3", "stdout": "expected"}]])
    assert seen == [("print(int(input()) + 1)", "3")]


def test_rows_without_tests_are_named():
    with pytest.raises(ValueError, match="row 1: `tests` is empty"):
        code([ADD, ADD], [ECHO, []])


def test_programs_of_many_fences_are_found_in_time():
    assert program_of("```python\n" * 100_000) is None
    assert program_of(block("a\n" * 100_000)) == "a\n" * 100_000


def test_without_namespaces_rewards_are_the_same(monkeypatch):
    monkeypatch.setattr("r1lite.sandbox.isolated", lambda: False)
    assert code([ADD, RIGHT, block("1 / 0")], [ECHO, SQUARE, ONE]) == [1.0, 1.0, 0.0]
