"""Which Pythons the scripts for tests find, and what they do with them. The Pythons here are shell scripts that print a
version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

WORDS = "#!/bin/sh\nprintf '%s\\n' \"{}\"\n"
REFUSAL = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
ONCE = "--all\n--plain\n--sanitize --seconds 12 tests/native\n"  # what .ci/run asks of tools/test on the usual Python
THEIRS = ["--python 3.96 --short", "--python 3.98 --short"]
MISSING = re.compile(
    r"There is no Python 3\.97, neither in PATH nor in \S+/pyenv/versions\.\nInstall it, or name another: .+\n"
)


class Machine:
    """A copy of the repository's scripts, with a PATH and a pyenv of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        (self.root / "tools").mkdir(parents=True)
        for each in ("tools/_setup.sh", "tools/test", ".ci/run"):
            (self.root / each).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / each, self.root / each)
        (self.root / "pyproject.toml").write_text('"Programming Language :: Python :: 3",\n')
        self.commands, self.pyenv = folder / "bin", folder / "pyenv"

    def add(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def supports(self, *versions: str) -> None:
        with (self.root / "pyproject.toml").open("a") as file:
            file.writelines(f'    "Programming Language :: Python :: {each}",\n' for each in versions)

    def fails_for(self, arguments: str) -> None:
        """Puts a ``tools/test`` there that notes its arguments, and fails for these."""
        case = f'case "$*" in "{arguments}") exit 3 ;; esac'
        self.add(self.root / "tools" / "test", f'#!/bin/sh\necho "$*" >>calls\n{case}\n')

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(self.commands), "/usr/bin", "/bin"))
        env = {"PATH": path, "PYENV_ROOT": str(self.pyenv)}
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=60, check=False)

    def with_setup(self, text: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "-euc", f"root=$PWD; . tools/_setup.sh; {text}", "sh")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_python_in_path_is_found(machine: Machine) -> None:
    here = machine.add(machine.commands / "python3.97", WORDS.format("3.97"))
    assert machine.with_setup("interpreter_of 3.97").stdout == f"{here}\n"


def test_pyenv_s_version_is_found_behind_its_command_that_refuses(machine: Machine) -> None:
    machine.add(machine.commands / "python3.97", REFUSAL)
    machine.add(machine.pyenv / "versions" / "3.9.7" / "bin" / "python3.9", WORDS.format("3.9"))
    here = machine.add(machine.pyenv / "versions" / "3.97.2" / "bin" / "python3.97", WORDS.format("3.97"))
    assert machine.with_setup("interpreter_of 3.97").stdout == f"{here}\n"


def test_the_tests_in_plain_python_are_there() -> None:
    found = re.search(r'^plain="([^"]*)"$', (ROOT / "tools" / "test").read_text(), re.MULTILINE)
    assert found
    assert [each for each in found[1].split() if not (ROOT / each.removeprefix("--ignore=")).exists()] == []


@pytest.mark.parametrize("text", [REFUSAL, WORDS.format("3.96"), WORDS.format("3.97t")])
def test_a_version_that_is_not_here_is_one_clear_error_and_leaves_nothing(machine: Machine, text: str) -> None:
    machine.add(machine.commands / "python3.97", text)
    before = sorted(machine.root.iterdir())
    done = machine.run("sh", "tools/test", "--python", "3.97")
    assert (done.returncode, done.stdout) == (1, "")
    assert MISSING.fullmatch(done.stderr), done.stderr
    assert sorted(machine.root.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--python"], "--python needs a version or a path"),
        (["--python", "/bin/false"], "/bin/false is not a Python 3 that runs"),
        (["--python", "snake"], "snake is not a Python 3 that runs"),
    ],
)
def test_what_is_no_python_is_said(machine: Machine, arguments: list[str], said: str) -> None:
    done = machine.run("sh", "tools/test", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)


def test_each_python_has_an_environment_of_its_own_which_another_of_its_version_makes_again(machine: Machine) -> None:
    here = machine.add(machine.commands / "python3.97", WORDS.format("3.97"))
    shown = 'echo "$venv"; if [ -e "$venv/incomplete" ]; then echo "to be made again"; fi'
    for chosen in ("3.97", "python3.97", str(here)):
        assert machine.with_setup(f"use_python {chosen}; {shown}").stdout == f"{machine.root}/.venv-3.97\n"
    own = machine.add(machine.root / ".venv-3.97" / "bin" / "python", WORDS.format("3.97"))
    assert machine.with_setup(f"use_python 3.97; {shown}").stdout == f"{machine.root}/.venv-3.97\n"
    machine.add(own, WORDS.format("3.97, elsewhere"))
    again = f"{machine.root}/.venv-3.97\nto be made again\n"
    assert machine.with_setup(f"use_python 3.97; {shown}").stdout == again


def test_the_short_tests_are_there() -> None:
    found = re.search(r'^short="([^"]*)"$', (ROOT / "tools" / "test").read_text(), re.MULTILINE)
    assert found
    assert [each for each in found[1].split() if not (ROOT / each.removeprefix("--ignore=")).exists()] == []


def test_continuous_integration_runs_the_short_tests_on_each_other_python_that_is_here(machine: Machine) -> None:
    machine.supports("3.95", "3.96", "3.97", "3.98")
    machine.add(machine.root / ".venv" / "bin" / "python", WORDS.format("3.95"))
    for version in ("3.95", "3.96", "3.98", "3.99"):
        machine.add(machine.commands / f"python{version}", WORDS.format(version))
    machine.fails_for("--python 3.96 --short")
    done = machine.run(".ci/run")
    calls = (machine.root / "calls").read_text().splitlines()
    made = ["--python 3.96 --short --version", "--python 3.98 --short --version"]  # the environments
    assert [each for each in calls if each not in made] == [*ONCE.splitlines(), *THEIRS]
    assert [each for each in calls if each in made] == made
    assert calls[-2:] == THEIRS
    assert done.returncode == 3, done.stderr
    assert "No other" not in done.stdout


def test_continuous_integration_passes_and_says_so_where_there_is_no_other_python(machine: Machine) -> None:
    machine.supports("3.95", "3.96")
    machine.add(machine.root / ".venv" / "bin" / "python", WORDS.format("3.95"))
    machine.add(machine.commands / "python3.95", WORDS.format("3.95"))
    machine.fails_for("nothing")
    done = machine.run(".ci/run")
    assert (done.returncode, (machine.root / "calls").read_text()) == (0, ONCE)
    assert done.stdout.splitlines()[-1].startswith("No other supported Python is here")


def test_a_failure_on_the_usual_python_is_the_status(machine: Machine) -> None:
    machine.fails_for("--all")
    assert machine.run(".ci/run").returncode == 3


PIP = """#!/bin/sh
echo "Collecting numpy"
echo "  Downloading numpy-2.whl.metadata (62 kB)"
echo "  Downloading numpy-2.whl (16.9 MB)"
echo "Using cached rich-1.whl (3 kB)"
echo "Installing collected packages: $(printf 'package, %.0s' $(seq 100))"
echo "ERROR: it does not work" >&2
exit STATUS
"""


@pytest.mark.parametrize("status", [0, 3])
def test_an_installation_says_what_it_downloads_and_how_it_ended(machine: Machine, status: int) -> None:
    machine.add(machine.root / ".venv" / "bin" / "python", PIP.replace("STATUS", str(status)))
    done = machine.with_setup("python=$venv/bin/python; run_pip install numpy")
    assert done.returncode == status
    downloaded, cached, installing = done.stdout.splitlines()
    assert (downloaded, cached) == ("  Downloading numpy-2.whl (16.9 MB)", "  Using cached rich-1.whl (3 kB)")
    assert installing.startswith("  Installing collected packages: package,")
    assert len(installing) <= 112
    assert done.stderr == ("ERROR: it does not work\n" if status else "")


def test_an_installation_in_a_terminal_leaves_it_to_pip_to_show_how_far_it_is(machine: Machine) -> None:
    machine.add(machine.root / ".venv" / "bin" / "python", '#!/bin/sh\necho "arguments: $*"\n')
    inside = "root=$PWD; . tools/_setup.sh; python=$venv/bin/python; run_pip install numpy"
    done = machine.run("script", "-qec", f"sh -euc '{inside}'", "/dev/null")
    assert "arguments: -m pip" in done.stdout
    assert "--progress-bar" not in done.stdout
    assert "-q" not in done.stdout
