"""Environments on disk: directories of packages, each named by what is in it. Installs nothing, executes nothing.

Beside each other in one directory, which only this user can use::

    <64 hexadecimal digits>/environment.json     what it has
    <64 hexadecimal digits>/packages/            for sys.path
    .new-<16 digits>/                            one that is being made; renamed at its end, when it is read-only
    .gone-<16 digits>/                           one that is being removed

Whoever uses or makes one holds the lock (flock) of its directory, shared or exclusive; the kernel releases it when
they end. So several gateways may share a directory, and what nobody holds may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from ..base import system
from ..errors import HostilePath
from ..wire.names import GONE_PREFIX, NEW_PREFIX
from . import package_trees
from .errors import BadConfig, InstallFailed
from .installer import PACKAGES
from .requirements import Locked, lock_text

__all__ = ["Environment", "Environments", "Lease", "Work", "hash_of"]

_ABOUT: Final = "environment.json"
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MOST_ABOUT_NBYTES: Final = 4 << 20


class Environment(msgspec.Struct, frozen=True):
    """What an environment has.

    Attributes:
        hash: of the packages with their hashes, and of what they are for; it is the environment's name.
        id: of this directory: one that is made again has another.
        packages: their names and versions.
        nbytes: that it takes.
        removed: what packages brought, and may not have: by its path.
    """

    hash: str
    id: str
    packages: tuple[tuple[str, str], ...]
    nbytes: int
    removed: tuple[str, ...] = ()


def hash_of(locked: tuple[Locked, ...], python: str) -> str:
    """The name of the environment of these packages, for a version of Python on a platform."""
    return hashlib.sha256(f"{python}\n{lock_text(locked)}".encode()).hexdigest()


class Lease:
    """An environment that is not removed before :meth:`close`, or before nobody has this object any more."""

    def __init__(self, environment: Environment, path: str, fd: int) -> None:
        self.environment = environment
        self.packages = os.path.join(path, PACKAGES)
        self._fd = fd

    def again(self) -> Lease:
        """Another one, of the same environment. This one must not be closed yet."""
        return Lease(self.environment, os.path.dirname(self.packages), os.dup(self._fd))  # the lock is of both

    def close(self) -> None:
        """Let it be removed. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.utime(fd)  # which was used for longest not, is the first to be removed
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Work:
    """A directory in which an environment is made.

    Attributes:
        path: of it.
        fd: has its lock; for whoever works there, too.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd


class Environments:
    """Those of one directory. Threads, and processes, may use it at once.

    Args:
        folder: the directory, which is made if it is not there.
        most_nbytes: of all of them.
        on_removal: is called with the packages' path of one that nobody uses, and that is about to be removed, or was
            removed by another process and made again.

    Raises:
        BadConfig: the directory cannot be made.
        HostilePath: others may write there.
    """

    def __init__(self, folder: str, most_nbytes: int, on_removal: Callable[[str], None]) -> None:
        self._folder = folder
        self._most_nbytes = most_nbytes
        self._on_removal = on_removal
        self._ids: dict[str, str] = {}  # of those that were used here
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            option = "python.dependencies.cache_dir"
            text = f"{option}: {folder} cannot be made: {error.strerror}; name a directory that the gateway may make"
            raise BadConfig(text, key=option, path=folder) from error
        status = os.stat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise HostilePath(
                f"others may write in {folder}, where packages lie that algorithms import: chmod 700 {folder}, or give "
                "another [python.dependencies] cache_dir",
                path=folder,
                reason="others may write there",
            )
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed processes have left."""
        for name in os.listdir(self._folder):
            if name.startswith((NEW_PREFIX, GONE_PREFIX)):
                path = os.path.join(self._folder, name)
                with _locked(path) as is_ours:
                    if is_ours:
                        package_trees.remove(path)
            elif _is_hash(name) and _read(os.path.join(self._folder, name)) is None:
                self._remove(os.path.join(self._folder, name))  # it is damaged

    def lease(self, hash_: str) -> Lease | None:
        """The environment of a hash, for as long as it is needed; None if it is not there."""
        path = os.path.join(self._folder, hash_)
        fd = _lock(path, fcntl.LOCK_SH)
        if fd is None:
            return None
        try:
            about = _read(path)
            if about is None:
                os.close(fd)
                return None
        except BaseException:
            os.close(fd)
            raise
        lease = Lease(about, path, fd)
        if self._ids.setdefault(hash_, about.id) != about.id:
            self._ids[hash_] = about.id
            self._on_removal(lease.packages)
        return lease

    @contextmanager
    def work(self) -> Iterator[Work]:
        """A new directory to work in. Whatever is there at the end is removed, unless it has become an environment."""
        fd = None
        while fd is None:  # else another process has taken it for one that was left, before it was locked
            path = os.path.join(self._folder, NEW_PREFIX + secrets.token_hex(8))
            system.make_dir(path)
            fd = _lock(path, fcntl.LOCK_EX)
        try:
            yield Work(path, fd)
        finally:
            package_trees.remove(path)
            os.close(fd)

    def put(self, work: Work, hash_: str, locked: tuple[Locked, ...]) -> Lease:
        """Make an environment of what was installed.

        Raises:
            BadDependency: a package has what it may not have.
            InstallFailed: there is no room for it.
        """
        packages = os.path.join(work.path, PACKAGES)
        removed = package_trees.clean(packages)
        with os.scandir(work.path) as found:
            for entry in found:
                if entry.name == PACKAGES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    package_trees.remove(entry.path)
                else:
                    os.unlink(entry.path)
        nbytes = package_trees.size_of(packages)
        self._make_room(nbytes)
        about = Environment(
            hash_, secrets.token_hex(8), tuple((each.name, each.version) for each in locked), nbytes, removed
        )
        with open(os.path.join(work.path, _ABOUT), "wb") as file:
            file.write(msgspec.json.encode(about))
        package_trees.make_read_only(work.path)
        try:
            os.rename(work.path, os.path.join(self._folder, hash_))
            system.sync_dir(self._folder)
        except OSError:
            if not os.path.isdir(os.path.join(self._folder, hash_)):  # else somebody else has made the same
                raise
        fcntl.flock(work.fd, fcntl.LOCK_UN)
        lease = self.lease(hash_)
        if lease is None:
            raise InstallFailed("the environment was removed as it was made; try again", retry_after_s=1.0)
        return lease

    def all(self) -> list[Environment]:
        """Those that are there, by hash."""
        found = (_read(os.path.join(self._folder, name)) for name in sorted(os.listdir(self._folder)) if _is_hash(name))
        return [each for each in found if each is not None]

    def _make_room(self, nbytes: int) -> None:
        """Remove those that nobody uses, the one that was not used for longest first, until there is room for another.

        Raises:
            InstallFailed: the others leave none.
        """
        found = self.all()
        total_nbytes = nbytes + sum(each.nbytes for each in found)
        for each in sorted(found, key=lambda each: _used_s(os.path.join(self._folder, each.hash))):
            if total_nbytes <= self._most_nbytes:
                return
            if self._remove(os.path.join(self._folder, each.hash)):
                total_nbytes -= each.nbytes
        if total_nbytes > self._most_nbytes:
            raise InstallFailed(
                f"an environment of {-(-nbytes // (1 << 20))} MiB has no room beside those that algorithms use; "
                "unregister some, or raise [python.dependencies] max_cache_mb",
                retry_after_s=60.0,
            )

    def _remove(self, path: str) -> bool:
        """Remove one, unless somebody uses it. Returns whether it is gone."""
        with _locked(path) as is_ours:
            if not is_ours:
                return not os.path.exists(path)
            self._on_removal(os.path.join(path, PACKAGES))
            gone = os.path.join(self._folder, GONE_PREFIX + secrets.token_hex(8))
            os.rename(path, gone)
            package_trees.remove(gone)
            return True


def _lock(path: str, how: int) -> int | None:
    """A descriptor of a directory that has its lock; None if it is not there, or others have the lock."""
    try:
        fd = system.open_dir(path)
    except OSError:
        return None
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        if system.is_same_file(fd, path):  # it may have been removed, and another one made, before the lock
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


@contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Hold the exclusive lock of a directory. Whether it is there, and nobody else has a lock."""
    fd = _lock(path, fcntl.LOCK_EX)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _read(path: str) -> Environment | None:
    """What a directory says that it has; None if it is none."""
    try:
        fd = system.open_private_file(os.path.join(path, _ABOUT))
    except (OSError, HostilePath):
        return None
    with open(fd, "rb") as file:
        try:
            found = msgspec.json.decode(file.read(_MOST_ABOUT_NBYTES), type=Environment)
        except msgspec.MsgspecError:
            return None
    return found if found.hash == os.path.basename(path) else None


def _is_hash(name: str) -> bool:
    return _HASH.fullmatch(name) is not None


def _used_s(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
