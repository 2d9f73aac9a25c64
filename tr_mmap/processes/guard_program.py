"""The guard's program: waits for the controller's death, then ends and removes what is left. Standard library only.

Arguments: the controller's pid, its start ticks, the beginning of its workers' marks, the folder of sessions, the name
of the session's directory in it, and how many of the directories above are to be removed if empty.

:mod:`.guard` starts it as ``python -I -S``, in a session of processes of its own, so that Ctrl-C and a kill of the
controller's group do not reach it. It holds no descriptor of the controller's. The kernel tells it of the death of the
process (pidfd), so neither a thread's end nor a forked child of the controller counts. Until then it imports next to
nothing. Never touches a process without the mark or its session, nor another controller's directory.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what ``signal`` is made of; that takes ten times as long to import
import os
import select
import sys
import time

_GRACE_S = 0.4  # between SIGTERM and SIGKILL
_CLEANING_S = 1.0  # for a resource tracker of multiprocessing, which cleans up when all that use it are dead
_QUIET_S = 0.1  # nothing of the worker must be found for so long: a process in the middle of execve(2) has no mark
_MOST_S = 5.0
_LOOK_S = 0.05  # how often to look at what nobody tells
TYPE_CHECKING = False  # typing's own is slow to import
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Process: TypeAlias = tuple[int, int]  # pid and start ticks


def main(pid: str, ticks: str, mark: str, folder: str, name: str, levels: str) -> None:
    # Whoever sends these to all processes means the controller. The guard must outlive it.
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_IGN)
    controller = (int(pid), int(ticks))
    _wait_for_death(controller[0])
    directory = os.path.join(folder, name)
    ended = _end_workers(mark.encode(), directory, controller)
    _remove_session(controller, folder, name)
    for each in _names(folder):
        if any(each.startswith(f"{kind}{p}-{t}-") for kind in (".new-", ".gone-") for p, t in (controller, *ended)):
            _remove_tree(os.path.join(folder, each))
    try:
        for path in (folder, os.path.dirname(folder))[: int(levels)]:
            os.rmdir(path)
    except OSError:  # not empty
        pass


def _wait_for_death(controller: int) -> None:
    """Return when the parent is not the controller any more; another process that gets its pid is not our parent."""
    poll = None
    try:
        fd = os.pidfd_open(controller)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
    except (AttributeError, OSError):
        pass
    while os.getppid() == controller:
        if poll is None:
            time.sleep(_LOOK_S)
        else:
            poll.poll()


def _end_workers(mark: bytes, directory: str, controller: Process) -> set[Process]:
    """End the worker and what it started. Returns the processes that were found."""
    manifest = _manifest(directory, controller) or {}  # none if the controller had not got the name yet
    worker = manifest.get("worker") or {}
    leader = (worker.get("pid", 0), worker.get("start_ticks", 0))
    began = last_found = last_used = time.monotonic()
    found: set[Process] = set()
    seen: set[Process] = set()
    while True:
        found = _kin(found, mark, leader)
        now = time.monotonic()
        if found or (manifest and _is_locked(os.path.join(directory, "worker.lock"))):
            last_found = now
        if now - last_found >= _QUIET_S or now - began >= _MOST_S:
            return seen
        trackers = {process for process in found if _is_tracker(process[0])}
        if found != trackers:
            last_used = now
        for process in found:
            if process in trackers and now - last_used < _CLEANING_S:
                continue
            if now - began >= _GRACE_S:
                _send(process, _signal.SIGKILL)
            elif process not in seen:
                _send(process, _signal.SIGTERM)
        seen |= found
        time.sleep(_LOOK_S)


def _kin(known: set[Process], mark: bytes, leader: Process) -> set[Process]:
    """The worker, the members of its session of processes, those of ``known`` that live, and the descendants of all.

    A worker that was just started is not in the manifest yet; then the leader's pid is 0, and only the mark shows it.
    When the worker has ended, the mark tells which members of a session of that number were its own.
    """
    stats = {pid: seen for pid in map(int, filter(str.isdigit, _names("/proc"))) if (seen := _stat(pid)) is not None}
    kin = {pid for pid, ticks in known if pid in stats and stats[pid][0] == ticks}
    is_led = leader[0] in stats and stats[leader[0]][0] == leader[1]
    for pid, (_, _, session) in stats.items():
        if pid != os.getpid() and leader[0] in (0, session) and (is_led or _has_mark(pid, mark)):
            kin.add(pid)
    while children := {pid for pid, (_, parent, _) in stats.items() if parent in kin} - kin:
        kin |= children
    return {(pid, stats[pid][0]) for pid in kin}


def _stat(pid: int) -> tuple[int, int, int] | None:
    """Start ticks, parent and session of a living process, see proc(5); None if it has ended."""
    text = _read(f"/proc/{pid}/stat")
    fields = text[text.rfind(b")") + 1 :].split()
    if not fields or (fields[0] in (b"Z", b"X", b"x") and int(fields[17]) <= 1):
        return None
    return int(fields[19]), int(fields[1]), int(fields[3])


def _has_mark(pid: int, mark: bytes) -> bool:
    return any(each.startswith(b"TR_MMAP_WORKER=" + mark) for each in _read(f"/proc/{pid}/environ").split(b"\0"))


def _is_tracker(pid: int) -> bool:
    return b"resource_tracker" in _read(f"/proc/{pid}/cmdline")


def _send(process: Process, number: int) -> None:
    pid, ticks = process
    fd = -1
    try:
        if hasattr(os, "pidfd_open"):
            fd = os.pidfd_open(pid)
        seen = _stat(pid)
        if seen is None or seen[0] != ticks:  # the number is another process's by now
            return
        if fd >= 0:
            _signal.pidfd_send_signal(fd, number)
        else:
            os.kill(pid, number)
    except OSError:  # it has ended, or is not ours to end
        pass
    finally:
        if fd >= 0:
            os.close(fd)


def _is_locked(path: str) -> bool:
    """Whether the worker, or a child that is to become it, holds the lock."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _remove_session(controller: Process, folder: str, name: str) -> None:
    """Remove the directory if it is still the dead controller's; as a sweep does, see ``sessions/reclaim.py``."""
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    gone = ""
    try:
        _lock(fd)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            return
        manifest = _manifest(path, controller)
        if manifest is None:
            return
        _remove_log(manifest.get("log") or "")
        own = _stat(os.getpid()) or (0, 0, 0)
        away = os.path.join(folder, f".gone-{os.getpid()}-{own[0]}-{os.urandom(8).hex()}")
        os.rename(path, away)
        gone = away
    except OSError:
        pass
    finally:
        os.close(fd)
        if gone:
            _remove_tree(gone)


def _lock(fd: int) -> None:
    """Keep sweeps away; they hold this lock for a moment each."""
    import fcntl

    deadline = time.monotonic() + 1
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def _manifest(directory: str, controller: Process) -> dict[str, Any] | None:
    """The session's manifest; None if there is none, or if it is another controller's."""
    import json

    try:
        found = json.loads(_read(os.path.join(directory, "session.json")))
        owner = found["controller"]
        return found if (owner["pid"], owner["start_ticks"]) == controller else None
    except (ValueError, TypeError, KeyError):
        return None


def _remove_log(path: str) -> None:
    import re
    import stat

    if os.path.isabs(path) and re.fullmatch("tr_mmap-log-[0-9a-f]{32}", os.path.basename(path)):
        try:
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid():
                os.unlink(path)
        except OSError:
            pass  # the worker had not come to it, or it is gone


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        data = b""
        while len(data) < 1 << 22 and (more := os.read(fd, 1 << 16)):
            data += more
        return data
    except OSError:
        return b""
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(*sys.argv[1:])
