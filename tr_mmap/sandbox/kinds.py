"""The kinds of sandboxes: which executor and which runner each has, and what it needs. Runs nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import MissingPackage
from .contained import ContainedExecutor
from .host import NO_MARGIN, Host, Margin
from .interface import Allow, Executor, Limits
from .kept import Kept
from .native import NATIVE_MARGIN, NativeExecutor
from .torch_model import TORCH_MARGIN, TorchExecutor
from .wasm import WASM_MARGIN, WasmExecutor, check_wasm

__all__ = ["KINDS", "PLANNED", "Kind", "find_kind", "is_installed"]


_AT_START: Final = ("LD_", "PYTHON", "MALLOC_", "GLIBC_")
"""Prefixes of variables that are read when a program starts. The algorithms get their variables later."""


def _check_contained(limits: Limits, allow: Allow) -> None:
    for name in allow.env:
        if name.startswith(_AT_START):
            raise ValueError(
                f"Allow(env={{{name!r}: ...}}) has no effect: {name} is read when a program starts, and that of the "
                "algorithms has started before; leave it out (libraries of a library: link with -Wl,-rpath,directory)"
            )
    if limits.fuel is not None:
        raise ValueError("fuel is a limit of kind 'wasm'; elsewhere, limit cpu_ms")


def _make_contained(name: str, runner: str, host: Host, *_: Any) -> Executor:
    return ContainedExecutor(name, runner, host)


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        name: what users give as ``kind``.
        runner: the module of ``runners/`` that runs its algorithms.
        executor: makes the executor, which gives the algorithms to contained processes.
        packages: packages that it needs.
        extra: the extra of this package that installs them.
        has_source: whether a text is the algorithm's source; else a text is the path of a file.
        preload: modules that the zygote imports, beside the runner.
        has_imports: whether its algorithms can import packages.
        check: raises ValueError if it cannot keep one of the limits, or give one of the grants.
        margin: what its runner itself needs beyond the limits.
    """

    name: str
    runner: str
    executor: Callable[[str, str, Host, Allow, Kept], Executor]
    packages: tuple[str, ...] = ()
    extra: str = "sandbox"
    has_source: bool = True
    preload: tuple[str, ...] = ()
    has_imports: bool = False
    check: Callable[[Limits, Allow], None] = field(default=_check_contained)
    margin: Margin = NO_MARGIN

    def make(
        self,
        limits: Limits,
        allow: Allow,
        required_layers: Iterable[str],
        preload: Iterable[str],
        packages: tuple[str, ...],
        spares: int,
        kept: Kept,
        python: str | None = None,
    ) -> Executor:
        """An executor of this kind.

        Args:
            limits: of each run.
            allow: what the algorithms are granted.
            required_layers: layers without which it refuses to start.
            preload: modules that the zygote imports.
            packages: directories of packages that the algorithms can import.
            spares: how many processes to keep ready.
            kept: the cache that the sandbox's executors share, because a change of limits replaces the executor.
            python: the interpreter of its processes; None for the usual one. With another one, that process reports
                packages that are not installed there.

        Raises:
            MissingPackage: one of its packages, or of ``preload``, is not installed.
            SandboxBroken: a required layer is missing, or a process could not be started.
            ValueError: it cannot keep one of the limits, or give one of the grants, or it imports no packages.
        """
        self.check(limits, allow)
        if packages and not self.has_imports:
            raise ValueError(f"algorithms of kind {self.name!r} import no packages; leave packages out")
        preload = tuple(preload)
        for package in self.packages:
            if python is None and not is_installed(package):
                text = f"sandboxes of kind {self.name!r} need {package}: pip install 'tr_mmap[{self.extra}]'"
                raise MissingPackage(text, package=package)
        for package in sorted({each.partition(".")[0] for each in preload}):
            if python is None and not is_installed(package):
                raise MissingPackage(f"preload names {package}, which is not installed", package=package)
        modules = (*preload, *self.preload, f"{__package__}.runners.{self.runner}")
        host = Host(limits, allow, required_layers, modules, spares, self.margin, packages, python)
        return self.executor(self.name, self.runner, host, allow, kept)


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # None in sys.modules, or a module that was made by hand
        return False


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("contained", "python_code", _make_contained, has_imports=True),
        Kind(
            "wasm",
            "wasm",
            WasmExecutor,
            packages=("wasmtime",),
            preload=(f"{__package__}.runners.wasm_warm",),
            check=check_wasm,
            margin=WASM_MARGIN,
        ),
        Kind("native", "native", NativeExecutor, has_source=False, margin=NATIVE_MARGIN),
        Kind(
            "torch",
            "torch_model",
            TorchExecutor,
            packages=("torch",),
            extra="torch",
            has_imports=True,
            margin=TORCH_MARGIN,
        ),
    )
}


PLANNED: Final = {"python-wasm": "kind 'python-wasm' (Python inside of WebAssembly) is not in this version"}
"""Kinds that have no executor yet, and the error text for each."""


def find_kind(name: str) -> Kind:
    """The kind of a name.

    Raises:
        ValueError: there is no such kind.
    """
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(map(repr, KINDS))
        raise ValueError(f"{PLANNED.get(name, f'there is no kind of sandbox {name!r}')}; there are {known}") from None
