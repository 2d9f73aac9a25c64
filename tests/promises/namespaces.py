"""Programs in namespaces of their own, as containers have them. Needs root; a test skips by name where it may not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import BOUND_S, environment


def require_unshare(*options: str) -> None:
    """Skip the test where no namespaces can be made."""
    found = shutil.which("unshare")
    if os.geteuid() != 0 or found is None:
        pytest.skip("NOT TESTED: containers (needs root and unshare)")
    if subprocess.run([found, *options, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"NOT TESTED: containers (unshare {' '.join(options)} is forbidden here)")


def run_with_mounts(mounts: str, program: Path, *arguments: str, **variables: str) -> str:
    """Run a Python program after shell commands that mount things, seen by nobody else. Returns what it prints."""
    require_unshare("--mount")
    env = {**environment(), **variables}
    if not variables.get("TR_WORKSPACE"):
        env.pop("TR_WORKSPACE", None)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, str(program), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Container:
    """A program that runs as process 1 of a namespace of pids of its own; its workers are there too."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, str(program), *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints; "" at its end."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def kill(self) -> None:
        """Kill all its processes, as the end of a container does."""
        self.popen.kill()  # whose child, process 1, goes with it, and the kernel kills the others with that
        self.popen.wait()  # before its input is closed, at which the program would end by itself, and tidy up
        self.popen.communicate()


@contextmanager
def container(program: Path, *arguments: str) -> Iterator[Container]:
    require_unshare("--pid", "--fork", "--mount-proc")
    running = Container(program, *arguments)
    try:
        yield running
    finally:
        running.kill()
