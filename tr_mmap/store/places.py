"""The folders of stores, and the files of one store: its tensors, and what killed writers left. Knows no catalogue."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ..base import system
from ..errors import HostilePath, TSRFormatError
from ..sessions.workspace import Workspace
from ..tsr import load, read_header
from ..tsr.dtypes import DType, by_name
from ..tsr.files import Mode, load_view
from ..tsr.tensors import copy_into, from_buffer, to_array
from .errors import NoSuchStore, StoreCorrupt
from .files import new_file_name, replace_file, write_array, writer_of
from .records import Part

__all__ = ["Places", "find_store", "no_store", "note_of", "remove_store", "root_of", "roots_of", "stores_in"]

_PREFIX: Final = "tr_store_"
_GONE: Final = ".gone-"  # begins the name of a store that is being removed
_SMALL_NBYTES: Final = 64 << 10  # tensors up to this size share a file
_NOTE_NBYTES: Final = 1 << 20  # more than any note has
_ALIGNMENT: Final = 64
_BYTES: Final = by_name("uint8")
_FOLDERS: Final = ("catalogue", "vec", "tensors")
# Temporary files in folders that have other files too: folder, and how their names begin. A killed process leaves them.
_PASSING: Final = {"": ("catalogue-", "store-"), "catalogue": ("boot-",)}


def root_of(path: str | os.PathLike[str] | None, durability: str) -> str:
    """The folder in which stores lie.

    Args:
        path: what the user gave; None for this user's own: on tmpfs for ``"memory"``, else in the home directory.
        durability: of the store.
    """
    if path is not None:
        return system.absolute(os.fspath(path))
    if durability == "memory":
        return os.path.join(Workspace.locate().root, "stores")
    home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(home, "tr_mmap", "stores")


def roots_of(path: str | os.PathLike[str] | None) -> list[str]:
    """The folders to look in for a store of unknown durability: the given path, or this user's own two."""
    return list(dict.fromkeys(root_of(path, durability) for durability in ("memory", "os")))


def stores_in(root: str) -> list[str]:
    """The names of the stores in a folder, sorted; none if there is no such folder."""
    try:
        names = system.list_dir(root)
    except FileNotFoundError:
        return []
    found = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    return sorted(name for name in found if Places(root, name).exists())


def find_store(name: str, path: str | os.PathLike[str] | None) -> str | None:
    """The folder in which a store of that name is; None if there is none."""
    return next((root for root in roots_of(path) if Places(root, name).exists()), None)


def no_store(name: str, path: str | os.PathLike[str] | None) -> NoSuchStore:
    """The error for a store that is not there."""
    roots = roots_of(path)
    return NoSuchStore(f"there is no store {name!r} in {' or '.join(roots)}", name=name, path=roots[0])


def remove_store(root: str, name: str) -> None:
    """Remove a store, also one that cannot be opened. Handles that are open show what was there, and change nothing.

    Raises:
        HostilePath: its folder is not this user's own.
    """
    places = Places(root, name)
    places.check_private()
    # Under another name first: nobody shall find a part of it.
    gone = os.path.join(root, f"{_GONE}{name}-{secrets.token_hex(8)}")
    system.rename(places.directory, gone)
    system.remove_tree(gone)


def note_of(root: str, name: str) -> dict[str, Any]:
    """What ``store.json`` says of a store; nothing if it cannot be read."""
    try:
        raw = system.peek(os.path.join(Places(root, name).directory, "store.json"), _NOTE_NBYTES)
        found: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        return found
    except (OSError, msgspec.MsgspecError):
        return {}


class Places:
    """The folders of one store.

    Attributes:
        directory: of the store.
        catalogue: of its catalogue.
        vectors: of its slabs.
        tensors: of its tensors.
        durability: of the store, once that is known.
        framework: of the tensors that are opened.
    """

    def __init__(self, root: str, name: str, framework: str = "numpy") -> None:
        self.durability = "memory"
        self.framework = framework
        self.directory = os.path.join(root, f"{_PREFIX}{name}")
        self.catalogue, self.vectors, self.tensors = (os.path.join(self.directory, each) for each in _FOLDERS)

    @property
    def is_synced(self) -> bool:
        """Whether writing waits until the bytes are on the disk."""
        return self.durability == "fsync"

    def make(self, durability: str) -> None:
        """Make the store's folders that are missing, except the catalogue's, with no access for other users.

        Args:
            durability: of the store, if it is made now.

        Raises:
            HostilePath: another user may write there.
            OutOfSpace: there is no room.
        """
        self.check_private()
        new = [path for path in (self.directory, self.vectors, self.tensors) if not system.exists(path)]
        if new and new[0] == self.directory:
            missing = os.path.dirname(self.directory)
            while not system.exists(missing):
                new.insert(0, missing)
                missing = os.path.dirname(missing)
        for path in new:
            try:
                system.make_dir(path)
            except FileExistsError:
                pass
            if durability == "fsync":
                system.sync_dir(os.path.dirname(path))
        self.check_private()

    def check_private(self) -> None:
        """Refuse a folder in which other users may write. A missing folder passes."""
        try:
            info = system.status(self.directory)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(info.st_mode):
            why, advice = "is a link", "give the folder itself as a part of its path, or put a folder in its place"
        elif not stat.S_ISDIR(info.st_mode):
            why, advice = "is no folder", "choose another name, or remove it"
        elif info.st_uid != os.geteuid():
            why, advice = "is another user's", "choose another path"
        elif info.st_mode & 0o022:
            why, advice = "may be written by others", "chmod 700 it, if you trust what is in it, or choose another path"
        else:
            return
        raise HostilePath(f"{self.directory} {why}; {advice}", path=self.directory, reason=why)

    def exists(self) -> bool:
        """Whether there is a store."""
        return system.exists(os.path.join(self.catalogue, "data.mdb"))

    def write_note(self, text: str) -> None:
        """Write ``store.json``, for people and for programs that list stores; not if it has this text already."""
        path = os.path.join(self.directory, "store.json")
        try:
            if system.peek(path, _NOTE_NBYTES) == text.encode():
                return
        except OSError:
            pass  # it is missing, or no file
        replace_file(path, text.encode())

    # -- tensors --------------------------------------------------------------------------------------------------

    def write_tensors(self, tensors: Mapping[str, Any]) -> tuple[list[Part], int]:
        """Write the tensors of a record into new files: a file for each large one, and one for all small ones.

        Returns:
            Where the tensors lie, and how many bytes they have together.

        Raises:
            UnsupportedTensor: one has no TSR form.
            OutOfSpace: there is no room; nothing is left.
        """
        parts: list[Part] = []
        small: list[tuple[str, str, np.ndarray[Any, Any], int]] = []
        end = total = 0
        try:
            for name, tensor in tensors.items():
                dtype, array = to_array(tensor)
                total += array.nbytes
                if array.nbytes > _SMALL_NBYTES or len(tensors) == 1:
                    file = new_file_name("t")
                    parts.append(Part(name, file))
                    self._write(file, dtype, array)
                else:
                    offset = -(-end // _ALIGNMENT) * _ALIGNMENT
                    end = offset + array.nbytes
                    small.append((name, dtype.name, array, offset))
            if small:
                file, bundle = new_file_name("t"), np.zeros(end, np.uint8)
                for name, kind, array, offset in small:
                    parts.append(Part(name, file, kind, array.shape, offset))
                    copy_into(bundle.data, offset, array)
                self._write(file, _BYTES, bundle)
            if parts and self.is_synced:
                system.sync_dir(self.tensors)
        except BaseException:
            self.remove("tensors", {part.file for part in parts})
            raise
        return parts, total

    def _write(self, file: str, dtype: DType, array: np.ndarray[Any, Any]) -> None:
        # A checksum only for files on a disk: after a power cut these may have lost a part; on tmpfs all is gone.
        is_on_disk = self.durability != "memory"
        write_array(self.tensors, file, dtype, array, has_checksum=is_on_disk, is_synced=self.is_synced)

    def open_quickly(self, parts: Sequence[Part]) -> dict[str, Any] | None:
        """As :meth:`open_tensors`, for a record whose only tensor has a file of its own; None for any other record.

        Raises:
            FileNotFoundError: the file is gone.
            TSRFormatError: it is not what was written.
        """
        if len(parts) != 1 or parts[0].dtype:
            return None
        path = f"{self.tensors}/{parts[0].file}"
        return {parts[0].name: load_view(path) if self.framework == "numpy" else load(path, framework=self.framework)}

    def open_tensors(self, record_id: str, parts: Iterable[Part], *, verify: bool = False) -> dict[str, Any]:
        """The tensors of a record, as views of their files: read-only, or copy-on-write for torch.

        Args:
            record_id: for errors.
            parts: where they are.
            verify: whether to read the files and compare their checksums, if they have any.

        Raises:
            StoreCorrupt: a file is gone, or is not what was written.
        """
        found: dict[str, Any] = {}
        opened: dict[str, np.ndarray[Any, Any]] = {}  # files that several tensors share
        for part in parts:
            if not part.dtype:
                found[part.name] = self._load(record_id, part.file, verify, self.framework)
                continue
            if part.file not in opened:
                opened[part.file] = self._load(record_id, part.file, verify)
            array = opened[part.file]
            dtype = by_name(part.dtype)
            end = part.offset + dtype.itemsize * int(np.prod(part.shape, dtype=np.int64))
            if array.dtype != np.uint8 or array.ndim != 1 or end > array.size:
                raise self._lost(record_id, part.file, "is not the file that was written")
            found[part.name] = from_buffer(array.data, dtype, part.shape, part.offset, self.framework)
        return found

    def _load(self, record_id: str, file: str, verify: bool, framework: str = "numpy") -> Any:
        path = os.path.join(self.tensors, file)
        mode: Mode = "r" if self.framework == "numpy" else "c"  # torch has no read-only tensors
        try:
            has_checksum = verify and read_header(path).payload_checksum is not None
            return load(path, framework=framework, mode=mode, verify=has_checksum)
        except FileNotFoundError:
            raise self._lost(record_id, file, "is gone") from None
        except TSRFormatError as error:
            raise self._lost(record_id, file, f"is broken ({error.fault.name})") from error

    def _lost(self, record_id: str, file: str, why: str) -> StoreCorrupt:
        path = os.path.join(self.tensors, file)
        return StoreCorrupt(
            f"record {record_id!r}: {path} {why}; restore the file from a copy, give the record other tensors or none "
            "with update(), or delete it",
            path=path,
        )

    # -- files that nothing names -------------------------------------------------------------------------------------

    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Remove files; those that are gone already are passed over."""
        for name in names:
            system.unlink(os.path.join(self.directory, folder, name))

    def left_files(self) -> list[tuple[str, str]]:
        """Folder and name of each file whose writer has ended, also of those that the catalogue names."""
        found = []
        has_ended: dict[str, bool] = {}  # by the part of the name that says which process wrote the file
        for folder in ("vec", "tensors", *_PASSING):
            for name in system.list_dir(os.path.join(self.directory, folder)):
                if folder in _PASSING and not name.startswith(_PASSING[folder]):
                    continue
                made_by = name.partition("-")[2].rpartition("-")[0]
                if made_by not in has_ended:
                    writer = writer_of(name)
                    has_ended[made_by] = writer is not None and not writer.is_alive()  # None: not ours
                if has_ended[made_by]:
                    found.append((folder, name))
        return found

    def remove_left(self, folder: str, name: str) -> None:
        """Remove a file that :meth:`left_files` found and that the catalogue does not name."""
        path = os.path.join(self.directory, folder, name)
        if folder:
            system.unlink(path)
        else:
            system.remove_tree(path)  # a catalogue in the making is a directory
            if system.exists(path):
                system.unlink(path)

    def nbytes(self) -> int:
        """Bytes that all files of the store take on the file system."""
        total = 0
        for folder in ("", *_FOLDERS):
            directory = os.path.join(self.directory, folder)
            for name in system.list_dir(directory):
                try:
                    total += system.status(os.path.join(directory, name)).st_blocks * 512
                except OSError:
                    pass  # it has just gone
        return total
