"""The Docker recipe, without Docker: its program in a namespace with a small /dev/shm, and its Dockerfile read."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import EXAMPLES, ROOT
from support import environment

RECIPE = EXAMPLES / "docker"
# Run in namespaces of mounts and of processes, as a container is. What is left in its /dev/shm is shown last.
BOX = """
set -e
mount -t tmpfs -o size="$1",mode=1777 shm /dev/shm
mount -t tmpfs -o size=1g,mode=1777 tensors "$2"
shift 2
status=0
"$@" || status=$?
ls -A /dev/shm
exit "$status"
"""


def run_boxed(shm: str, tmp_path: Path, **variables: str) -> tuple[int, str]:
    """The program's exit code and output, with a /dev/shm of that size, and a tmpfs of 1 GiB at tmp_path/tensors."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("NOT TESTED: a container's /dev/shm, for there is no unshare(1)")
    namespaces = [unshare, "--mount", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: a container's /dev/shm, for this user may make no namespaces")
    (tmp_path / "tensors").mkdir()
    kept = {name: value for name, value in environment().items() if name != "TR_WORKSPACE"}
    ended = subprocess.run(
        [*namespaces, "sh", "-c", BOX, "sh", shm, str(tmp_path / "tensors"), sys.executable, str(RECIPE / "main.py")],
        env={**kept, "TMPDIR": str(tmp_path), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return ended.returncode, ended.stdout


def test_the_dev_shm_of_a_container_is_too_small_and_that_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    code, printed = run_boxed("64m", tmp_path)
    first, second, third = printed.splitlines()  # and no line of what is left
    assert code == 1
    assert first == "room for tensors: 64 MiB"
    assert re.fullmatch(r"no room for result \d+: 8388608 bytes needed, \d+ free", second)
    assert third == "start the container with --shm-size=1g, or keep fewer results"


def test_with_shm_size_there_is_room(tmp_path: Path) -> None:
    assert run_boxed("1g", tmp_path) == (0, "room for tensors: 1024 MiB\nall right: True\n")


def test_with_another_tmpfs_there_is_room(tmp_path: Path) -> None:
    place = str(tmp_path / "tensors")
    assert run_boxed("64m", tmp_path, TR_WORKSPACE=place) == (0, "room for tensors: 1024 MiB\nall right: True\n")


def test_the_dockerfile_copies_what_there_is_and_runs_as_a_user() -> None:
    text = re.sub(r"\\\n", " ", (RECIPE / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {step for step, _ in steps} <= {"FROM", "RUN", "COPY", "USER", "ENV", "CMD"}
    images = [rest for step, rest in steps if step == "FROM"]
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+( AS build)?", each) for each in images)
    assert len({each.split()[0] for each in images}) == 1, "an environment fits one interpreter"
    for source in [rest.split()[-2] for step, rest in steps if step == "COPY" and "--from" not in rest]:
        assert (ROOT / source).exists()
    assert int(dict(steps)["USER"]) > 0
    interpreter, program = json.loads(dict(steps)["CMD"])
    made = [shlex.split(rest) for step, rest in steps if step == "RUN"]
    assert any("venv" in each and str(Path(interpreter).parents[1]) in each for each in made)
    assert any(step == "COPY" and rest.split()[-1] == program for step, rest in steps)


def test_the_page_names_the_dockerfile_and_the_size_that_is_enough() -> None:
    page = (ROOT / "docs" / "recipes" / "docker.md").read_text()
    assert f"docker build -f {(RECIPE / 'Dockerfile').relative_to(ROOT)} " in page
    assert "docker run --rm --init --shm-size=1g " in page
