"""Wheels and directories of packages, written by tests: small zip files, so that nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["make_package", "make_sdist", "make_wheel"]


def _metadata(name: str, version: str, requires: Iterable[str]) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires
    )


def _module(version: str) -> dict[str, str]:
    return {"__init__.py": f"__version__ = {version!r}\n"}


def make_package(folder: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> Path:
    """A package as ``pip install --target`` leaves it; ``files`` by their paths in it. Returns the folder."""
    for path, text in (_module(version) if files is None else files).items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(_metadata(name, version, ()))
    return folder


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    *,
    requires: Iterable[str] = (),
    scripts: Iterable[str] = (),
) -> Path:
    """A wheel, of a package that has its version, or of ``files`` by their paths in the archive."""
    about = f"{name}-{version}.dist-info"
    texts = {f"{name}/{path}": text for path, text in _module(version).items()} if files is None else dict(files)
    texts[f"{about}/METADATA"] = _metadata(name, version, requires)
    texts[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if scripts:
        texts[f"{about}/entry_points.txt"] = "[console_scripts]\n" + "".join(f"{each}\n" for each in scripts)
    record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in texts.items())
    texts[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, text in texts.items():
            archive.writestr(each, text)
    return path


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_sdist(folder: Path, name: str, version: str, setup: str) -> Path:
    """An archive of sources, whose ``setup.py`` would be executed if it were built."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for each, text in (("PKG-INFO", _metadata(name, version, ())), ("setup.py", setup)):
            entry = tarfile.TarInfo(f"{name}-{version}/{each}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path
