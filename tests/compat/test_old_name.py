"""The module of the original framework: ours where there is no other, and never in the way of the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, run_python, script

import tr_mmap
from tr_mmap import PythonSession

OURS = [ROOT, Path(tr_mmap.__file__).parent / "compat"]  # where it lies in a source tree, and for a session's worker
ASK = "import tech_renaissance as it; print(getattr(it, 'origin', None) or (it.TechRenaissanceServer and 'ours'))"


def ask(*places: Path, program: str = ASK) -> str:
    """What a program prints that has these places on its path, and after them the package itself."""
    lines = [f"import sys; sys.path[:0] = {[str(each) for each in places]!r}", program]
    ended = run_python("-P", "-c", "\n".join(lines))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def original(place: Path, kind: str = "package", text: str = "origin = 'original'\n") -> Path:
    """A folder in which the original is installed."""
    if kind == "package":
        (place / "tech_renaissance").mkdir(parents=True)
        (place / "tech_renaissance" / "__init__.py").write_text(text)
        (place / "tech_renaissance" / "tools.py").write_text("origin = 'a tool of the original'\n")
    else:
        place.mkdir(parents=True, exist_ok=True)
        (place / "tech_renaissance.py").write_text(text)
    return place


# -- ours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", OURS, ids=["top level", "compat"])
def test_the_old_name_has_every_name_that_programs_import_from_it(place: Path) -> None:
    names = (
        "TechRenaissanceServer, PythonSession, PyTorchSession, import_tsr, export_tsr, get_tsr_info, read_tsr_file, "
        "write_tsr_file, TSRError, ServerError"
    )
    program = f"from tech_renaissance import {names}\nfrom tech_renaissance import *\nimport tr_mmap\n"
    program += "print(issubclass(TechRenaissanceServer, tr_mmap.TechRenaissanceServer), 'torch' in sys.modules)"
    assert ask(place, program=program) == "True False"


def test_a_name_that_it_lacks_is_an_import_error() -> None:
    program = "try:\n    from tech_renaissance import Wormhole\nexcept ImportError as error:\n    print(error.name)"
    assert ask(program=program) == "tech_renaissance"


def test_copies_of_ours_do_not_take_each_other_for_the_original(tmp_path: Path) -> None:
    (tmp_path / "tech_renaissance.py").write_text((ROOT / "tech_renaissance.py").read_text())
    assert ask(*OURS, tmp_path) == "ours"
    assert ask(tmp_path, *OURS) == "ours"


def test_a_folder_of_headers_is_not_the_original(tmp_path: Path) -> None:
    (tmp_path / "tech_renaissance").mkdir()
    (tmp_path / "tech_renaissance" / "tensor.h").touch()
    assert ask(tmp_path) == "ours"
    assert ask(*OURS, tmp_path) == "ours"


def test_the_package_installs_the_file_that_a_session_puts_on_the_path() -> None:
    assert 'py-modules = ["tech_renaissance"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert (ROOT / "tech_renaissance.py").read_bytes() == (OURS[1] / "tech_renaissance.py").read_bytes()


# -- the original ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("is_first", [True, False], ids=["before ours", "after ours"])
def test_where_the_original_is_on_the_path_its_import_wins(tmp_path: Path, kind: str, is_first: bool) -> None:
    place = original(tmp_path, kind)
    assert ask(*([place, *OURS] if is_first else [*OURS, place])) == "original"


def test_a_package_wins_over_ours_in_the_same_folder(tmp_path: Path) -> None:
    (original(tmp_path) / "tech_renaissance.py").write_text((ROOT / "tech_renaissance.py").read_text())
    assert ask(tmp_path) == "original"


def test_the_modules_of_the_original_are_imported_too(tmp_path: Path) -> None:
    program = "import tech_renaissance.tools as it; print(it.origin, sys.modules['tech_renaissance'].__spec__.origin)"
    place = original(tmp_path)
    found = ask(*OURS, place, program=program)
    assert found == f"a tool of the original {place / 'tech_renaissance' / '__init__.py'}"


def test_an_original_that_was_installed_to_be_edited_wins(tmp_path: Path) -> None:
    place = original(tmp_path / "src")
    finder = f"""
import importlib.util
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "tech_renaissance":
            return importlib.util.spec_from_file_location(
                name, {str(place / "tech_renaissance" / "__init__.py")!r},
                submodule_search_locations=[{str(place / "tech_renaissance")!r}])
sys.meta_path.append(Finder)
"""
    assert ask(*OURS, program=finder + ASK) == "original"


def test_the_error_of_an_original_that_cannot_be_imported_is_its_own(tmp_path: Path) -> None:
    place = original(tmp_path, text="raise RuntimeError('no library')\n")
    program = f"try:\n    {ASK}\nexcept RuntimeError as error:\n    print(error, 'tech_renaissance' in sys.modules)"
    assert ask(*OURS, place, program=program) == "no library False"


# -- in workers ------------------------------------------------------------------------------------------------------

WORKER = """
import sys, tech_renaissance
print("it is", getattr(tech_renaissance, "origin", "ours"), flush=True)
from tr_mmap import TechRenaissanceServer
class Worker(getattr(tech_renaissance, "TechRenaissanceServer", TechRenaissanceServer)):
    def main_logic(self, command, parameters):
        self.write_response(command, getattr(tech_renaissance, "origin", "ours"))
        return True
Worker(framework="numpy").run(sys.argv[1])
"""


@pytest.mark.parametrize("where", ["nowhere", "beside the script", "on PYTHONPATH"])
def test_a_sessions_worker_imports_the_original_where_there_is_one(tmp_path: Path, where: str) -> None:
    worker, env = script(tmp_path, WORKER), {}
    if where == "beside the script":
        original(tmp_path)
    elif where == "on PYTHONPATH":
        env["PYTHONPATH"] = str(original(tmp_path / "packages"))
    with PythonSession(worker, quiet_mode=True, env=env) as session:
        assert session.fetch_response("who") == ("ours" if where == "nowhere" else "original")


def test_a_worker_that_anybody_starts_finds_the_name(tmp_path: Path, workspace: Path) -> None:
    """As an old controller does: a directory without a manifest, a script with the directory's name, and files."""
    directory = tmp_path / "tr_session_old"
    directory.mkdir(mode=0o700)
    worker = script(tmp_path, WORKER)
    (directory / "request.json").write_text('{"cmd": "exit"}')
    ended = subprocess.run(
        [sys.executable, worker, str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "it is ours"
