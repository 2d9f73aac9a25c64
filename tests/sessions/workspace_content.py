"""What the tests of workspaces leave in one and look for, and what others put in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace


def mine(session_id: str, **fields: Any) -> Manifest:
    return Manifest(session_id=session_id, **{"controller": Identity.current(), **fields})


def leave(ws: Workspace, session_id: str, controller: Identity, **fields: Any) -> Path:
    """A session as its owner, who may be dead, has left it."""
    path = Path(ws.claim(session_id, mine(session_id, controller=controller, **fields)))
    (path / "a.tsr").write_bytes(b"TSR!")
    return path


def everything(root: Path | str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*"))


GARBLED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"{}",
    b'{"x": ' + b"[" * 60_000,
    b'{"session_id": "s", "controller": {"pid": 0, "start_ticks": 1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": {"pid": 1, "start_ticks": -1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": {"pid": 4294967297, "start_ticks": 1, "boot_id": ""}}',
    b'{"session_id": "s", "controller": null}',
    msgspec.json.encode(Manifest(session_id="s", controller=Identity.current())).ljust(
        manifests.MAX_MANIFEST_NBYTES + 1
    ),
]


def hostile_symlink(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def hostile_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def hostile_file(path: Path) -> None:
    path.write_text("")


def hostile_world(path: Path) -> None:
    path.mkdir()
    path.chmod(0o702)


def hostile_group(path: Path) -> None:
    path.mkdir()
    path.chmod(0o720)


HOSTILE = [hostile_symlink, hostile_dangling, hostile_file, hostile_world, hostile_group]
