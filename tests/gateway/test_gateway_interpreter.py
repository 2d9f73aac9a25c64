"""``[python] python_path`` and ``version``: which interpreter the algorithms' processes have."""

from __future__ import annotations

import platform
import sys
import venv
from pathlib import Path

import pytest
from gateways import configure, configure_with_key, running, tr_mmap
from support import ROOT
from wheels import make_package, make_wheel

from tr_mmap.gateway.dependencies import Dependencies
from tr_mmap.gateway.sections import DependenciesConfig
from tr_mmap.sandbox import Sandbox, SandboxBroken

MARKED = "import sys\noutput = sorted(sys._xoptions)"


def interpreter(folder: Path, *options: str) -> Path:
    """A program that starts this Python, with options by which one knows it."""
    path = folder / "python"
    words = " ".join(options)
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {words} "$@"\n')
    path.chmod(0o755)
    return path


def test_each_sandbox_has_the_interpreter_that_it_was_given(tmp_path: Path) -> None:
    with Sandbox(python=interpreter(tmp_path, "-X", "marked")) as given, Sandbox() as usual:
        assert given.execute(MARKED).outputs == {"output": ["marked"]}
        assert usual.execute(MARKED).outputs == {"output": []}
        given.set_limits(wall_ms=4000)
        assert given.execute(MARKED).outputs == {"output": ["marked"]}


def test_an_interpreter_that_is_not_there_is_told_by_the_sandbox(tmp_path: Path) -> None:
    with pytest.raises(SandboxBroken, match="nowhere"):
        Sandbox(python=tmp_path / "nowhere")


def test_the_interpreter_of_the_configuration_runs_the_algorithms(folder: Path) -> None:
    interpreter(folder, "-X", "marked")
    version = platform.python_version().rpartition(".")[0]
    with running(folder, f'[python]\npython_path = "./python"\nversion = "{version}"\n') as gateway:
        assert gateway.execute(code=MARKED) == ["marked"]
        gateway.register("marked", MARKED)
        assert gateway.execute(algorithm="marked") == ["marked"]


@pytest.mark.parametrize(
    ("options", "version", "said"),
    [
        (("-X", "marked"), "3.9", "python.version"),
        (("-I", "-S"), "", "has no tr_mmap"),
        (None, "", "the interpreter of the algorithms, '"),
    ],
)
def test_an_interpreter_that_cannot_serve_is_told_at_the_start(
    folder: Path, options: tuple[str, ...] | None, version: str, said: str
) -> None:
    if options is not None:
        interpreter(folder, *options)
    path = configure_with_key(folder, f'[python]\npython_path = "./python"\nversion = "{version}"\n')
    ended = tr_mmap("serve", "--config", path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.startswith(f"tr-mmap: {path}: python.")
    assert ended.stderr.count("\n") == 1


def environment_of(folder: Path) -> None:
    """An environment of its own for the algorithms, with a package that this one lacks."""
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "ours.pth").write_text("\n".join([str(ROOT), *site_packages()]))
    make_package(site, "onlythere", "1.5")


def site_packages() -> list[str]:
    return [each for each in sys.path if each.endswith("site-packages")]


ONLY_THERE = "import onlythere\noutput = onlythere.__version__"


@pytest.mark.parametrize("may_install", [False, True])
def test_packages_count_that_the_algorithms_interpreter_has(folder: Path, may_install: bool) -> None:
    environment_of(folder)
    (folder / "wheels").mkdir()
    config = '[python]\npython_path = "venv/bin/python"\n'
    if may_install:
        config += '[python.dependencies]\nauto_install = true\nallow = ["onlythere"]\nwheel_dir = "wheels"\n'
    with running(folder, config) as gateway:
        for number, declared in enumerate(("onlythere==1.5", "onlythere", "OnlyThere>=1; python_version > '3'")):
            info = gateway.register(f"a{number}", ONLY_THERE, dependencies=[declared])
            assert info["environment"] is None  # it is not run: a sandbox may have another /tmp, where that package is
        body = {"name": "b", "code": ONLY_THERE, "dependencies": ["onlythere==2"]}
        answer = gateway.ask("POST", "/api/v1/python/algorithms", body)
        assert (answer.status_code, answer.json()["type"]) == (
            422,
            "BadDependency" if may_install else "MissingPackage",
        )


def test_packages_are_installed_for_the_algorithms_interpreter(folder: Path) -> None:
    environment_of(folder)
    make_wheel(folder / "wheels", "greetings", "1.0")
    config = DependenciesConfig(auto_install=True, allow=("greetings",), cache_dir=str(folder / "cache"))
    made = Dependencies(config, lambda _: [], lambda _: None, str(folder / "venv" / "bin" / "python"))
    assert made._installer._python == str(folder / "venv" / "bin" / "python")
    assert made._interpreter.versions["onlythere"] == "1.5"


def test_another_version_than_this_one_is_refused_by_the_configuration(folder: Path) -> None:
    ended = tr_mmap("serve", "--config", configure(folder, '[python]\nversion = "3.9"\n'))
    assert ended.returncode == 2
    assert "python.version" in ended.stderr
