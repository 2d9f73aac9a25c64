"""What a child inherits from the thread that starts it, beside environment and descriptors. Changes nothing."""

from __future__ import annotations

import os
import re
import signal
from typing import Any, Final

from ..base import system

__all__ = ["surroundings"]

_MAX_STATUS_NBYTES: Final = 1 << 16
_LINES: Final = re.compile(
    rb"^(?:Umask|Uid|Gid|Groups|NoNewPrivs|Seccomp\w*|Cap\w+|Cpus_allowed|Mems_allowed|THP_enabled):.*$", re.MULTILINE
)
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_FILES: Final = ("cgroup", "oom_score_adj")  # of /proc/thread-self


def surroundings(cwd: str | None) -> tuple[Any, ...]:
    """Two children whose surroundings are equal cannot tell by them when each of them was started.

    Off Linux, this looks at less. Nowhere does it look at what only the kernel's own tools show: the policies of memory
    and of I/O, timer slack, the personality.

    Args:
        cwd: the child's current directory; None for this process's.

    Raises:
        OSError: there is no such directory.
    """
    folder = system.status(os.path.join(cwd or "", "."))
    found: list[Any] = [folder.st_dev, folder.st_ino]
    found.append(hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
    if os.name == "posix":
        import resource  # POSIX only

        names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
        found += [resource.getrlimit(getattr(resource, name)) for name in names]
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        root = system.status("/")
        found += [root.st_dev, root.st_ino]
    if hasattr(os, "sched_getscheduler"):
        found += [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority]
    found.append(_LINES.findall(_read("status")))
    found += [_read(name) for name in _FILES]
    found += [_link(f"ns/{name}") for name in _NAMESPACES]
    return tuple(found)


def _read(name: str) -> bytes:
    try:
        return system.peek(f"/proc/thread-self/{name}", _MAX_STATUS_NBYTES)
    except OSError:
        return b""


def _link(name: str) -> str:
    try:
        return system.link_target(f"/proc/thread-self/{name}")
    except OSError:
        return ""
