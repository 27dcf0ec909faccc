"""Hostile programs, really run: each ends within its limit, gets nothing, and leaves nothing behind."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from r1lite import sandbox
from r1lite.pool import Lost, Pool
from r1lite.sandbox import Limits, Outcome, isolated, run_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
needs_namespaces = pytest.mark.skipif(
    sys.platform == "linux" and not isolated(), reason="this machine permits no namespaces, see r1lite.sandbox"
)

NAME = f"hostile{os.getpid()}"  # of each process below and of what it forks, to find those that were left
NAMED = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{NAME}')\n"
SMALL = Limits(seconds=2.0, memory=256 << 20)
SHORT = Limits(seconds=0.4, memory=256 << 20)  # for what does not end

HOSTILE = {
    "fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "timeout"),
    "fork bomb of sessions": (
        "import os\nwhile True:\n  try: os.fork() or os.setsid()\n  except OSError: pass",
        "timeout",
    ),
    "bomb of threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
        "timeout",  # of those that did start, after the exception
    ),
    "endless loop": ("while True: pass", "timeout"),
    "sleep": ("import time\ntime.sleep(60)", "timeout"),
    "signals ignored": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))\nwhile True: pass",
        "timeout",
    ),
    "stopped": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "10 GB of memory": ("len(bytearray(10 << 30))", "error"),
    "10 GB bit by bit": ("held = []\nwhile True: held.append(bytearray(1 << 20))", "error"),
    "1 GB on stdout": ("import os\nfor _ in range(1024): os.write(1, b'x' * (1 << 20))", "output"),
    "1 GB on stderr": ("import os\nfor _ in range(1024): os.write(2, b'x' * (1 << 20))", "output"),
    "too much on both together": (
        "import os\nfor _ in range(6):\n  for file in (1, 2): os.write(file, b'x' * 100_000)",
        "output",
    ),
    "a 1 GB file": ("with open('big', 'wb') as file:\n  for _ in range(1024): file.write(b'x' * (1 << 20))", "error"),
    "deep recursion": ("def f(): f()\nf()", "error"),
    "deep recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, name): return getattr(self, name)\nA().x",
        "error",
    ),
    "a fault": ("import ctypes\nctypes.string_at(0)", "error"),
    "stdin where there is none": ("input()", "error"),
    "a null byte in the source": ("undefined\0", "error"),
    "a lone surrogate in the source": ("print('\ud800')", "error"),
    "no Python": ("def", "error"),
    "privileges": ("import os\nos.setuid(0)", "error"),
    "writing to the system": ("import sys\nopen(sys.base_prefix + '/canary', 'w')", "error"),
    "writing to the root": ("open('/canary', 'w')", "error"),
}
# What only namespaces keep out.
KEPT_OUT = {
    "many files": ("for i in range(10**6): open(f'/tmp/{i}', 'w').close()", "error"),
    "16 files of 16 MB": ("for i in range(16): open(f'/tmp/{i}', 'wb').write(b'x' * (16 << 20))", "error"),
    "more namespaces": (
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError('no user namespace')",
        "error",
    ),
    "changing the program": ("open(__file__, 'w')", "error"),
    "the password file": ("open('/etc/shadow')", "error"),
    "processes": ("import os\nos.listdir('/proc')", "error"),
    "devices": ("open('/dev/kmsg')", "error"),
    "killing everything": ("import os\nos.kill(-1, 9)", "error"),  # there is nothing else to kill
}


@pytest.fixture
def left_behind():
    """The directories and processes of this test that are still there."""
    before = set(Path(tempfile.gettempdir()).glob("r1lite-sandbox-*"))

    def find():
        return running() + sorted(set(Path(tempfile.gettempdir()).glob("r1lite-sandbox-*")) - before)

    return find


def running() -> list[str]:
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == NAME:
                found.append(comm.parent.name)
        except OSError:  # it has ended
            continue
    return found


def run_one(program: str, stdin: str = "", limits: Limits = SMALL) -> Outcome:
    (outcome,) = run_all([(program, stdin)], limits)
    return outcome


@pytest.fixture(scope="module")
def without_namespaces():
    """Run one program as on a machine that permits no namespaces, in a pool and a temporary directory of these tests."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    pool = Pool("r1lite.sandbox:run_item", 10, 1)

    def run(program: str, stdin: str = "", limits: Limits = SMALL) -> Outcome:
        (result,) = pool.map([[program, stdin, asdict(limits), False]])
        assert not list(directory.iterdir()), "the temporary directory was left"
        return Outcome(**result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        run("")  # starts the worker
    yield run
    pool.close()
    shutil.rmtree(directory)


@needs_namespaces
@pytest.mark.parametrize("name", [*HOSTILE, *KEPT_OUT])
def test_hostile_programs_end_and_leave_nothing(name, left_behind):
    program, status = {**HOSTILE, **KEPT_OUT}[name]
    start = time.monotonic()
    assert run_one(NAMED + program, limits=SHORT if status == "timeout" else SMALL).status == status
    assert time.monotonic() - start < 3
    assert not left_behind()


@pytest.mark.parametrize("name", HOSTILE)
def test_without_namespaces_they_end_too(name, left_behind, without_namespaces):
    program, status = HOSTILE[name]
    assert without_namespaces(NAMED + program, limits=SHORT if status == "timeout" else SMALL).status == status
    assert not left_behind()


DAEMON = NAMED + (
    "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)\nprint('hi')"
)


@needs_namespaces
def test_a_daemon_that_holds_the_pipes_dies_with_its_program(left_behind):
    start = time.monotonic()
    assert run_one(DAEMON) == Outcome("ok", "hi\n", "", 0)
    assert time.monotonic() - start < 1
    assert not left_behind()


def test_without_namespaces_daemons_are_found(left_behind, without_namespaces):
    assert without_namespaces(DAEMON) == Outcome("ok", "hi\n", "", 0)
    assert not left_behind()


@needs_namespaces
@pytest.mark.parametrize("what", ["os.getppid(), 9", "os.getppid(), 2", "1, 15", "-1, 0"])
def test_no_signal_gets_out(what):
    """A program may signal its init, which ignores that; it goes on, and so do we."""
    outcome = run_one(f"import os, time\ntry: os.kill({what})\nexcept OSError: pass\ntime.sleep(0.1)\nprint('alive')")
    assert outcome == Outcome("ok", "alive\n", "", 0)


def test_without_namespaces_it_cannot_kill_a_worker_of_root(without_namespaces):
    if os.getuid() != 0:
        pytest.skip("as an ordinary user it can, and loses its result")
    assert "Operation not permitted" in without_namespaces("import os\nos.kill(os.getppid(), 9)").stderr


@needs_namespaces
def test_no_file_of_the_host_is_visible(tmp_path):
    repository = Path(__file__).resolve().parent.parent
    canaries = [tmp_path / "canary"]
    if os.access(repository.parent, os.W_OK):
        canaries.append(repository.parent / f"canary-{os.getpid()}")
    for canary in canaries:
        canary.write_text("secret")
    paths = [*canaries, repository / "pyproject.toml", Path("~/.ssh").expanduser(), "/etc/passwd", "/home", "/sys"]
    try:
        program = f"import os\nfor path in {[str(path) for path in paths]}: print(os.path.exists(path))"
        assert run_one(program).stdout.split() == ["False"] * len(paths)
    finally:
        for canary in canaries:
            canary.unlink()


@needs_namespaces
def test_the_temporary_directory_is_empty_and_gone_afterwards():
    program = "import os\nprint(os.getcwd(), os.listdir())\nopen('left', 'w').write('x')\nprint(open('left').read())"
    for _ in range(2):
        assert run_one(program).stdout == "/tmp []\nx\n"
    assert not Path("/tmp/left").exists()


@needs_namespaces
def test_no_socket_reaches_the_host():
    name = f"\0r1lite-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        for family, address in (("INET", tcp.getsockname()), ("UNIX", name)):
            program = f"import socket\nsocket.socket(socket.AF_{family}).connect({address!r})\nprint('connected')"
            with socket.socket(getattr(socket, f"AF_{family}")) as client:
                client.connect(address)  # here it works
            outcome = run_one(program)
            assert (outcome.status, outcome.stdout) == ("error", "")
            assert "unreachable" in outcome.stderr or "refused" in outcome.stderr


def test_no_secret_is_inherited(without_namespaces, monkeypatch, tmp_path):
    """Neither in the environment nor as an open file; asked in a fresh process, whose workers start after both."""
    (tmp_path / "secret").write_text("secret")
    program = (
        "import os\n"
        "for fd in range(3, 64):\n"
        "  try: os.fstat(fd)\n"
        "  except OSError: continue\n"
        "  print('open', fd)\n"
        "print(sorted(os.environ))"
    )
    parent = (
        "import json, os, sys\n"
        "from r1lite.sandbox import run\n"
        f"os.set_inheritable(os.open({str(tmp_path / 'secret')!r}, os.O_RDONLY), True)\n"
        f"print(json.dumps([run({program!r}, isolate=isolate).stdout for isolate in {[False, True][: 1 + isolated()]}]))"
    )
    command = [sys.executable, "-c", parent]
    output = subprocess.run(command, env={**os.environ, "HF_TOKEN": "secret"}, capture_output=True, check=True).stdout
    assert set(json.loads(output)) == {"['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'PATH', 'PYTHONHASHSEED']\n"}


@needs_namespaces
@pytest.mark.parametrize("program", ["import time\ntime.sleep(60)", "while True: pass", DAEMON + "\ntime.sleep(60)"])
def test_nothing_outlives_a_killed_worker(program):
    """Here the pool's limit is shorter than the sandbox's, and kills the worker by force."""
    pool = Pool("r1lite.sandbox:run_item", 0.7, 1)
    results = []
    item = [NAMED + program, "", asdict(Limits(seconds=60)), True]
    thread = threading.Thread(target=lambda: results.extend(pool.map([item])))
    thread.start()
    deadline = time.monotonic() + 5
    while not running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(), "the program was never seen, so that its end says nothing"
    thread.join()
    assert results == [Lost.TIMEOUT]
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()
    pool.close()


WELL_BEHAVED = [
    ("print(int(input()) + 1)", "41\n", Outcome("ok", "42\n", "", 0)),
    ("print(input())", "ü €\n", Outcome("ok", "ü €\n", "", 0)),
    ("import sys\nsys.exit(3)", "", Outcome("error", "", "", 3)),
    ("exit()", "", Outcome("ok", "", "", 0)),
    ("import sys\nsys.exit('sorry')", "", Outcome("error", "", "sorry\n", 1)),
    ("import os\nos.kill(os.getpid(), 15)", "", Outcome("error", "", "", 143)),
    ("import os\nos.write(1, b'a\\xffb')", "", Outcome("ok", "a\ufffdb", "", 0)),
    ("import os\nos.close(1)\nos.close(2)\nimport time\ntime.sleep(0.1)", "", Outcome("ok", "", "", 0)),
    ("import sys\nprint(len(sys.stdin.read()))", "x" * (3 << 20), Outcome("ok", f"{3 << 20}\n", "", 0)),
    ("print(1)", "x" * (3 << 20), Outcome("ok", "1\n", "", 0)),  # nobody reads it
    (f"# {'x' * (1 << 20)}\nprint(1)", "", Outcome("ok", "1\n", "", 0)),  # longer than an argument may be
    ("import collections, decimal, heapq, json, random, re, ssl, sqlite3\nprint(1)", "", Outcome("ok", "1\n", "", 0)),
    ("print({'a', 'b', 'c', 'd'} == set('abcd'), hash('a') == hash('a'))", "", Outcome("ok", "True True\n", "", 0)),
    (
        "import tempfile\nwith tempfile.TemporaryFile() as file: print(file.write(b'x'))",
        "",
        Outcome("ok", "1\n", "", 0),
    ),
    (
        "import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', 'print(1)']))",
        "",
        Outcome("ok", "b'1\\n'\n", "", 0),
    ),
]


@needs_namespaces
def test_well_behaved_programs():
    outcomes = run_all([(program, stdin) for program, stdin, _ in WELL_BEHAVED])
    assert outcomes == [outcome for *_, outcome in WELL_BEHAVED]


def test_well_behaved_programs_without_namespaces(without_namespaces):
    for program, stdin, outcome in WELL_BEHAVED:
        assert without_namespaces(program, stdin, Limits()) == outcome


@needs_namespaces
def test_threads_and_processes_up_to_the_limit():
    program = (
        "import threading, time\n"
        "for _ in range({}): threading.Thread(target=time.sleep, args=(0.1,)).start()\n"
        "from multiprocessing import Pool\n"
        "if __name__ == '__main__':\n  with Pool(2) as pool: print(pool.map(abs, [-1]))"
    )
    assert run_one(program.format(4)) == Outcome("ok", "[1]\n", "", 0)
    assert run_one(program.format(16)).status == "error"


@needs_namespaces
def test_it_has_no_capabilities_and_gains_none():
    program = (
        "import ctypes, os\n"
        "libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()\n"
        "assert libc.capget(header, sets) == 0\n"
        "print(list(sets), libc.prctl(39, 0, 0, 0, 0), os.getuid() != 0)"
    )
    assert run_one(program).stdout == "[0, 0, 0, 0, 0, 0] 1 True\n"


@needs_namespaces
def test_sets_have_the_same_order_in_every_run():
    assert len({outcome.stdout for outcome in run_all([("print(set('abcdefgh'))", "")] * 4)}) == 1


def test_what_keeps_namespaces_away_is_said(capfd, monkeypatch):
    ask = "from r1lite import sandbox\nsandbox.NAMESPACES = -1\nprint(sandbox.why_not_isolated())"
    why = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    assert why == "OSError: [Errno 22] unshare: Invalid argument"

    monkeypatch.setattr(Pool, "map", lambda *_: [why])
    assert not isolated.__wrapped__()
    (line,) = capfd.readouterr().err.splitlines()
    assert why in line and "can read files" in line and "sysctl -w" in line

    monkeypatch.setattr(Pool, "map", lambda *_: [Lost.CRASH])
    with pytest.raises(RuntimeError, match="no program could be started"):
        isolated.__wrapped__()


def test_a_failure_of_the_sandbox_is_no_failure_of_the_program(monkeypatch):
    monkeypatch.setattr(sandbox, "isolated", lambda: True)
    monkeypatch.setattr(Pool, "map", lambda *_: [Lost.CRASH])
    with pytest.raises(RuntimeError, match="the sandbox failed"):
        run_all([("", "")])
