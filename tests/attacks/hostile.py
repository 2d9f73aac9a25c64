"""What an attacker puts in the place of a session's files and directories."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534
IS_ROOT = os.geteuid() == 0

Spoil = Callable[[Path], None]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def symlink(path: Path) -> None:
    """Leads to the very thing that was there."""
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    path.symlink_to(kept)


def dangling_symlink(path: Path) -> None:
    _remove(path)
    path.symlink_to("/nowhere")


def fifo(path: Path) -> None:
    _remove(path)
    os.mkfifo(path, 0o600)


def unix_socket(path: Path) -> None:
    _remove(path)
    here = os.open(path.parent, os.O_RDONLY)  # a socket's path has room for 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)
    path.chmod(0o600)


def device(path: Path) -> None:
    """/dev/zero under another name: opens, reads for ever."""
    _remove(path)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def directory(path: Path) -> None:
    _remove(path)
    path.mkdir(0o700)


def file(path: Path) -> None:
    _remove(path)
    path.write_bytes(b"")
    path.chmod(0o600)


def foreign_owned(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def group_writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def world_writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def sparse(path: Path) -> None:
    """As long as before, with nothing behind it."""
    nbytes = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, nbytes)


_NEEDS_ROOT = [device, foreign_owned] if IS_ROOT else []
INSTEAD_OF_A_FILE: list[Spoil] = [
    symlink, dangling_symlink, fifo, unix_socket, directory, group_writable, world_writable, *_NEEDS_ROOT,
]  # fmt: skip
INSTEAD_OF_A_DIRECTORY: list[Spoil] = [
    symlink, dangling_symlink, fifo, file, group_writable, world_writable, *_NEEDS_ROOT,
]  # fmt: skip
IN_THE_WAY: list[Spoil] = [dangling_symlink, fifo, unix_socket, directory, file, *_NEEDS_ROOT[:1]]
"""What may lie there before we come."""
