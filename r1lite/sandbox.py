"""Programs that a model wrote, each in a process of its own that can reach nothing and is gone when it is done.

`run_all([(program, stdin), ...])` runs them in the worker processes of a pool. Where Linux permits, every program gets
fresh namespaces: a root of read-only system directories with an empty /tmp, no network, no other processes, an ordinary
user without capabilities. When it ends, however it ends, the kernel kills all that it started and drops its files.

    worker of the pool -- keeper: makes the namespaces -- init: their process 1 -- the program

Where Linux does not permit it, resource limits and a temporary directory remain; `isolated` tells, and stderr says so.
There a program of the same user can kill its worker, which costs its own result and leaves its temporary directory.

What is left in either case: `memory` bounds each process, so that a program may use `processes` times as much, and a
hole in the kernel is a hole in this sandbox.
"""

import ctypes
import functools
import math
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from r1lite.pool import Lost, Pool, end_with_parent, pool

NOBODY = 65534  # the user and group of programs that root runs
BACKSTOP = 10.0  # seconds after its time limit at which the pool gives up on a program, and on its worker
PREFIX = Path(sys.base_prefix).resolve()  # the interpreter, without the virtual environment
PYTHON = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
SYSTEM = ["usr", "bin", "sbin", "lib", "lib32", "lib64"]
DEVICES = ["null", "zero", "urandom"]
# `-s -P` and no other variables of Python are what `-I` is, but for the hashes that are the same in every run.
OPTIONS = ["-s", "-P"]
# One arena, since each reserves 64 MiB of the address space that is limited.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}

# linux/sched.h: mount, uts, ipc, user, pid and net namespaces
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# linux/mount.h and fcntl.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 0x1000, 0x4000, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY_NOSUID_NODEV = 442, -100, 0x8000, 1 | 2 | 4
# linux/prctl.h and capability.h
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 8, 36, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 2

WARNING = (
    "r1lite.sandbox: no namespaces here ({why}). Programs that a model wrote are held by resource limits only: they "
    "can read files, use the network, and signal processes of user {user}. To permit namespaces: sysctl -w those that "
    "exist of user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 "
    "kernel.apparmor_restrict_unprivileged_userns=0, and in Docker "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. It may also compute for about `seconds` on each of its processes."""

    seconds: float = 5.0  # wall clock, with about 20 ms until the program starts
    memory: int = 512 << 20  # bytes of address space for each process, at most r1lite.pool.MEMORY
    processes: int = 16  # and threads, with the program itself; without namespaces: of the whole user
    file_bytes: int = 16 << 20  # in /tmp together; without namespaces: in each file
    output_bytes: int = 1 << 20  # stdout and stderr together


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    `status` is "ok" (exit code 0), "error" (another exit code, or killed by a signal), "timeout" or "output" (it wrote
    more than it may). `exit_code` is 128 + n after signal n, and None where the program was stopped from outside.
    Output that is no UTF-8 has replacement characters in it.
    """

    status: str
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None


def run_all(jobs: list[tuple[str, str]], limits: Limits = Limits()) -> list[Outcome]:
    """The outcome of each (program, stdin), as many at a time as the pool has workers; from any thread or process.

    A RuntimeError means that the sandbox itself failed, which no program can bring about where `isolated()`.
    """
    isolate = isolated()
    items = [[program, stdin, asdict(limits), isolate] for program, stdin in jobs]
    results = pool(run_item, limits.seconds + BACKSTOP).map(items)
    if isolate and Lost.CRASH in results:
        raise RuntimeError("the sandbox failed, not the program in it; the traceback is on stderr")
    lost = {Lost.TIMEOUT: Outcome("timeout"), Lost.CRASH: Outcome("error")}  # without isolation it may kill its worker
    return [lost[result] if isinstance(result, Lost) else Outcome(**result) for result in results]


@functools.cache
def isolated() -> bool:
    """Whether programs run in namespaces of their own; where they cannot, a line on stderr says what that means.

    A RuntimeError where they cannot run at all.
    """
    if sys.platform != "linux":
        raise ValueError(f"r1lite.sandbox runs on Linux, not on {sys.platform}; use a Linux machine or container")
    trial = Pool("r1lite.sandbox:why_not_isolated", BACKSTOP, 1)
    (why,) = trial.map([[]])
    trial.close()
    if isinstance(why, Lost):
        raise RuntimeError(
            "no program could be started: stderr says why; where ordinary users may not enter the "
            f"directory of {PYTHON}, use a Python that they can reach"
        )
    if why:
        print(WARNING.format(why=why, user=NOBODY if os.getuid() == 0 else os.getuid()), file=sys.stderr, flush=True)
    return not why


def why_not_isolated() -> str:
    """The last line of the error that keeps a program from running in namespaces; "" where there is none."""
    try:
        outcome = run("", isolate=True)
        why = "" if outcome.status == "ok" else f"{PYTHON} ends with {outcome.status}: {outcome.stderr[-200:]!r}"
    except RuntimeError as error:
        why = str(error).strip().splitlines()[-1]
    if why and (outcome := run("", isolate=False)).status != "ok":
        raise RuntimeError(f"{PYTHON} ends with {outcome.status}: {outcome.stderr}")
    return why


def run_item(program: str, stdin: str, limits: dict[str, Any], isolate: bool) -> dict[str, Any]:
    return asdict(run(program, stdin, Limits(**limits), isolate))


def run(program: str, stdin: str = "", limits: Limits = Limits(), isolate: bool = True) -> Outcome:
    """Run one program and wait for it. Only for small processes without threads and children, such as a pool's worker.

    It forks its caller, adopts what the program leaves behind and kills all children of its caller. A RuntimeError
    says why the program could not be started.
    """
    call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    source = program.encode("utf-8", "surrogatepass")  # no UTF-8 then, which Python calls a syntax error
    with Channels(stdin.encode("utf-8", "surrogatepass")) as channels, temporary_directory(isolate) as directory:
        worker = os.getpid()
        child = os.fork()
        if child == 0:
            start(source, directory, limits, channels, worker)
        channels.close_ends_of_program()
        stopped = channels.watch(child, limits)
        exit_code = None if stopped else wait_for(child)
        kill_children()
        return channels.outcome(stopped, exit_code, limits)


@contextmanager
def temporary_directory(isolate: bool) -> Iterator[Path | None]:
    """For a program that gets no root of its own, and None for one that does."""
    if isolate:
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix="r1lite-sandbox-"))
    try:
        yield directory
    finally:
        # Not shutil.rmtree, which recurses as deep as the program has made directories.
        subprocess.run(["rm", "-rf", "--", str(directory)], check=False)


class Channels:
    """What connects a program with its worker: a file as stdin, and pipes for stdout, stderr and failures to start."""

    def __init__(self, stdin: bytes) -> None:
        self.stdin = os.memfd_create("stdin")  # a file, since a pipe would have to be fed
        with os.fdopen(os.dup(self.stdin), "wb") as file:
            file.write(stdin)
        os.lseek(self.stdin, 0, os.SEEK_SET)
        (self.stdout, out), (self.stderr, err), (self.failure, self.failed) = os.pipe(), os.pipe(), os.pipe()
        self.of_program = [self.stdin, out, err]
        self.written = {self.stdout: bytearray(), self.stderr: bytearray()}

    def __enter__(self) -> "Channels":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr, self.failure):
            os.close(file)

    def close_ends_of_program(self) -> None:
        for file in (*self.of_program, self.failed):
            os.close(file)

    def become_standard_files(self) -> None:
        """In the program's process: stdin, stdout and stderr are these, and nothing else stays open."""
        for target, file in enumerate(self.of_program):
            os.dup2(file, target)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != self.failed:
                with suppress(OSError):  # the directory that was just listed
                    os.close(int(name))

    def watch(self, child: int, limits: Limits) -> str | None:
        """Read until the child has ended, or say which limit it broke."""
        deadline = time.monotonic() + limits.seconds
        end = os.pidfd_open(child)
        poll = select.poll()
        for file in (end, *self.written):
            poll.register(file, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                for file, _ in poll.poll(left * 1000):
                    if file == end:
                        return None
                    if not self.read(file):
                        poll.unregister(file)  # the program has closed it
                if self.is_too_much(limits):
                    return "output"
            return "timeout"
        finally:
            os.close(end)

    def read(self, file: int) -> bytes:
        data = os.read(file, 1 << 16)
        self.written[file] += data
        return data

    def is_too_much(self, limits: Limits) -> bool:
        return sum(map(len, self.written.values())) > limits.output_bytes

    def outcome(self, stopped: str | None, exit_code: int | None, limits: Limits) -> Outcome:
        """When nobody is left to write: what is still in the pipes, which is little, and how it ended."""
        for file in self.written:
            while self.read(file):
                pass
        if failure := os.read(self.failure, 1 << 16):
            raise RuntimeError(f"the sandbox could not start a program:\n{failure.decode(errors='replace')}")
        if not stopped and self.is_too_much(limits):
            stopped = "output"
        stdout, stderr = (bytes(text[: limits.output_bytes]).decode(errors="replace") for text in self.written.values())
        return Outcome(stopped or ("error" if exit_code else "ok"), stdout, stderr, exit_code)


def wait_for(child: int) -> int:
    return as_exit_code(os.waitpid(child, 0)[1])


def as_exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code  # as shells do


def kill_children() -> None:
    """Kill all that this process has started and adopted, until there is nothing left."""
    while children := children_of(os.getpid()):
        for pid in [*children, *descendants(children)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)  # of an init: after all in its namespace are dead


def descendants(pids: list[int]) -> list[int]:
    """The children of processes and theirs; without them, those that multiply would outrun the killing."""
    children = [child for pid in pids for child in children_of(pid)]
    return [*children, *descendants(children)] if children else []


def children_of(pid: int) -> list[int]:
    with suppress(OSError):  # it has ended
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def start(source: bytes, directory: Path | None, limits: Limits, channels: Channels, worker: int) -> NoReturn:
    """In the forked process: become the program, or its keeper."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # else a program could interrupt its init
        os.umask(0o022)  # what root makes here, an ordinary user reads
        channels.become_standard_files()
        if directory is None:
            keep(source, limits, channels.failed, worker)
        run_without_namespaces(source, directory, limits)
    except BaseException:
        os.write(channels.failed, traceback.format_exc()[-4000:].encode(errors="replace"))
    finally:
        os._exit(1)


# With namespaces


def keep(source: bytes, limits: Limits, failed: int, worker: int) -> NoReturn:
    """Make the namespaces, start their init, and end as it ends."""
    os.chdir(PREFIX)  # as root, to whom it may belong: below, it can be mounted from here by an ordinary user
    if os.getuid() == 0:
        become_nobody()
    enter_namespaces()
    end_with_parent()  # not earlier: Linux forgets it when the user changes
    if os.getppid() != worker:
        os._exit(1)
    lifeline, held = os.pipe()
    init = os.fork()
    if init:
        os._exit(wait_for(init))
    end_with_parent()
    os.close(held)
    if select.select([lifeline], [], [], 0)[0]:  # the keeper was killed before it could matter to Linux
        os._exit(1)
    build_root(source, limits)
    drop_capabilities()
    program = os.fork()
    if program == 0:
        # The keeper and init count as processes of the same user.
        become_program(Path("/program"), Path("/tmp"), limits, limits.processes + 2)
    os.close(failed)
    while True:  # orphans come to init
        dead, status = os.wait()
        if dead == program:
            os._exit(as_exit_code(status))


def become_nobody() -> None:
    """Root is exempt from the limit on processes, and owns what it could reach through a mistake of ours."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def enter_namespaces() -> None:
    """Fresh ones of each kind for this process and, for process ids, for its children."""
    user, group = os.getuid(), os.getgid()
    call("unshare", NAMESPACES)
    call("prctl", PR_SET_DUMPABLE, 1)  # else its files in /proc belong to root
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{user} {user} 1")
    write("/proc/self/gid_map", f"{group} {group} 1")
    with suppress(OSError):  # a container may have a read-only /proc/sys
        # In user namespaces inside this one, the program would have capabilities again, say to mount a huge tmpfs.
        write("/proc/sys/user/max_user_namespaces", "0")
    call("prctl", PR_SET_DUMPABLE, 0)  # the program may not look into its init, which has a copy of our memory


def build_root(source: bytes, limits: Limits) -> None:
    """A root directory that has what Python needs, the program and an empty /tmp."""
    root = Path("/tmp")  # covered by the new root in this namespace only
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in SYSTEM:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            bind(host, root / name)
    if not PREFIX.is_relative_to("/usr"):
        bind(".", root / PREFIX.relative_to("/"))
    place_program(source, root / "program")
    (root / "tmp").mkdir()
    (root / "dev").mkdir()
    (root / "dev/shm").symlink_to("/tmp")
    for name in DEVICES:
        (root / "dev" / name).touch()
    make_read_only(root)
    for name in DEVICES:  # after that, since it has forbidden devices too
        mount(Path("/dev", name), root / "dev" / name, None, MS_BIND)
    mount("tmpfs", root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits.file_bytes},nr_inodes=1000,mode=755")
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def bind(source: Path | str, target: Path) -> None:
    target.mkdir(parents=True)
    mount(source, target, None, MS_BIND | MS_REC)


def mount(source: Path | str | None, target: Path | str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), options.encode())


def make_read_only(root: Path) -> None:
    """All mounts from here on, without programs that change the user and without devices."""
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY_NOSUID_NODEV)  # to set; to clear, propagation and namespace: none
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(root), AT_RECURSIVE, attributes, size)


def drop_capabilities(but: int | None = None) -> None:
    """Give up all capabilities, `but` one where it is given, for the program too, which can gain no new ones."""
    kept = 0 if but is None else 1 << but
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION)
    call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, kept))  # effective, permitted, inheritable
    if but is not None:
        call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, but, 0, 0)


# Without namespaces


def run_without_namespaces(source: bytes, directory: Path, limits: Limits) -> NoReturn:
    program, work = directory / "program", directory / "tmp"
    place_program(source, program)
    work.mkdir()
    directory.chmod(0o755)
    if os.getuid() == 0:
        os.chown(work, NOBODY, NOBODY)
        call("prctl", PR_SET_KEEPCAPS, 1)
        become_nobody()
        # Kept where it takes root to enter the interpreter's directory, as in /root: reading it.
        drop_capabilities(but=None if os.access(PYTHON, os.X_OK) else CAP_DAC_READ_SEARCH)
    end_with_parent()
    become_program(program, work, limits, limits.processes)


# In both cases


def place_program(source: bytes, directory: Path) -> None:
    """The program in a virtual environment without packages: all machines have the standard library, and no more."""
    directory.mkdir()
    (directory / "program.py").write_bytes(source)
    (directory / "python").symlink_to(PYTHON)
    (directory / "pyvenv.cfg").write_text(f"home = {os.path.dirname(PYTHON)}\ninclude-system-site-packages = false\n")


def become_program(directory: Path, home: Path, limits: Limits, processes: int) -> NoReturn:
    os.setsid()  # no terminal
    os.chdir(home)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + 1),  # after the wall clock, should that be stopped
    ):
        resource.setrlimit(what, (most, most))
    python = str(directory / "python")
    os.execve(python, [python, *OPTIONS, str(directory / "program.py")], {**ENVIRONMENT, "HOME": str(home)})


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def call(name: str, *arguments: Any) -> None:
    """A function of the C library; an OSError where it fails."""
    if getattr(libc(), name)(*arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
