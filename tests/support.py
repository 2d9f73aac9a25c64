"""What tests of sessions share: a place that must be empty again, a gate that holds a worker, what the kernel knows.

Never imports the code under test.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKERS = ROOT / "tests" / "workers"
TOOLS = WORKERS / "tools.py"
TORCH_TOOLS = WORKERS / "torch_tools.py"
CONTROLLER = WORKERS / "controller.py"
FOREVER_MS = 60_000.0  # longer than any test waits that works
BOUND_S = 60.0  # for what happens at once; only a failure waits for it
SHM = Path("/dev/shm")

_started: set[int] = {os.getpid()}  # processes whose semaphores are ours
_older: dict[Path, _Others] = {}  # by workspace
_shared: set[Path] = set()  # workspaces of sessions that many tests share


# -- marks, and what is hardly worth a name --------------------------------------------------------------------------

FRAMEWORKS = pytest.mark.parametrize("framework", ["numpy", "torch"])
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def never() -> bool:
    return False


def script(directory: Path, text: str) -> str:
    """A worker's script of that text."""
    path = directory / "worker.py"
    path.write_text(text)
    return str(path)


def worker_of(session: Any) -> int:
    """The number of its process."""
    return int(session.fetch_response("pid"))


def wait_until(is_so: Callable[[], object], bound_s: float = BOUND_S) -> None:
    """Look again and again until something is so; fail after that time."""
    deadline_s = time.monotonic() + bound_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came to be so"
        time.sleep(0.001)


def at_rest(path: Path, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The JSON object of a file that another process writes, as soon as it is the one that is waited for."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        with suppress(ValueError, FileNotFoundError):  # read in the middle of a write
            found[:] = [json.loads(path.read_text())]
        return bool(found and is_so(found[0]))

    wait_until(look)
    return found[0]


# -- nothing is left -------------------------------------------------------------------------------------------------


class _Others:
    """The processes that were there before a workspace had its name, so that none of them was started with it.

    There may be hundreds, and to read the environment of each takes longer than most tests.
    """

    def __init__(self) -> None:
        self._forks = _count_forks()  # first: what starts meanwhile is counted, whether or not it is among the numbers
        self._pids = frozenset(psutil.pids())

    def are_known(self) -> frozenset[int]:
        """Their numbers; none, as soon as one of these may be another process's by now."""
        # The kernel gives numbers in turn, so that none comes again before all others were given.
        return self._pids if _count_forks() - self._forks < _FEW_FORKS else frozenset()


_FEW_FORKS = 10_000  # of the numbers that any kernel has: 32,768


def _count_forks() -> int:
    """Processes and threads that the kernel has started, ever."""
    (line,) = (each for each in Path("/proc/stat").read_text().splitlines() if each.startswith("processes "))
    return int(line.split()[1])


@contextmanager
def empty_place(*, is_shared: bool = False) -> Iterator[Path]:
    """A workspace for TR_WORKSPACE; fails if a file, a semaphore or a process is left in it.

    Args:
        is_shared: by tests that know nothing of each other, so that any of them may run while it is there.
    """
    parent = SHM if SHM.is_dir() else Path(tempfile.gettempdir())
    path = parent / f"tr_test_{os.getpid()}_{secrets.token_hex(4)}"
    _older[path] = _Others()
    if is_shared:
        _shared.add(path)
    path.mkdir(mode=0o700)
    left: list[str] = []
    try:
        yield path
        left = leftovers(path)
        for process in processes_of(path) if left else ():
            process.kill()
            process.wait(10)
    finally:
        del _older[path]
        _shared.discard(path)
        shutil.rmtree(path, ignore_errors=True)
    if left:
        pytest.fail("left behind: " + "; ".join(left))


def leftovers(workspace: Path) -> list[str]:
    """Every process, file and semaphore of ours that is there."""
    left = []
    for process in processes_of(workspace):
        try:
            left.append(f"process {process.pid} {process.cmdline()}")
        except psutil.NoSuchProcess:  # ended since, and perhaps not reaped yet: a zombie is nothing left
            continue
    for folder, folders, files in os.walk(workspace):  # which goes on where something goes away under its eyes
        left += [os.path.join(folder, each) for each in folders + files]
    left += semaphores()
    return left


def semaphores() -> list[str]:
    """Those of the processes that these tests have started."""
    return semaphores_of(_started)


def semaphores_of(pids: Container[int]) -> list[str]:
    """Those of some processes; without older ones, which another program has left and whose numbers come again."""
    return [
        name
        for name in _all_semaphores() - _older_semaphores
        if (match := re.match(r"sem\.tr_(\d+)_", name)) is not None and int(match[1]) in pids
    ]


def _all_semaphores() -> set[str]:
    return {name for name in os.listdir(SHM) if name.startswith("sem.")} if SHM.is_dir() else set()


_older_semaphores = frozenset(_all_semaphores())


def processes_of(workspace: Path) -> list[psutil.Process]:
    """Living processes that were started with this workspace in their environment."""
    wanted = f"TR_WORKSPACE={workspace}".encode()
    found = []
    older = _older[workspace].are_known() if workspace in _older else frozenset()
    for pid in psutil.pids():
        if pid == os.getpid() or pid in older:
            continue
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environ.split(b"\0") and not _was_killed(pid):
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    return found


def _was_killed(pid: int) -> bool:
    """Whether SIGKILL waits for a process: on a busy machine it may be a while until that runs, and ends."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return True
    pending = (int(mask, 16) for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.MULTILINE))
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)


def has_ended(pid: int, within_s: float = BOUND_S) -> bool:
    """Wait for the end of any process."""
    try:
        psutil.Process(pid).wait(within_s)
    except psutil.NoSuchProcess:
        return True
    except FileNotFoundError:  # psutil does not know that Linux says so of a process that has just ended
        return has_ended(pid, within_s)
    except psutil.TimeoutExpired:
        return False
    return True


# -- other processes -------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is in here: whoever comes second finds what the first one has made."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_of_this_run: list[Path] = []  # the folder that all processes of a run of tests share


def share_with_this_run(factory: pytest.TempPathFactory) -> None:
    """Say where this run has its temporary files."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then it is that of one of several processes
        folder = folder.parent
    _of_this_run[:] = [folder]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process to ask makes, and that all processes of a run of tests share."""
    (shared,) = _of_this_run
    folder = shared / name
    done = shared / f"{name}.made"
    with locked(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


_Found = TypeVar("_Found")


def once_a_run(function: Callable[..., _Found]) -> Callable[..., _Found]:
    """Let the first process that calls a function keep its result for all processes of a run of tests.

    Its arguments are told apart by what ``str`` makes of them.
    """

    @functools.cache
    def found(*arguments: Any) -> _Found:
        if not _of_this_run:  # in a program that a test has started
            return function(*arguments)
        told = "\0".join([function.__module__, function.__qualname__, *map(str, arguments)])

        def make(folder: Path) -> None:
            folder.mkdir()
            (folder / "result").write_bytes(pickle.dumps(function(*arguments)))

        name = f"{function.__qualname__}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        result: _Found = pickle.loads((made_once(name, make) / "result").read_bytes())
        return result

    return functools.wraps(function)(found)


def environment() -> dict[str, str]:
    """Ours, in which Python finds the package also where it is not installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(str(script), *arguments)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


# -- a controller in a process of its own ----------------------------------------------------------------------------


def json_line(process: subprocess.Popen[str], who: str) -> dict[str, Any]:
    """The next line of JSON that a process prints; the test fails if ``who`` has ended instead."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        pytest.fail(f"{who} has ended: {process.communicate()[1]}")
    found: dict[str, Any] = json.loads(text)
    return found


class Controller:
    """workers/controller.py, running. Prints one line of JSON when it has come to the point that a test is after."""

    def __init__(self, mode: str, *arguments: object, session_id: str = "default") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CONTROLLER), session_id, mode, *map(str, arguments)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        _started.add(self.pid)

    def line(self) -> dict[str, Any]:
        """The next line that it prints."""
        return json_line(self.process, "the controller")

    def end(self, signal_number: int | None = None, within_s: float = 20.0) -> str:
        """Send a signal, or close its stdin, which it takes for the wish to go on; wait. Returns its stderr."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        return self.process.communicate(timeout=within_s)[1]

    @property
    def returncode(self) -> int | None:
        return self.process.returncode


@contextmanager
def controller(mode: str, *arguments: object, session_id: str = "default") -> Iterator[Controller]:
    running = Controller(mode, *arguments, session_id=session_id)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGKILL)
        running.process.communicate()


# -- holding a worker in the middle of a request ---------------------------------------------------------------------


class Gate:
    """A FIFO. ``fetch_response(gate.message)`` does not end before ``let_go``."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"gate-{secrets.token_hex(4)}"
        os.mkfifo(self.path)
        self._fd = -1

    @property
    def message(self) -> str:
        return f"gate {self.path}"

    def wait_for_worker(self) -> None:
        """Wait until the handler is at the gate."""
        self._fd = os.open(self.path, os.O_WRONLY)

    def let_go(self, answer: str) -> None:
        """End the handler, with that answer."""
        if self._fd < 0:
            self.wait_for_worker()
        os.write(self._fd, answer.encode())
        self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# -- what the kernel knows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/self/maps."""

    start: int
    end: int
    permissions: str
    inode: int
    path: str


def mapping_of(address: int, nbytes: int) -> Mapping:
    """The mapping in which these bytes of this process lie, all of them.

    A part for which the kernel was given advice, on huge pages say, has a line of its own: such lines are one mapping.
    """
    found: Mapping | None = None
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _offset, _device, inode, *path = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in span.split("-"))
        next_one = Mapping(start, end, permissions, int(inode), path[0] if path else "")
        if found is not None and replace(found, start=found.end, end=end) == next_one:
            found = replace(found, end=end)
        elif start <= address < end:
            found = next_one
    assert found is not None, f"{address:#x} is not mapped"
    assert address + nbytes <= found.end
    return found


def mapping_of_tensor(tensor: Any) -> Mapping:
    if hasattr(tensor, "data_ptr"):
        return mapping_of(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return mapping_of(tensor.__array_interface__["data"][0], tensor.nbytes)


def anonymous_nbytes() -> int:
    """Anonymous memory of this process, private copies of file pages included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def grandchildren() -> list[psutil.Process]:
    """The processes of this process's children that live."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            found += child.children()
    return found


def open_files() -> Counter[str]:
    """What this process's descriptors are open on, and how many of them; but for sessions that many tests share.

    Their threads open files when these have been idle for a while.
    """
    files: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of that listing itself
            file = os.readlink(f"/proc/self/fd/{fd}")
            if _shared.isdisjoint(Path(file).parents):
                files[file] += 1
    return files


def check_open_files(before: Counter[str], plan: object = None) -> None:
    """None is left open. A thread that has done its part may close its own a moment later.

    There may be fewer: a mirror that finds no descriptor closes its file, and opens it at its next look.
    """
    with suppress(AssertionError):
        wait_until(lambda: not open_files() - before)
        return  # a thread that opens one now and then may have it open again
    assert not open_files() - before, plan
