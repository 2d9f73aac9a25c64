"""Which packages algorithms get: what is allowed, what is there already, and environments of the rest.

To be used in the thread of one event loop. Installations go on in two threads of their own, so that they keep nothing
else waiting.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from packaging.utils import canonicalize_name

from ..errors import MissingPackage
from ..sandbox.starting import find_interpreter, module_paths
from .api import DependencyList, EnvironmentInfo, PackageInfo
from .environments import Environment, Environments, Lease, hash_of
from .errors import Forbidden, InstallFailed, Overloaded
from .installer import Installer, find_uv
from .logs import log
from .requirements import are_installed, check_allowed, name_of, read_requirements, version_here
from .sections import DependenciesConfig

__all__ = ["IMPORTED", "Dependencies"]

_KINDS: Final = frozenset({"python", "torch"})  # whose algorithms import
_THREADS: Final = 2
_MOST_WAITING: Final = 32
_PROBE_S: Final = 60.0

IMPORTED: Final = "import sys\noutput = sorted({each.partition('.')[0] for each in sys.modules})"
"""Code of an algorithm: which modules are imported before it runs."""

_PROBE: Final = """
import importlib.metadata, json, platform, sys, sysconfig
found = {}
for module, names in importlib.metadata.packages_distributions().items():
    found[module] = {name: importlib.metadata.version(name) for name in names}
versions = {each.metadata["Name"]: each.version for each in reversed(list(importlib.metadata.distributions()))}
version = platform.python_version()
markers = {
    "python_version": ".".join(version.split(".")[:2]),
    "python_full_version": version,
    "implementation_name": sys.implementation.name,
    "platform_python_implementation": platform.python_implementation(),
}
print(json.dumps([f"{sys.implementation.cache_tag} {version} {sysconfig.get_platform()}", found, versions, markers]))
"""


@dataclass(frozen=True, slots=True)
class _Interpreter:
    """The Python of the algorithms' processes.

    Attributes:
        about: its version and platform.
        installed: packages with their versions, by the modules that they have.
        versions: of all packages, by name.
        markers: what it is, for the conditions of requirements.
    """

    about: str
    installed: dict[str, dict[str, str]]
    versions: dict[str, str]
    markers: dict[str, str]


class Dependencies:
    """The dependencies of one gateway's algorithms.

    Args:
        config: its section of the configuration.
        imported: which modules an algorithm of a kind finds imported: those stay as they are.
        on_removal: is called with the packages' path of an environment that nobody uses, before it is removed.
        python_path: the interpreter of the algorithms' processes, if it is not the usual one.

    Raises:
        MissingPackage: uv is needed, and not installed.
        HostilePath: others may write where environments lie.
    """

    def __init__(
        self,
        config: DependenciesConfig,
        imported: Callable[[str], list[str]],
        on_removal: Callable[[str], None],
        python_path: str = "",
    ) -> None:
        self._config = config
        self._python_path = python_path
        self._imported = imported
        self._making: dict[tuple[str, tuple[str, ...]], asyncio.Future[tuple[Lease | None, bool]]] = {}
        self._provided: dict[str, tuple[_Interpreter, dict[str, str]]] = {}  # by kind
        self._environments: Environments | None = None
        if not config.auto_install:
            return
        self._installer = Installer(config, find_uv(), self._python)
        self._environments = Environments(config.cache_dir, config.max_cache_mb << 20, on_removal)
        self._threads = ThreadPoolExecutor(_THREADS, "tr_mmap-install")

    async def get(self, kind: str, declared: Iterable[str]) -> Lease | None:
        """The environment that has what an algorithm declares; None if what is installed here is what counts.

        Two that ask for the same at the same time get one installation.

        Raises:
            MissingPackage: a package is not installed, and nothing may be.
            BadDependency: a package may not, or cannot, be installed.
            InstallFailed, Overloaded: not now.
        """
        declared = tuple(declared)
        if not declared or not self.sees_to(kind):
            return None
        requirements = read_requirements(declared)
        if await self._are_there(requirements):
            return None
        if self._environments is None:
            raise MissingPackage(
                f"the algorithm needs {', '.join(requirements)}, which is not installed for {self._python_path}",
                package=name_of(requirements[0]),
            )
        return (await self._get(kind, requirements))[0]

    async def _are_there(self, requirements: tuple[str, ...]) -> bool:
        """Whether all are installed for the algorithms' interpreter."""
        if self._is_other:
            return await asyncio.to_thread(self._are_installed_there, requirements)
        return are_installed(requirements)

    def sees_to(self, kind: str) -> bool:
        """Whether :meth:`get` makes sure that algorithms of a kind have what they declare."""
        return (self._environments is not None or self._is_other) and kind in _KINDS

    @cached_property
    def _python(self) -> str:
        return find_interpreter(self._python_path or None)

    @property
    def _is_other(self) -> bool:
        """Whether the algorithms' interpreter is not this one, and may have other packages."""
        return self._python != sys.executable

    def _are_installed_there(self, requirements: tuple[str, ...]) -> bool:
        interpreter = self._interpreter
        there = {canonicalize_name(name): version for name, version in interpreter.versions.items()}
        shares = bool(module_paths(self._python))

        def version_of(name: str) -> str | None:
            return there.get(canonicalize_name(name)) or (version_here(name) if shares else None)

        return are_installed(requirements, version_of, interpreter.markers)

    @cached_property
    def _interpreter(self) -> _Interpreter:
        """May take long."""
        return _ask(self._python)

    async def make(
        self, declared: Iterable[str], used_by: Callable[[str], Iterable[str]]
    ) -> tuple[EnvironmentInfo, bool]:
        """Make an environment ahead, for algorithms of Python.

        Args:
            declared: as an algorithm would declare them.
            used_by: names of the algorithms that use the environment of a hash.

        Returns:
            The environment, with an empty hash if none is needed; and whether it was made now.

        Raises:
            Forbidden: nothing may be installed here.
            BadDependency, InstallFailed, Overloaded: as for :meth:`get`.
        """
        requirements = read_requirements(declared)
        if await self._are_there(requirements):
            return EnvironmentInfo(hash="", packages=[], nbytes=0), False
        if self._environments is None:
            raise Forbidden("nothing is installed here; see [python.dependencies] auto_install and allow")
        lease, is_new = await self._get("python", requirements)
        if lease is None:
            return EnvironmentInfo(hash="", packages=[], nbytes=0), False
        with closing(lease):
            return _info(lease.environment, used_by(lease.environment.hash)), is_new

    async def list(self, used_by: Callable[[str], Iterable[str]]) -> DependencyList:
        """All environments.

        Args:
            used_by: names of the algorithms that use the environment of a hash.
        """
        found = await asyncio.to_thread(self._environments.all) if self._environments is not None else []
        return DependencyList(
            auto_install=self._config.auto_install,
            allow=sorted(map(canonicalize_name, self._config.allow)),
            environments=[_info(each, used_by(each.hash)) for each in found],
        )

    async def close(self) -> None:
        """End installations that go on. Idempotent."""
        if self._environments is not None:
            self._installer.close()
            await asyncio.to_thread(self._threads.shutdown)

    async def _get(self, kind: str, requirements: tuple[str, ...]) -> tuple[Lease | None, bool]:
        """The environment, None if what algorithms find imported is enough; and whether it was made now."""
        assert self._environments is not None
        key = kind, requirements
        making = self._making.get(key)
        if making is None:
            if len(self._making) >= _MOST_WAITING:
                raise Overloaded(f"{_MOST_WAITING} installations wait already; try again", retry_after_s=5.0)
            loop = asyncio.get_running_loop()
            making = self._making[key] = loop.run_in_executor(self._threads, self._make, kind, requirements)
            making.add_done_callback(lambda done: self._made(key, done))
        made = await asyncio.shield(making)  # it goes on if this one is cancelled: others may wait for it, too
        lease, is_new = made
        return (None if lease is None else lease.again()), is_new

    def _made(self, key: tuple[str, tuple[str, ...]], done: asyncio.Future[tuple[Lease | None, bool]]) -> None:
        del self._making[key]
        if not done.cancelled():
            done.exception()  # nobody may wait for it any more

    # -- in a thread of the installations -------------------------------------------------------------------------

    def _make(self, kind: str, requirements: tuple[str, ...]) -> tuple[Lease | None, bool]:
        try:
            return self._make_or_find(kind, requirements)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InstallFailed("there is no room in [python.dependencies] cache_dir", retry_after_s=60.0) from error

    def _make_or_find(self, kind: str, requirements: tuple[str, ...]) -> tuple[Lease | None, bool]:
        assert self._environments is not None
        interpreter, provided = self._find_provided(kind)
        check_allowed(map(name_of, requirements), {*self._config.allow, *provided})
        began_s = time.monotonic()
        self._environments.sweep()
        with self._environments.work() as work:
            locked = self._installer.lock(requirements, provided, work.path, work.fd)
            check_allowed((each.name for each in locked), self._config.allow)
            if not locked:
                return None, False
            hash_ = hash_of(locked, interpreter.about)
            lease = self._environments.lease(hash_)
            is_new = lease is None
            if lease is None:
                self._installer.install(locked, work.path, work.fd)
                lease = self._environments.put(work, hash_, locked)
                said = {"environment": hash_, "nbytes": lease.environment.nbytes}
                log.info("an environment was made", extra={**said, "seconds": round(time.monotonic() - began_s, 3)})
            return lease, is_new

    def _find_provided(self, kind: str) -> tuple[_Interpreter, dict[str, str]]:
        """The interpreter, and the versions of packages that algorithms of a kind find imported."""
        found = self._provided.get(kind)
        if found is None:
            interpreter = self._interpreter
            versions: dict[str, str] = {
                canonicalize_name(name): version
                for module in self._imported(kind)
                for name, version in interpreter.installed.get(module, {}).items()
            }
            found = self._provided[kind] = interpreter, versions
        return found


def _ask(python: str) -> _Interpreter:
    """
    Raises:
        InstallFailed: it does not answer.
    """
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE],
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_PROBE_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise InstallFailed("the algorithms' Python does not say what it has", retry_after_s=60.0) from error
    return _Interpreter(*json.loads(done.stdout))


def _info(environment: Environment, used_by: Iterable[str]) -> EnvironmentInfo:
    return EnvironmentInfo(
        hash=environment.hash,
        packages=[PackageInfo(name, version) for name, version in environment.packages],
        nbytes=environment.nbytes,
        removed=list(environment.removed),
        used_by=sorted(used_by),
    )
