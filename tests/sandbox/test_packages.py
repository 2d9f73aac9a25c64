"""Directories of packages that a sandbox's algorithms can import, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheels import make_package

from tr_mmap.sandbox import Limits, MissingPackage, NotAllowed, Sandbox

VERSION = "import greetings\noutput = greetings.__version__"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return make_package(tmp_path / "old", "greetings", "1.0")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return make_package(tmp_path / "new", "greetings", "2.0")


def test_two_sandboxes_have_different_versions_of_one_package(old: Path, new: Path) -> None:
    with Sandbox(packages=(old,)) as first, Sandbox(packages=(new,)) as second, Sandbox() as third:
        for _ in range(2):
            assert first.execute(VERSION).outputs["output"] == "1.0"
            assert second.execute(VERSION).outputs["output"] == "2.0"
        with pytest.raises(Exception, match="greetings"):
            third.execute(VERSION)


def test_processes_that_are_kept_have_their_own_sandbox_s_packages(old: Path, new: Path) -> None:
    code = "import greetings, sys\nsys.n = getattr(sys, 'n', 0) + 1\noutput = [greetings.__version__, sys.n]"
    with Sandbox(packages=(old,)) as first, Sandbox(packages=(new,)) as second:
        for number in (1, 2):
            for box, version in ((first, "1.0"), (second, "2.0")):
                algorithm = box.register("which", code, reuse=True)
                assert box.run(algorithm).outputs["output"] == [version, number]


def test_packages_are_found_before_those_that_are_installed_and_after_the_standard_library(tmp_path: Path) -> None:
    make_package(tmp_path, "pandas", "0.1")
    make_package(tmp_path, "colorsys", "0.1")
    code = "import colorsys, pandas\noutput = [pandas.__version__, hasattr(colorsys, '__version__')]"
    with Sandbox(packages=(tmp_path,)) as box:
        assert box.execute(code).outputs["output"] == ["0.1", False]
        assert box.execute("import numpy\noutput = numpy.__name__").outputs["output"] == "numpy"


def test_the_first_of_several_directories_wins(old: Path, new: Path) -> None:
    with Sandbox(packages=(new, old)) as box:
        assert box.execute(VERSION).outputs["output"] == "2.0"


def test_what_a_package_does_as_it_is_imported_is_contained(tmp_path: Path) -> None:
    make_package(tmp_path, "reads", "1.0", {"__init__.py": "open('/etc/shadow')"})
    with Sandbox(packages=(tmp_path,)) as box:
        with pytest.raises(NotAllowed) as caught:
            box.execute("import reads")
        assert (caught.value.rule, caught.value.detail) == ("read", "/etc/shadow")


def test_nothing_of_packages_runs_before_an_algorithm_imports_it(tmp_path: Path) -> None:
    boom = "raise SystemExit('imported')"
    (tmp_path / "sitecustomize.py").write_text(boom)
    (tmp_path / "usercustomize.py").write_text(boom)
    (tmp_path / "boom.pth").write_text("import sys; sys.exit('imported')")
    make_package(tmp_path, "ml_dtypes", "0.1", {"__init__.py": boom})
    with Sandbox(packages=(tmp_path,)) as box:
        assert box.execute("output = 1").outputs["output"] == 1


def test_packages_can_be_read_and_not_written(old: Path) -> None:
    with Sandbox(packages=(old,)) as box:
        code = "import greetings\noutput = open(greetings.__file__, 'a')"
        with pytest.raises(NotAllowed) as caught:
            box.execute(code)
        assert caught.value.rule == "write"


def test_dependencies_may_be_in_packages(old: Path, new: Path) -> None:
    with Sandbox(packages=(old,)) as box:
        algorithm = box.register("hello", VERSION, dependencies=["greetings==1.0"])
        assert box.run(algorithm).outputs["output"] == "1.0"
        with pytest.raises(MissingPackage, match=r"2\.0"):
            box.register("hello", VERSION, dependencies=["greetings==2.0"])
    with Sandbox() as box, pytest.raises(MissingPackage):
        box.register("hello", VERSION, dependencies=["greetings==1.0"])


def test_packages_stay_when_limits_change(old: Path) -> None:
    with Sandbox(packages=(old,)) as box:
        box.set_limits(wall_ms=Limits().wall_ms / 2)
        assert box.execute(VERSION).outputs["output"] == "1.0"


def test_packages_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong, said in (
        ((tmp_path / "nowhere",), "no directory"),
        ((tmp_path / "file",), "no directory"),
        (("relative",), "absolute"),
        (("/etc",), "too much"),
        (str(tmp_path), "is one"),
    ):
        with pytest.raises(ValueError, match=said):
            Sandbox(packages=wrong)
    for kind in ("wasm", "native"):
        with pytest.raises(ValueError, match="import no packages"):
            Sandbox(kind, packages=(tmp_path,))
