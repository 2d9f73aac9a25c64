"""What a disk may hold after a power cut: a trace of a program's system calls, replayed as far as it was synced.

Strict on purpose. Bytes are kept by ``fdatasync`` of their file or by a descriptor with O_DSYNC, names by ``fsync`` of
their directory, and nothing else is. Of the rest any part may be there: any of the writes, each of them whole or cut,
sizes, and names in the order in which they were given.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from children import say
from strace import HERE, environment
from writer import Ledger, is_whole

from tr_mmap.store import Store, StoreCorrupt

CALLS: Final = (
    "openat,open,close,dup,pwrite64,write,pwritev,writev,lseek,ftruncate,fallocate,rename,renameat,renameat2,link,unlink,"
    "unlinkat,rmdir,mkdir,fsync,fdatasync"
)
_SECTOR_NBYTES: Final = 512
_LINE: Final = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)").match
_PATH: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')

Keep = Callable[[], float]  # how much of something that was not synced is there, 0 to 1


def trace(root: Path, durability: str, steps: int) -> list[str]:
    """The lines of a program that changes a store."""
    log = root / "trace"
    program = [sys.executable, str(HERE / "writer.py"), str(root / "disk"), "w", durability, str(steps)]
    subprocess.run(
        ["strace", "-f", "-qq", "-xx", "-s", "1000000", "-o", str(log), "-e", f"trace={CALLS}", *program],
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return log.read_text().splitlines()


@dataclass
class File:
    """A file: what is on the disk, and what was written since."""

    durable: bytes = b""
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def content(self, keep: Keep) -> bytes:
        content = bytearray(self.durable)
        for kind, at, data in self.pending:
            share = keep()
            if kind == "write":
                kept = data if share >= 1 else data[: int(share * len(data)) // _SECTOR_NBYTES * _SECTOR_NBYTES]
                if kept:
                    content.extend(bytes(max(0, at + len(kept) - len(content))))
                    content[at : at + len(kept)] = kept
            elif share >= 1 or share > 0.5:
                del content[at if kind == "size" else len(content) :]
                content.extend(bytes(max(0, at - len(content))))
        return bytes(content)

    def sync(self) -> None:
        self.durable, self.pending = self.content(lambda: 1.0), []


@dataclass
class Folder:
    """A directory: the names that are on the disk, and what became of them since."""

    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[str, str, Any]] = field(default_factory=list)

    def names(self, keep: Keep) -> dict[str, Any]:
        names = dict(self.durable)
        share = keep()
        for kind, name, what in self.pending[: round(share * len(self.pending))]:
            if kind == "link":
                names[name] = what
            elif kind == "unlink":
                names.pop(name, None)
            elif name in names:
                names[what] = names.pop(name)
        return names

    def now(self) -> dict[str, Any]:
        return self.names(lambda: 1.0)

    def sync(self) -> None:
        self.durable, self.pending = self.now(), []


class Disk:
    """A file system below one directory, driven by a trace."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.top = Folder()
        self.fds: dict[int, tuple[Any, bool]] = {}
        self.at: dict[int, int] = {}
        self.said: list[list[Any]] = []
        self._half = b""

    def _find(self, path: str) -> Any:
        node: Any = self.top
        for word in path[len(self.root) :].split("/"):
            if word:
                node = node.now()[word]
        return node

    def _parent(self, path: str) -> tuple[Folder, str] | None:
        if not path.startswith(self.root + "/"):
            return None
        return self._find(os.path.dirname(path)), os.path.basename(path)

    def take(self, line: str) -> bool:
        """One call; whether it has changed something that a power cut may take back."""
        assert "unfinished" not in line
        found = _LINE(line)
        if found is None or int(found[4]) < 0:
            return False
        call, arguments, result = found[2], found[3], int(found[4])
        paths = [
            bytes.fromhex(each.replace("\\x", "")).decode("utf-8", "replace").rstrip("/")
            for each in _PATH.findall(arguments)
        ]
        if call in ("openat", "open"):
            return self._open(paths[0], arguments, result)
        if call in ("mkdir", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link"):
            return self._name(call, paths, arguments)
        fd = int(arguments.partition(",")[0])
        if call == "close":
            self.fds.pop(fd, None)
            return False
        if fd == 1 and call == "write":
            self._half += bytes.fromhex(_PATH.findall(arguments)[0].replace("\\x", ""))
            *lines, self._half = self._half.split(b"\n")
            self.said += [json.loads(each) for each in lines]
            return False
        if fd not in self.fds:
            return False
        node, is_direct = self.fds[fd]
        numbers = [int(each) for each in re.findall(r"(?<=, )\d+(?=[,)]|$)", arguments)]
        if call == "lseek":
            self.at[fd] = result
            return False
        if call in ("fsync", "fdatasync"):
            assert call == "fsync" or isinstance(node, File), "the names of a directory need fsync"
            node.sync()
        elif call == "ftruncate":
            node.pending.append(("size", numbers[-1], b""))
        elif call == "fallocate":
            node.pending.append(("grow", numbers[-2] + numbers[-1], b""))
        else:
            data = b"".join(bytes.fromhex(each.replace("\\x", "")) for each in _PATH.findall(arguments))
            assert len(data) == result, line[:200]
            offset = numbers[-1] if call.startswith("pwrite") else self.at.get(fd, 0)
            if call in ("write", "writev"):
                self.at[fd] = offset + result
            if is_direct:
                content = bytearray(node.durable)
                content.extend(bytes(max(0, offset + result - len(content))))
                content[offset : offset + result] = data
                node.durable = bytes(content)
            else:
                node.pending.append(("write", offset, data))
        return True

    def _open(self, path: str, arguments: str, fd: int) -> bool:
        self.fds.pop(fd, None)
        self.at[fd] = 0
        if path == self.root:
            self.fds[fd] = self.top, False
            return False
        place = self._parent(path)
        if place is None:
            return False
        parent, name = place
        is_new = name not in parent.now()
        if is_new:
            parent.pending.append(("link", name, File()))
        self.fds[fd] = parent.now()[name], "O_DSYNC" in arguments or "O_SYNC" in arguments
        return is_new

    def _name(self, call: str, paths: list[str], arguments: str) -> bool:
        if len(paths) == 1 and not paths[0].startswith("/"):  # of rmtree, below an open directory
            fd = int(arguments.partition(",")[0])
            if fd not in self.fds:
                return False
            self.fds[fd][0].pending.append(("unlink", paths[0], None))
            return True
        place = self._parent(paths[0])
        if place is None:
            return False
        parent, name = place
        if call == "mkdir":
            parent.pending.append(("link", name, Folder()))
        elif call in ("rmdir", "unlink", "unlinkat"):
            parent.pending.append(("unlink", name, None))
        else:
            assert call != "link"
            assert os.path.dirname(paths[0]) == os.path.dirname(paths[1])
            parent.pending.append(("rename", name, os.path.basename(paths[1])))
        return True

    def write(self, target: Path, keep: Keep) -> None:
        """What there may be after a power cut, as files."""

        def put(folder: Folder, path: Path) -> None:
            path.mkdir(mode=0o700)
            for name, node in folder.names(keep).items():
                if isinstance(node, Folder):
                    put(node, path / name)
                elif name != "lock.mdb":  # LMDB makes it anew, whatever is in it
                    (path / name).write_bytes(node.content(keep))

        put(self.top, target)


def keepers(seed: int) -> Iterator[tuple[str, Keep]]:
    """Nothing that was not synced is there; all of it; any part of it."""
    chance = random.Random(seed)
    yield "nothing", lambda: 0.0
    yield "all", lambda: 1.0
    yield "any part", lambda: chance.choice((0.0, 1.0, chance.random()))


def look(root: str, said: list[list[Any]], is_synced: bool) -> None:
    """In a child: open the store that a power cut has left; what was acknowledged is there, bit for bit."""
    patch = pytest.MonkeyPatch()
    patch.setattr("tr_mmap.processes.identity._boot_id", lambda: "after the power cut")
    ledger = Ledger()
    ledger.take(said)
    try:
        with Store("shared", root, indexed=("version",)) as store:
            assert store.check() == []
            if is_synced:
                ledger.check(store)
            found = store.get_all()
            for record in found:
                assert is_whole(record)
                versions = [ledger.known.get(record.id), ledger.open.get(record.id)]
                assert record.version <= max((each for each in versions if each is not None), default=9**9)
            store.search(found[0].vector, limit=3) if found else None
            store.add("later")
            assert store.check() == []
            say("sound", len(found), len(ledger.known))
    except StoreCorrupt:
        assert not is_synced
        say("refused")
