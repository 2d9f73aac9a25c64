"""Promises of the source distribution and of the wheel."""

from __future__ import annotations

import email
import email.policy
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from distributions import (
    Distributions,
    copy_tracked,
    python_build,
    readme_example,
    run_unpacked,
    tracked_files,
    unpack,
)
from support import ROOT

import tr_mmap
from tr_mmap.cli import doctor

MADE_BY_SETUPTOOLS = re.compile(r"PKG-INFO|setup\.cfg|tr_mmap\.egg-info/.*")
HELLO = "tests/docs/test_examples.py::test_example_runs_and_says_what_it_should[hello.py]"
QUICK = ["tests/wire", "tests/docs/test_architecture.py", "tests/tsr/test_tsr_header.py", HELLO]
ROOMS = ["wire", "base", "tsr", "native", "processes", "shm", "protocol", "channel", "transfer", "sessions", "tools"]


def names_in(sdist: Path) -> set[str]:
    """The files of a source distribution, without the folder that all are in."""
    with tarfile.open(sdist) as archive:
        return {each.name.partition("/")[2] for each in archive if not each.isdir()}


def test_a_source_distribution_is_the_repository(distributions: Distributions) -> None:
    found = names_in(distributions.sdist)
    expected = set(tracked_files())
    assert expected - found == set(), "MANIFEST.in names them not"
    assert {each for each in found - expected if not MADE_BY_SETUPTOOLS.fullmatch(each)} == set()


@pytest.mark.long
@pytest.mark.timeout(3600)  # eleven rooms take minutes
def test_a_source_distribution_passes_its_own_tests(
    distributions: Distributions, tmp_path: Path, is_full: bool
) -> None:
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    with zipfile.ZipFile(distributions.wheel) as wheel:  # as an installation in place would compile them
        wheel.extractall(tree, [each for each in wheel.namelist() if each.endswith(".so")])
    chosen = [f"tests/{room}" for room in ROOMS] if is_full else QUICK
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        said, _ = tests.communicate()
    assert tests.returncode == 0, said[-4000:]
    assert re.search(r"\d{2,} passed", said), said[-400:]


def test_a_wheel_has_what_programs_need_and_nothing_else(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        found = {each for each in archive.namelist() if ".dist-info/" not in each}
    compiled = {each for each in found if each.endswith(".so")}
    assert {each.partition(".")[0] for each in compiled} == {
        "tr_mmap/native/_native",
        "tr_mmap/sandbox/_arena",
        "tr_mmap/sandbox/_kernel",
    }
    sources = re.compile(r"tr_mmap/(native|sandbox)/[^/]*\.[ch]")  # only the build needs them
    package = {each for each in tracked_files() if each.startswith("tr_mmap/") and not sources.fullmatch(each)}
    for_cmake = {each for each in found if ".data/" in each}
    assert {each.partition(".data/data/")[2] for each in for_cmake} == {
        "share/cmake/tr_mmap/tr_mmapConfig.cmake",
        "share/cmake/tr_mmap/tr_mmapConfigVersion.cmake",
    }
    assert found == {*package, *compiled, *for_cmake, "tech_renaissance.py"}
    assert "tr_mmap/cpp/include/tr_mmap/tr_mmap.hpp" in found


def test_an_installed_wheel_runs_the_example_of_the_readme(distributions: Distributions, tmp_path: Path) -> None:
    folder = unpack(distributions.wheel, tmp_path / "installed")
    example = run_unpacked(folder, ["-c", readme_example()])
    assert (example.stdout, example.stderr) == ("Hello World\nTrue\n", "")
    include = run_unpacked(folder, ["-m", "tr_mmap", "include"])
    assert include.stdout == f"{folder / 'tr_mmap' / 'cpp' / 'include'}\n"
    doctor = run_unpacked(folder, ["-m", "tr_mmap", "doctor"])
    assert doctor.returncode == 0, doctor.stdout
    assert doctor.stdout.count(": compiled\n") == 3


def test_twine_has_nothing_to_say(distributions: Distributions) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict"]
    done = subprocess.run(
        [*command, distributions.sdist, distributions.wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def metadata_of(wheel: Path) -> email.message.EmailMessage:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(name), policy=email.policy.HTTP)
    assert isinstance(message, email.message.EmailMessage)
    return message


def test_the_version_is_stated_once(distributions: Distributions) -> None:
    metadata = metadata_of(distributions.wheel)
    assert metadata["Version"] == tr_mmap.__version__
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dynamic"]


def test_all_has_every_extra_that_programs_use(distributions: Distributions) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for each in extras["all"] for name in re.findall(r"[\w-]+", each.partition("[")[2].partition("]")[0])}
    assert named == extras.keys() - {"all", "bench", "docs", "release", "test", "test-short"}
    assert set(metadata_of(distributions.wheel).get_all("Provides-Extra")) == set(extras)
    assert doctor.PACKAGES.keys() == named  # so that it shows which of them are installed


# -- without a compiler ----------------------------------------------------------------------------------------------


def test_a_build_without_a_compiler_says_so_and_what_it_means(pure_wheel: tuple[Path, str]) -> None:
    wheel, said = pure_wheel
    assert said.count("WITHOUT compiled code") == 1
    assert "Not built: tr_mmap.native._native, tr_mmap.sandbox._kernel, tr_mmap.sandbox._arena" in said
    with zipfile.ZipFile(wheel) as archive:
        assert not [each for each in archive.namelist() if each.endswith(".so")]


def test_without_compiled_code_a_session_works_and_one_line_says_what_is_missing(
    pure_wheel: tuple[Path, str], tmp_path: Path
) -> None:
    folder = unpack(pure_wheel[0], tmp_path / "installed")
    twice = readme_example() + "\nwith PythonSession() as session:\n    pass\n"
    example = run_unpacked(folder, ["-c", twice])
    assert example.stdout == "Hello World\nTrue\n"
    assert example.stderr.count("without compiled code") == example.stderr.count("\n") == 1
    assert "tr-mmap doctor" in example.stderr
    meant = run_unpacked(folder, ["-c", readme_example()], TR_MMAP_PURE="1")
    assert (meant.stdout, meant.stderr) == ("Hello World\nTrue\n", "")


def test_without_compiled_code_the_doctors_say_what_is_missing_and_what_to_do(
    pure_wheel: tuple[Path, str], tmp_path: Path
) -> None:
    folder = unpack(pure_wheel[0], tmp_path / "installed")
    doctor = run_unpacked(folder, ["-m", "tr_mmap", "doctor"])
    assert doctor.returncode == 1
    assert doctor.stdout.count("NOT COMPILED") == 3
    assert "What to do: install a C compiler" in doctor.stdout
    doctor = run_unpacked(folder, ["-m", "tr_mmap", "sandbox", "doctor"])
    assert doctor.returncode != 0
    assert "installed without a C compiler" in doctor.stdout
    assert "Traceback" not in doctor.stderr


def test_a_build_that_must_compile_fails_without_a_compiler(tmp_path: Path) -> None:
    tree = copy_tracked(tmp_path / "tree")
    failed = python_build(tree, tmp_path / "dist", "--wheel", status=1, CC="/bin/false", TR_MMAP_MUST_COMPILE="1")
    assert "TR_MMAP_MUST_COMPILE is set, so this is an error." in failed.stdout + failed.stderr


# -- the whole recipe ------------------------------------------------------------------------------------------------


@pytest.mark.full_only
@pytest.mark.timeout(1200)
def test_the_recipe_of_a_release_makes_files_that_install_and_run(tmp_path: Path) -> None:
    tree = copy_tracked(tmp_path / "tree")
    git = ["git", "-C", tree, "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "Copy"]):
        subprocess.run([*git, *command], check=True)
    command = [sys.executable, tree / "tools" / "release.py", "--out", tmp_path / "out", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the README's example runs") == 3
    assert "has no pictures" in done.stdout  # as long as there is no address
    assert "manylinux" in next((tmp_path / "out").glob("*.whl")).name
