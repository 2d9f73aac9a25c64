"""tr_mmap from C++: a C++ controller with a Python worker, loaned on both sides. Compiled when it is needed."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tr_mmap.cpp import include_dir

from .base import JOIN_S, TimedPeer

__all__ = ["CppClient", "CppLoaned", "build", "compiler"]

_SOURCE: Final = Path(__file__).with_name("cpp_client.cpp")
_WORKER: Final = Path(__file__).with_name("ours_worker.py")
_INCLUDE: Final = include_dir()
_BUILD: Final = Path(__file__).resolve().parents[3] / "build" / "bench"
_FLAGS: Final = ("-std=c++17", "-O2", *shlex.split(os.environ.get("CXXFLAGS", "")))  # of two -O the last one counts


def compiler() -> str | None:
    """The compiler; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build() -> Path:
    """The program, compiled unless it has been before, from the same sources.

    Raises:
        RuntimeError: it does not compile.
    """
    state = hashlib.sha256(" ".join([str(compiler()), *_FLAGS]).encode())
    for path in [_SOURCE, *sorted(_INCLUDE.rglob("*.h*"))]:
        state.update(path.read_bytes())
    program = _BUILD / f"cpp_client-{state.hexdigest()[:16]}"
    if not program.exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        for older in _BUILD.glob("cpp_client-*"):
            older.unlink(missing_ok=True)
        made = program.with_name(f"{program.name}.{os.getpid()}")  # another run may be at the same
        command = [str(compiler()), *_FLAGS, f"-I{_INCLUDE}", str(_SOURCE), "-o", str(made), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        made.rename(program)
    return program


class CppClient:
    """The program, running.

    Args:
        worker: of its session.
        session_id: of that.
    """

    def __init__(self, worker: str, session_id: str) -> None:
        self._process = subprocess.Popen(
            [str(build()), worker, session_id],
            env={**os.environ, "TR_PYTHON": sys.executable},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def ask(self, line: str) -> str:
        """What it answers to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        try:
            self._process.communicate(timeout=2 * JOIN_S)  # the end of its input is the end of its session
        except subprocess.TimeoutExpired:
            self._process.kill()  # its worker ends with it
            self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the C++ program has ended: {self._process.communicate()[1].strip()}")
        return line


class CppLoaned(TimedPeer):
    key = "cpp-loaned"
    label = "tr_mmap from C++, loaned"
    is_loaned = True
    payloads = 3
    note = "a C++ program is the client, and takes its times itself; the worker is the one of tr_mmap, loaned"

    def __init__(self) -> None:
        self._client: CppClient | None = None

    def unavailable(self) -> str | None:
        return None if compiler() else "there is no g++, and CXX names no other compiler"

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002 - segments are made as they are needed
        self._client = CppClient(str(_WORKER), f"bench-{os.getpid()}-{self.key}")

    def check(self, count: int) -> int:
        return int(self._ask(f"check {count}"))

    def measure(self, count: int, most: int, quota_s: float) -> list[int]:
        return [int(each) for each in self._ask(f"measure {count} {most} {quota_s}").split()]

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, line: str) -> str:
        assert self._client is not None
        return self._client.ask(line)
