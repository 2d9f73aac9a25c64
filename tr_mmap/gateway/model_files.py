"""Finds models in a directory, and opens their files. Reads names and sizes; parses nothing, keeps nothing.

In the directory each model has one of its own, named as models are, and in that each version has one, whose name is its
number::

    mnist/1/model.safetensors       weights
    mnist/1/model.py                with forward(inputs), which gets them as inputs["model"]
    mnist/2/...
    digits/model.onnx               a model that has its files directly is its version 1

Links may lead from one place of the directory to another, and not out of it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .api import NAME
from .errors import BadModel, Overloaded

__all__ = [
    "FORMATS",
    "SOURCE",
    "TO_CONVERT",
    "FilesChanged",
    "Format",
    "FoundVersion",
    "find_models",
    "opened",
    "read_source",
]

Format = Literal["safetensors", "onnx", "pt2", "torchscript"]

SOURCE: Final = "model.py"
FORMATS: Final[dict[str, Format]] = {
    "model.safetensors": "safetensors",
    "model.onnx": "onnx",
    "model.pt2": "pt2",
    "model.pt": "torchscript",
    "model.pth": "torchscript",
}

_NAME: Final = re.compile(NAME)
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
_PICKLES: Final = (".pkl", ".pickle", ".bin", ".joblib", ".ckpt")
_MOST_SOURCE_NBYTES: Final = 1 << 20
TO_CONVERT: Final = (
    "a pickle runs what is in it as it is read; convert it where it was made, with "
    'safetensors.torch.save_model(model, "model.safetensors") or torch.export.save(torch.export.export(model, '
    'example), "model.pt2")'
)


class FilesChanged(Overloaded):
    """The files of a version are not those that were found: nobody has tried them."""


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version, as its directory has it.

    Attributes:
        name: of the model.
        number: of the version.
        folder: its directory, from that of all models.
        files: of each that counts: its name, device, inode, size, and when it was changed. Another one is another
            version, though its number be the same.
    """

    name: str
    number: int
    folder: str
    files: tuple[tuple[str, int, int, int, int], ...]

    def path(self, file: str) -> str:
        """Of one of its files, from the directory of all models."""
        return f"{self.folder}/{file}"

    @property
    def has_source(self) -> bool:
        """Whether it has code of its own."""
        return any(each[0] == SOURCE for each in self.files)

    @property
    def is_algorithm(self) -> bool:
        """Whether it can be executed by the model's name, once it is loaded.

        Raises:
            BadModel: as :meth:`weights`.
        """
        return self.has_source or self.weights()[1] != "safetensors"

    def weights(self) -> tuple[str, Format]:
        """The file that has the weights, and what it is.

        Raises:
            BadModel: there is none, or there are several, or it is a pickle.
        """
        names = [each[0] for each in self.files]
        found = [each for each in names if each in FORMATS]
        if len(found) == 1:
            return found[0], FORMATS[found[0]]
        if found:
            raise BadModel(f"{self.folder} has {' and '.join(found)}; leave one of them", name=self.name)
        pickles = [each for each in names if each.endswith(_PICKLES)]
        if pickles:
            raise BadModel(f"{self.path(pickles[0])} is refused: {TO_CONVERT}", name=self.name)
        raise BadModel(f"{self.folder} has no {', '.join(FORMATS)} that can be read", name=self.name)


def find_models(root: str) -> dict[str, dict[int, FoundVersion]]:
    """The models of a directory: versions by number, by name.

    Raises:
        OSError: the directory cannot be read.
    """
    found: dict[str, dict[int, FoundVersion]] = {}
    for entry in _listed(root):
        if _NAME.fullmatch(entry.name) and _is_folder(entry):
            versions = _find_versions(root, entry.name)
            if versions:
                found[entry.name] = versions
    return found


def _find_versions(root: str, name: str) -> dict[int, FoundVersion]:
    entries = _readable(os.path.join(root, name))
    numbered = [each.name for each in entries if _NUMBER.fullmatch(each.name) and _is_folder(each)]
    if numbered:
        return {int(each): _found(root, name, int(each), f"{name}/{each}") for each in numbered}
    return {1: _found(root, name, 1, name)} if entries else {}


def _found(root: str, name: str, number: int, folder: str) -> FoundVersion:
    files = []
    for entry in _readable(os.path.join(root, folder)):
        if entry.name not in FORMATS and entry.name != SOURCE and not entry.name.endswith(_PICKLES):
            continue
        try:
            status = entry.stat()
        except OSError:  # it was removed meanwhile, or is a link to nothing
            continue
        files.append(_noted(entry.name, status))
    return FoundVersion(name, number, folder, tuple(sorted(files)))


def _noted(name: str, status: os.stat_result) -> tuple[str, int, int, int, int]:
    return name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _listed(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda each: each.name)


def _readable(path: str) -> list[os.DirEntry[str]]:
    """The same; none of a directory that was removed meanwhile, or that may not be read."""
    try:
        return _listed(path)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


@contextmanager
def opened(root: str, version: FoundVersion, file: str) -> Iterator[int]:
    """A descriptor of a file of a version, which only reads.

    Raises:
        FilesChanged: it is another file than the one that was found, or has changed until the end of the block.
        BadModel: it cannot be read, or is no file of this directory.
    """

    def check() -> None:
        if _noted(file, os.fstat(fd)) not in version.files:
            raise _changed(path)

    path = version.path(file)
    try:
        fd = os.open(os.path.join(root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise _changed(path) from error
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error.strerror}", name=version.name) from error
    try:
        # Where it is now, whatever its name has led to: nobody can put a link in its place after this look.
        place = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if Path(os.path.realpath(root)) not in place.parents:
            raise BadModel(f"{path} leads out of model_dir; put the file itself there", name=version.name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadModel(f"{path} is no file", name=version.name)
        check()
        yield fd
        check()  # what was read meanwhile may be half of one file and half of another
    finally:
        os.close(fd)


def _changed(path: str) -> FilesChanged:
    return FilesChanged(f"{path} has changed since it was found, and is looked at again; try again", retry_after_s=1.0)


def read_source(root: str, version: FoundVersion) -> bytes:
    """The code of a version.

    Raises:
        BadModel: it cannot be read, or is too long.
    """
    with opened(root, version, SOURCE) as fd, open(fd, "rb", closefd=False) as file:
        source = file.read(_MOST_SOURCE_NBYTES + 1)
    if len(source) > _MOST_SOURCE_NBYTES:
        raise BadModel(
            f"{version.path(SOURCE)} has more than {_MOST_SOURCE_NBYTES} bytes; put data beside it", name=version.name
        )
    return source
