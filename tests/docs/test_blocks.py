"""Every block of code on every page is run, or checked, or listed here with the reason why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from page_blocks import BLOCKS, PAGES, Block, commands_of
from support import ROOT, environment

from tr_mmap.gateway import Config

pytestmark = pytest.mark.timeout(400)  # some run a dozen programs, one after the other
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FOR_DEVELOPERS = {"bench", "docs", "release", "test", "test-short"}  # extras that are named where they are used

# Blocks of shell that no test runs as they stand, and why.
NOT_RUN = {
    "CONTRIBUTING-sh-1": "runs the tests and the checks, and compiles",
    "README-sh-1": "installs, then runs the demo; test_examples.py runs the demo",
    "README-sh-2": "installs",
    "cpp-sh-1": "tests/cpp compiles the page's programs with this command",
    "cpp-sh-2": "tests/cpp compiles the original's programs with this command",
    "development-sh-1": "runs the tests",
    "development-sh-2": "serves until it is ended; test_site.py builds the site",
    "gateway-deployment-sh-1": "needs podman",
    "how-to-sh-1": "needs docker",
    "how-to-sh-2": "needs docker",
    "how-to-sh-3": "tests/cpp compiles programs with this command",
    "gateway-deployment-sh-2": "needs root and systemd",
    "installation-sh-1": "installs",
    "performance-sh-1": "mounts, as root",
    "performance-sh-2": "measures for minutes; tests/tools runs the benchmark on small tensors",
    "recipes/cmake-sh-1": "tests/recipes/test_recipe_cpp.py builds and runs the project",
    "recipes/dataloader-sh-1": "installs, then runs main.py, as tests/recipes/test_recipe_programs.py does",
    "recipes/docker-sh-1": "needs docker; tests/recipes/test_recipe_docker.py runs main.py in a small tmpfs",
    "recipes/fastapi-sh-1": "installs, then serves until it is ended, as tests/recipes/test_recipe_fastapi.py does",
    "recipes/fastapi-sh-2": "tests/recipes/test_recipe_fastapi.py asks the same",
    "recipes/jupyter-sh-1": "installs, then opens a browser; tests/recipes/test_recipe_jupyter.py runs the cells",
    "recipes/preprocessing-sh-1": "installs, then runs main.py, as tests/recipes/test_recipe_programs.py does",
    "recipes/pytorch-model-sh-1": "installs, then runs main.py, as tests/recipes/test_recipe_programs.py does",
    "recipes/verify-algorithm-sh-1": "tests/cpp/test_cpp_guide.py runs it; with --full tests/recipes compiles it so",
    "release-sh-1": "installs, then makes a release; tests/packaging tests its parts",
    "release-sh-2": "uploads",
    "store-sh-1": "installs",
    "torch-sh-1": "test_examples.py runs it, for fewer rounds",
}
# Tests that run the blocks of Python and of shell of some pages, one after the other.
ELSEWHERE = {
    "gateway": "tests/gateway/test_gateway_page.py, tests/gateway/test_stores_made_and_refused.py",
    "tutorial": "tests/docs/test_tutorial.py",
}
RUN_HERE = {"installation-sh-2", "sandbox-sh-1", "store-sh-2"}
OF_LANGUAGE = {
    language: [each for each in BLOCKS if each.language == language] for language in {b.language for b in BLOCKS}
}


def by_name(blocks: list[Block]) -> dict[str, Block]:
    return {block.name: block for block in blocks}


SHELL = by_name([each for each in OF_LANGUAGE["sh"] if each.page not in ELSEWHERE])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_block_of_code_says_its_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    opened = re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2]
    assert all(re.match(r"[a-z]", each) for each in opened), opened
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^::: .*\n(?:    .*\n)*", "", outside, flags=re.MULTILINE)  # options of the reference
    indented = re.findall(r"(?<=\n\n) {4,}(?![-*]|\d+\.).*", outside)
    assert not indented, f"write these between ``` lines, with their language: {indented}"


def test_there_is_a_test_for_each_language() -> None:
    assert set(OF_LANGUAGE) <= {"python", "sh", "toml", "yaml", "c", "cpp", "cmake", "dockerfile", "text"}


def test_every_fragment_of_python_says_what_it_lacks() -> None:
    for block in OF_LANGUAGE["python"]:
        if block.text.startswith("# fragment"):
            assert re.match(r"# fragment: \S+", block.text), block.name
        compile(block.text, block.name, "exec", flags=0x2000)  # a top-level await may be in it


@pytest.mark.parametrize("name", SHELL)
def test_every_block_of_shell_is_run_or_has_a_reason(name: str) -> None:
    assert (name in RUN_HERE) != (name in NOT_RUN), f"run {name} below, or give it a reason in NOT_RUN"


def test_no_reason_is_out_of_date() -> None:
    assert {*NOT_RUN, *RUN_HERE} <= set(SHELL)


@pytest.mark.parametrize("name", SHELL)
def test_every_command_names_files_and_extras_that_there_are(name: str) -> None:
    for command, _ in commands_of(SHELL[name].text):
        words = shlex.split(command, comments=True)
        for text in words:
            for extra in re.findall(r"^(?:\.|tr_mmap)\[(.*)\]$", text):
                assert set(extra.split(",")) <= set(EXTRAS), text
            if text.startswith(("tools/", "examples/")):
                assert (ROOT / text).exists(), text


def test_the_page_of_the_installation_has_every_extra() -> None:
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) | FOR_DEVELOPERS >= set(EXTRAS)


# -- blocks that are run ---------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which a shell finds ``tr-mmap`` and ``python``, and an empty workspace."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in {"tr-mmap": "-m tr_mmap ", "python": ""}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (folder / name).chmod(0o755)
    found = {**environment(), "TR_WORKSPACE": str(tmp_path / "workspace")}
    return {**found, "PATH": f"{folder}{os.pathsep}{found['PATH']}"}


def run(command: str, folder: Path, variables: dict[str, str]) -> str:
    ended = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_the_command_that_checks_an_installation_runs(tmp_path: Path, shell: dict[str, str]) -> None:
    ((command, _),) = commands_of(SHELL["installation-sh-2"].text)
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=300)
    assert ended.returncode in (0, 1), ended.stderr  # 1 where something was not compiled
    assert "extras: " in ended.stdout


def test_the_commands_of_the_sandbox_run(tmp_path: Path, shell: dict[str, str]) -> None:
    import numpy as np

    (tmp_path / "double.py").write_text("def double(inputs):\n    return {'y': inputs['x'] * 2}\n")
    np.save(tmp_path / "a.npy", np.arange(3.0))
    (command, _), (doctor, _) = commands_of(SHELL["sandbox-sh-1"].text)
    assert doctor == "tr-mmap sandbox doctor"  # takes seconds; tests/cli/test_sandbox.py runs it
    assert "[0. 2. 4.]" in run(command, tmp_path, shell)


def test_the_commands_of_the_store_run_in_their_order(tmp_path: Path, shell: dict[str, str]) -> None:
    record = ""
    for command, _ in commands_of(SHELL["store-sh-2"].text):
        printed = run(command.replace("0123456789abcdef", record or "0123456789abcdef"), tmp_path, shell)
        if "store add" in command:
            (record,) = re.findall(r"[0-9a-f]{16,}", printed)
        if "store search" in command:
            assert "oboe" in printed


# -- blocks that are read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", by_name(OF_LANGUAGE["toml"]))
def test_every_configuration_is_one_of_the_gateway(name: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").touch()
    path = tmp_path / "tr_mmap.toml"
    path.write_text(by_name(OF_LANGUAGE["toml"])[name].text, encoding="utf-8")
    assert isinstance(Config.from_toml(path), Config)


@pytest.mark.parametrize("name", by_name(OF_LANGUAGE["yaml"]))
def test_every_block_of_yaml_can_be_read(name: str) -> None:
    assert json.dumps(yaml.safe_load(by_name(OF_LANGUAGE["yaml"])[name].text))


@pytest.mark.parametrize(
    "name", [each.name for each in OF_LANGUAGE["cpp"] if each.page != "cpp" and not each.page.startswith("recipes/")]
)
def test_every_block_of_cpp_compiles(name: str, tmp_path: Path) -> None:
    """Those of the guide to C++, and the how-to's in C, are run by tests/cpp/test_cpp_guide.py."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = tmp_path / "block.cpp"
    source.write_text(by_name(OF_LANGUAGE["cpp"])[name].text, encoding="utf-8")
    include = ROOT / "tr_mmap" / "cpp" / "include"
    subprocess.run([compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", str(source)], check=True, timeout=300)


def test_what_is_said_of_cmake_is_what_the_examples_do() -> None:
    lists = (ROOT / "examples" / "cpp" / "CMakeLists.txt").read_text(encoding="utf-8")
    for block in OF_LANGUAGE["cmake"]:
        if block.page.startswith("recipes/"):
            continue
        for line in block.text.splitlines():
            assert re.sub(r"\bx\b", "${name}", line) in lists or line in lists, line
