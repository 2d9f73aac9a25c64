"""What ``tr-mmap sandbox`` prints: text for people, or one JSON object. Escapes control characters of algorithms."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import typer

from ..sandbox import AlgorithmError, LimitExceeded, NotAllowed, SandboxBroken
from ..sandbox.box import REQUIRED_LAYERS
from ..sandbox.diagnosis import Diagnosis

if TYPE_CHECKING:
    from ..sandbox import ComputeResponse

__all__ = ["harmless", "line_of", "show_diagnosis", "show_error", "show_response"]

_OPTIONS: Final = {
    "read": "grant it with --allow-read {detail}",
    "write": "an algorithm gives its results as outputs; in /tmp alone it may write",
    "net": "fetch the data before, and give it with --input; or grant --allow-net",
    "processes": "an algorithm is one process",
    "syscalls": "grant it with --allow-syscall NAME, if you trust the algorithm so far",
    "clock": "grant it with --allow-clock",
    "random": "grant it with --allow-random",
}
_LIMIT_NAMES: Final = {"wall_ms": "wall", "cpu_ms": "cpu", "cpu_cores": "cores"}
_MAX_LINE: Final = 400


def harmless(text: str) -> str:
    """Escape what a terminal might take for a command: each character that cannot be printed becomes its number."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def _echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, allow_nan=False))


# -- runs -------------------------------------------------------------------------------------------------------------


def show_response(
    response: ComputeResponse, kind: str, layers: frozenset[str], written: Mapping[str, Path], *, is_json: bool
) -> None:
    """Print the results of a run; for a result that was written to a file, the file's name."""
    if is_json:
        _echo_json(_response_as_json(response, kind, layers, written))
        return
    if response.stdout:
        typer.echo(harmless(response.stdout), nl=not response.stdout.endswith("\n"))
    for name, value in response.outputs.items():
        label = harmless(name).replace("\n", "\\n")
        if name in written:
            typer.echo(f"{label}: {_kind_of(value)}written to {written[name]}")
        elif isinstance(value, np.ndarray):
            typer.echo(f"{label}: {value.dtype} {_shape_of(value)}")
            width = max(40, shutil.get_terminal_size().columns)
            typer.echo(np.array2string(value, max_line_width=width))
        elif (name, value) != ("exit_code", 0):  # of a command, whose text is what counts
            typer.echo(f"{label}: {_value_text(value)}")
    typer.echo(f"({kind}, {response.execution_time_ms:.1f} ms)", err=True)


def _kind_of(value: Any) -> str:
    return f"{value.dtype} {_shape_of(value)}, " if isinstance(value, np.ndarray) else ""


def _shape_of(array: np.ndarray[Any, Any]) -> str:
    return "×".join(map(str, array.shape)) or "scalar"


def _value_text(value: Any) -> str:
    return harmless(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _response_as_json(
    response: ComputeResponse, kind: str, layers: frozenset[str], written: Mapping[str, Path]
) -> dict[str, Any]:
    tensors = {name: each for name, each in response.outputs.items() if isinstance(each, np.ndarray)}
    return {
        "id": response.id,
        "kind": kind,
        "layers": sorted(layers),
        "values": {name: each for name, each in response.outputs.items() if name not in tensors},
        "tensors": {
            name: {
                "dtype": str(each.dtype),
                "shape": list(each.shape),
                **({"file": str(written[name])} if name in written else {"data": _numbers(each)}),
            }
            for name, each in tensors.items()
        },
        "stdout": response.stdout,
        "execution_time_ms": response.execution_time_ms,
        "copied_nbytes": response.copied_nbytes,
    }


def _numbers(array: np.ndarray[Any, Any]) -> Any:
    """The elements in nested lists: complex numbers as pairs; NaN and infinity, which JSON lacks, as texts."""
    if array.dtype.kind == "c":
        return _numbers(np.stack([array.real, array.imag], -1))
    if array.dtype.kind not in "biuf":
        array = array.astype(np.float64)
    return _without_nan(array.tolist()) if array.dtype.kind == "f" else array.tolist()


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return value if math.isfinite(value) else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


# -- errors -----------------------------------------------------------------------------------------------------------


def line_of(error: Exception) -> str:
    """One line that says what happened and what to do."""
    if isinstance(error, LimitExceeded):
        short = _LIMIT_NAMES.get(error.limit, error.limit.removesuffix("_nbytes"))
        more = _size(error.limit, error.value * 2 or 1 << 20)
        text = (
            f"limit exceeded: it needed more than {short}={_size(error.limit, error.value)}; "
            f"if it may have more, raise it, say --limit {short}={more}"
        )
    elif isinstance(error, NotAllowed):
        detail = error.detail or "what it tried"
        text = f"not allowed ({error.rule}): {detail}; {_OPTIONS[error.rule].format(detail=detail)}"
    elif isinstance(error, AlgorithmError):
        text = f"the algorithm failed: {_last_line(str(error))}{_place(error.traceback)}"
    elif isinstance(error, SandboxBroken) and set(error.layers) <= set(REQUIRED_LAYERS) and error.layers:
        text = (
            f"this machine lacks {', '.join(error.layers)}; see 'tr-mmap sandbox doctor', or, if you trust it "
            "so far, name the layers that it needs with --require"
        )
    else:
        text = str(error)
    return harmless(" ".join(text.split()))[:_MAX_LINE]


def _size(limit: str, number: float) -> str:
    if limit.endswith("_ms"):
        return f"{number / 1000:g}s" if number >= 1000 else f"{number:g}ms"
    value = int(number)
    if limit.endswith("_nbytes"):
        for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value and value % size == 0:
                return f"{value // size}{unit}"
    return str(value)


def _last_line(text: str) -> str:
    """An error's text in one line. A SyntaxError's text begins with the source: only its last line and the place."""
    lines = [each.strip() for each in text.splitlines() if each.strip()] or ["no reason given"]
    if len(lines) > 1 and lines[0].startswith("File "):
        return f"{lines[-1]} ({lines[0].rpartition(', ')[2]})"
    return " ".join(lines)


def _place(frames: str) -> str:
    found = [each.strip() for each in frames.splitlines() if each.lstrip().startswith('File "')]
    return f" ({found[-1].partition(', ')[2]}; --traceback shows more)" if found else ""


def show_error(error: Exception, status: int) -> None:
    """Print an error as JSON."""
    fields = {name: value for name, value in vars(error).items() if name != "message"}
    _echo_json({"error": {"kind": type(error).__name__, "message": str(error), "exit_status": status, **fields}})


# -- doctor -----------------------------------------------------------------------------------------------------------


def show_diagnosis(found: Diagnosis, *, is_json: bool) -> None:
    """Print what a machine has."""
    if is_json:
        _echo_json(
            {
                "is_well": found.is_well,
                "user": found.user,
                "kernel": found.kernel,
                "layers": [vars(each) for each in found.layers],
                "kinds": [vars(each) for each in found.kinds],
            }
        )
        return
    layers = [
        (
            each.name,
            "active" if each.is_active else "MISSING" if each.is_required else "missing",
            each.keeps if each.is_active else f"{each.reason}. It would keep: {each.keeps}",
        )
        for each in found.layers
    ]
    kinds = [
        (
            each.name,
            "works" if each.works else "no",
            f"{each.detail}, started in {each.start_ms:.0f} ms" if each.works else each.detail,
        )
        for each in found.kinds
    ]
    _show_table(f"Layers for {found.user} on {found.kernel}", layers)
    _show_table("Kinds of algorithms", kinds)
    typer.echo(
        "Algorithms of the default kind run here."
        if found.is_well
        else "Algorithms of the default kind do not run here; the table says why."
    )


def _show_table(title: str, rows: list[tuple[str, str, str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # an extra
        typer.echo(title)
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for name, state, text in rows:
            typer.echo(f"  {name:{widths[0]}}  {state:{widths[1]}}  {text}")
        typer.echo("")
        return
    colours = {"active": "green", "works": "green", "MISSING": "bold red", "missing": "yellow", "no": "yellow"}
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, state, text in rows:
        table.add_row(name, f"[{colours[state]}]{state}[/]", text.replace("[", r"\["))
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    console.print()
