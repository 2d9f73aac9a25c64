"""``tr-mmap sandbox``: run one algorithm that is not trusted, and see what this machine has of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from ..sandbox import Sandbox
    from ..sandbox.interface import Algorithm, ComputeResponse
    from .sandbox_arguments import Arguments

__all__ = ["app"]

_FAILED, _WRONG, _LIMIT, _NOT_ALLOWED, _BROKEN, _INTERRUPTED = 1, 2, 3, 4, 5, 130  # exit statuses; see _RUN_HELP
_RUN_HELP = """Run an algorithm that is not trusted, once, in a process that the kernel contains.

FILE is Python source (.py), a module of WebAssembly (.wasm), a shared library (.so), or a model of torch (.pt, .pt2).

tr-mmap sandbox run double.py --input x=a.npy --limit memory=256M
tr-mmap sandbox run words.wasm --input stdin="to be or not"
tr-mmap sandbox run numbers.wasm --function add --arg 2 --arg 3

Exit status: 0 it ran; 1 the algorithm failed; 2 these arguments are wrong;
3 a limit was exceeded; 4 it tried what is not allowed; 5 the sandbox does not work here.
"""
_DOCTOR_HELP = """Say which layers and kinds this machine has; and of what is missing, why, and what to do.

Exit status: 0 if algorithms of the default kind run, else 5.
"""

app = typer.Typer(no_args_is_help=True, help="Run algorithms that are not trusted.")


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"tr-mmap: {message}", err=True)
    raise typer.Exit(status)


@app.command(help=_RUN_HELP)
def run(
    file: Annotated[Path, typer.Argument(help="The algorithm.", metavar="FILE")],
    input_: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input: a file .npy, .tsr or .safetensors (FILE:TENSOR if it has several), or a value as JSON, "
            "or another text; - for the text of the standard input.",
        ),
    ] = [],  # noqa: B006 - typer makes a new one
    arg: Annotated[
        list[str],
        typer.Option(metavar="VALUE", help="An argument of the function, as VALUE of --input; of a command, a text."),
    ] = [],  # noqa: B006
    limit: Annotated[
        list[str],
        typer.Option(
            "--limit",
            "-l",
            metavar="NAME=VALUE",
            help="memory=256M, wall=5s, cpu=500ms, stack=8M, output=64M, disk=16M, cores=1, threads=64, fuel=1000000.",
        ),
    ] = [],  # noqa: B006
    function: Annotated[str | None, typer.Option(help="The function; else the usual choice.", metavar="NAME")] = None,
    kind: Annotated[str | None, typer.Option(help="Instead of the one that FILE's ending says.")] = None,
    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            metavar="DIR|NAME=FILE",
            help="Write all results into a directory, or one into a file (.npy, .tsr, .json); do not print them.",
        ),
    ] = [],  # noqa: B006
    preload: Annotated[list[str], typer.Option(metavar="MODULE", help="A module to import before, beside numpy.")] = [],  # noqa: B006
    env: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="A variable of its environment.")] = [],  # noqa: B006
    allow_read: Annotated[
        list[Path], typer.Option(metavar="PATH", help="A file, or a directory with all beneath, that it may read.")
    ] = [],  # noqa: B006
    allow_net: Annotated[bool, typer.Option("--allow-net", help="It may use the network, all of it.")] = False,
    allow_clock: Annotated[bool, typer.Option("--allow-clock", help="It may ask the time (WebAssembly).")] = False,
    allow_random: Annotated[bool, typer.Option("--allow-random", help="It gets random bytes (WebAssembly).")] = False,
    allow_syscall: Annotated[
        list[str], typer.Option(metavar="NAME", help="A system call that is not on the list.")
    ] = [],  # noqa: B006
    require: Annotated[
        list[str], typer.Option(metavar="LAYER", help="Refuse to run without these layers, instead of the usual ones.")
    ] = [],  # noqa: B006
    traceback: Annotated[bool, typer.Option("--traceback", help="Print where the algorithm failed, too.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print one object of JSON, errors too.")] = False,
) -> None:
    """See ``_RUN_HELP``."""
    from . import sandbox_arguments, sandbox_screens

    with _errors(is_json=is_json, has_traceback=traceback):
        arguments = sandbox_arguments.read(
            file, kind, input_, arg, limit, output, env, allow_read, allow_syscall,
            net=allow_net, clock=allow_clock, random=allow_random,
        )  # fmt: skip
        with _open(arguments, preload, require) as box:
            algorithm = box.register(file.stem, arguments.code, function)
            response = _run(box, algorithm, arguments)
            written = sandbox_arguments.write_outputs(response.outputs, arguments.outputs)
            sandbox_screens.show_response(response, arguments.kind, box.layers, written, is_json=is_json)


def _open(arguments: Arguments, preload: list[str], require: list[str]) -> Sandbox:
    from ..sandbox import Sandbox
    from ..sandbox.box import REQUIRED_LAYERS

    modules = ("numpy", *preload) if arguments.kind == "contained" else tuple(preload)
    return Sandbox(
        arguments.kind,
        limits=arguments.limits,
        allow=arguments.allow,
        required_layers=require or REQUIRED_LAYERS,
        preload=modules,
    )


def _run(box: Sandbox, algorithm: Algorithm, arguments: Arguments) -> ComputeResponse:
    from . import sandbox_arguments

    if not arguments.arguments:
        return box.run(algorithm, arguments.inputs)
    if algorithm.function == "_start":  # of a command
        return box.run(algorithm, {**arguments.inputs, "arguments": arguments.arguments})
    if arguments.inputs or algorithm.function is None:
        raise sandbox_arguments.WrongArgument(
            "a function gets either --input or --arg"
            if arguments.inputs
            else "--arg is for functions: name one by --function"
        )
    values = [sandbox_arguments.value_of("--arg", each) for each in arguments.arguments]
    return box.run(algorithm, arguments=values)


@contextmanager
def _errors(*, is_json: bool, has_traceback: bool) -> Iterator[None]:
    """Say what went wrong in a line, or in JSON, and end with a status of its own."""
    from ..errors import MissingPackage, TRException
    from ..sandbox import AlgorithmError, LimitExceeded, NotAllowed, SandboxBroken
    from . import sandbox_screens
    from .sandbox_arguments import WrongArgument

    try:
        yield
    except (TRException, WrongArgument, ValueError, TypeError) as error:  # of what was given to the sandbox
        statuses = {
            AlgorithmError: _FAILED,
            LimitExceeded: _LIMIT,
            NotAllowed: _NOT_ALLOWED,
            SandboxBroken: _BROKEN,
            MissingPackage: _BROKEN,
        }
        status = next((status for kind, status in statuses.items() if isinstance(error, kind)), _WRONG)
        if is_json:
            sandbox_screens.show_error(error, status)
            raise typer.Exit(status) from None
        if has_traceback and (frames := getattr(error, "traceback", "")):
            typer.echo(sandbox_screens.harmless(frames.rstrip()), err=True)
        _fail(sandbox_screens.line_of(error), status)
    except KeyboardInterrupt:
        _fail("interrupted; the algorithm was ended", _INTERRUPTED)


@app.command(help=_DOCTOR_HELP)
def doctor(is_json: Annotated[bool, typer.Option("--json", help="Print one object of JSON.")] = False) -> None:
    """See ``_DOCTOR_HELP``."""
    from ..sandbox.diagnosis import diagnose
    from . import sandbox_screens

    found = diagnose()
    sandbox_screens.show_diagnosis(found, is_json=is_json)
    if not found.is_well:
        raise typer.Exit(_BROKEN)
