"""What contained processes see of the host's file system: what Python needs, and what the user grants."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from typing import Final

from .interface import Allow
from .namespaces import TEMPORARY, Grant

__all__ = ["grants_of"]

_SYSTEM_PATHS: Final = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
)
_NETWORK_PATHS: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs")


def grants_of(allow: Allow, packages: Sequence[str] = ()) -> list[Grant]:
    """The paths of the host that the algorithms see.

    Args:
        allow: what the user grants.
        packages: directories of packages that the algorithms can import.

    Raises:
        ValueError: a mount would hide what every algorithm needs, or the private directory.
    """
    system = [*_SYSTEM_PATHS, *_python_paths()]
    for mount in allow.mounts:
        for other in (*system, TEMPORARY):
            if mount.path != mount.host_path and (
                f"{mount.path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{mount.path}/")
            ):
                raise ValueError(
                    f"nothing can be mounted at {mount.path}, because {other} is there; choose another path"
                )
    read = [*system, *packages, *allow.read, *(_NETWORK_PATHS if allow.net else ())]
    return [
        *[Grant(each, each, True) for each in read],
        *[Grant(each.host_path, each.path, each.readonly) for each in allow.mounts],
    ]


def _python_paths() -> list[str]:
    """Where this interpreter finds its own modules and installed ones; not the program's own directory."""
    paths = {sysconfig.get_paths()[each] for each in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [*paths, os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.path.dirname(__file__))]
