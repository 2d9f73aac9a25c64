"""The command ``tr-mmap``: arguments in, text out.

Each command calls one function of another room and prints what it returns. Nothing is computed here. A command imports
what it needs when it runs, so that ``tr-mmap --help`` imports neither numpy nor another room.
"""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from . import doctor, gateway, sandbox, store

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="tr_mmap: tensors between processes, uncopied.")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(store.app, name="store")
app.command()(doctor.doctor)
app.command()(gateway.serve)
app.command()(gateway.token)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from .. import __version__

        typer.echo(f"tr-mmap {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What every command takes."""


@app.command()
def include() -> None:
    """Print the directory of the C++ headers: g++ -I"$(tr-mmap include)" x.cpp -pthread."""
    from ..cpp import include_dir

    typer.echo(str(include_dir()))


@app.command()
def cmake_dir() -> None:
    """Print the directory of the CMake package: cmake -B build -Dtr_mmap_DIR="$(tr-mmap cmake-dir)"."""
    from ..cpp import cmake_dir as find

    typer.echo(str(find()))


def main() -> None:
    """Run the command line."""
    try:
        app()
    finally:
        gc.freeze()  # the interpreter's last collections would look through all that was imported
