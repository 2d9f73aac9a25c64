"""Processes that are forked from one that has imported everything, so that thousands of them can live and die.

``Mother`` is the test's side; run as a program, this is the mother. A child runs one function of a module beside this
one; the lines of JSON that it says come back in their order, also from a child that was killed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent


def say(*words: Any) -> None:
    """A line to the test, in one write: nothing of it waits in a buffer when the process is killed."""
    os.write(1, json.dumps(words).encode() + b"\n")


class Mother:
    """Forks children, one at a time."""

    def __init__(self) -> None:
        self._child = 0  # that runs
        root = HERE.parents[1]
        path = os.pathsep.join(map(str, (root, root / "tests", HERE)))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "children.py")],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, function: str, *arguments: Any) -> int:
        """Have a child do ``"module.function"``; its pid. Then call :meth:`end`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        (word, self._child) = self.hear()
        assert word == "born"
        return int(self._child)

    def hear(self) -> list[Any]:
        """The next line, of the child or of its mother."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the mother has died"
        found: list[Any] = json.loads(line)
        return found

    def end(self) -> tuple[list[list[Any]], int]:
        """What the child has said, and how it ended: its exit status, or minus a signal's number."""
        said = []
        while (line := self.hear())[0] != "ended":
            said.append(line)
        self._child = 0
        return said, int(line[1])

    def run(self, function: str, *arguments: Any) -> tuple[list[list[Any]], int]:
        self.start(function, *arguments)
        return self.end()

    def __enter__(self) -> Mother:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._child:  # the test has failed
            os.kill(self._child, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        module, _, function = name.rpartition(".")
        action = getattr(importlib.import_module(module), function)
        told, teller = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(teller)
                os.read(told, 1)  # until the mother has said that it is born
                os.close(told)
                action(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        say("born", pid)
        os.close(told)
        os.close(teller)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    _main()
