"""``tr-mmap serve`` runs a gateway; ``tr-mmap token`` makes a token for a client."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..gateway.scopes import FORMS

if TYPE_CHECKING:
    from ..gateway.config import Config

__all__ = ["serve", "token"]

_WRONG, _BROKEN = 2, 5  # exit statuses, as of tr-mmap sandbox
_CONFIG = typer.Option("--config", "-c", help="The configuration (TOML).", metavar="FILE")
_DEFAULT = Path("tr_mmap.toml")


def _fail(message: str, status: int = _WRONG) -> NoReturn:
    typer.echo(f"tr-mmap: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def _kept() -> Iterator[None]:
    """Keep garbage collection away from what is imported in the body: 200,000 objects that live as long as the process.

    Without this a collection during a request, and those at the end of the process, would look through all of them.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _read(path: Path) -> Config:
    try:
        from ..gateway.config import Config
        from ..gateway.errors import BadConfig
    except ModuleNotFoundError as error:
        _fail(f"the package {error.name} is missing: pip install 'tr_mmap[gateway]'", _BROKEN)
    try:
        return Config.from_toml(path)
    except BadConfig as error:
        _fail(str(error))


def serve(config: Annotated[Path, _CONFIG] = _DEFAULT) -> None:
    """Serve algorithms, models and tasks over HTTP, until SIGINT or SIGTERM.

    Exit status: 0 it was ended; 2 the configuration is wrong; 5 it cannot run here.
    """
    import logging
    import sys

    read = _read(config)
    try:
        with _kept():
            from ..errors import HostilePath, TRException
            from ..gateway.errors import BadConfig
            from ..gateway.gateway import Gateway
            from ..gateway.logs import JsonFormatter
    except ModuleNotFoundError as error:
        _fail(f"the package {error.name} is missing: pip install 'tr_mmap[gateway]'", _BROKEN)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("tr_mmap", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        gateway = Gateway(read)
    except (BadConfig, HostilePath) as error:  # a key, or an audit log, that others can read or write
        _fail(f"{config}: {error}")
    except TRException as error:
        _fail(str(error), _BROKEN)
    gateway.request_log.write_to(sys.stderr.fileno())
    try:
        did_listen = gateway.serve(lambda url: typer.echo(f"serving on {url}; documentation at {url}/docs", err=True))
    except BadConfig as error:
        _fail(f"{config}: {error}")
    except TRException as error:
        _fail(str(error), _BROKEN)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), _BROKEN)
    if not did_listen:
        _fail("the gateway was ended before it had started", _BROKEN)


def token(
    config: Annotated[Path, _CONFIG] = _DEFAULT,
    scope: Annotated[
        list[str],
        typer.Option(help=f"What it grants: {FORMS}. May be repeated."),
    ] = ["execute"],  # noqa: B006 - typer makes a new one
    subject: Annotated[str, typer.Option(help="Whose it is.")] = "me",
    days: Annotated[float, typer.Option(help="How long it is valid.", min=0.0001)] = 30.0,
) -> None:
    """Print a token for the gateway, as the last line. Makes the key file if it is not there."""
    read = _read(config)
    from ..errors import TRException
    from ..gateway.tokens import Tokens, make_key_file, read_key_file

    path = read.auth.key_file
    try:
        if path is not None and make_key_file(path):
            typer.echo(f"made the key file {path}", err=True)
        made = Tokens(read_key_file(path), read.auth.audience).make(subject, scope, days * 86_400)
    except (TRException, ValueError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"the key file {path} cannot be made: {error.strerror}")
    typer.echo(made)
