"""``tr-mmap store``: look at a store of records, change it, and move records in and out."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

if TYPE_CHECKING:
    from ..store import Record, Store

__all__ = ["app"]

_FAILED: Final = 1
_WRONG: Final = 2
_INTERRUPTED: Final = 130
_CUT_SHORT: Final = 141  # as a shell says of a program that wrote to a pipe nobody reads
_MOST_LINES: Final = 20  # of records that could not be read
_is_vector: Final = re.compile(r"\[[\s\d.,eE+\-\[\]]*").fullmatch  # numbers in brackets, even if one is missing
# JSON leaves these as they are; a terminal may take them for commands, or turn the line around.
_unsafe: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

app = typer.Typer(no_args_is_help=True, help="A memory of records that processes share.")

_Name = Annotated[str, typer.Argument(help="The store's name.", metavar="STORE")]
_Path = Annotated[Path | None, typer.Option(help="The folder that the store is in; else yours.", metavar="DIR")]
_Filter = Annotated[str | None, typer.Option("--filter", help="Only these: a filter, as JSON.", metavar="JSON")]
_User = Annotated[str | None, typer.Option(help="Only this user's.", metavar="USER")]
_Embed = Annotated[bool, typer.Option("--embed", help="Let the bundled embedder make vectors of texts.")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """An error is one line, and the exit status says of which kind."""
    from ..errors import BadMessage, TRException
    from ..store.errors import NoSuchStore

    try:
        yield
    except TRException as error:
        _say(str(error), error)
        raise typer.Exit(_WRONG if isinstance(error, BadMessage | NoSuchStore) else _FAILED) from None
    except BrokenPipeError:  # the program that reads our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python fails again when it flushes the rest at exit
        raise typer.Exit(_CUT_SHORT) from None
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error), error)
        raise typer.Exit(_FAILED) from None
    except KeyboardInterrupt as error:
        _say("interrupted", error)
        raise typer.Exit(_INTERRUPTED) from None


def _say(text: str, error: BaseException | None = None) -> None:
    """Print one line to stderr: a text, then the notes of an error, which say how much was done before it."""
    typer.echo("; ".join((f"tr-mmap: {text}", *getattr(error, "__notes__", ()))), err=True)


@contextmanager
def _opened(
    name: str,
    path: Path | None,
    *,
    before_made: Callable[[str, Path | None], None] | None = None,
    may_embed: bool = False,
    is_embedded: bool = False,
) -> Iterator[Store]:
    """Open the store for one command; with the bundled embedder, if the command needs it and the store uses it.

    Args:
        name: of the store.
        path: the folder that it is in; None for the user's own.
        before_made: called before a missing store is made; None to refuse a missing store.
        may_embed: whether the command makes vectors of texts.
        is_embedded: whether the user asked for the bundled embedder.
    """
    with _one_line_errors():
        from ..store import Store
        from ..store.places import find_store, no_store, note_of, root_of

        root = find_store(name, path)
        if root is None:
            if before_made is None:
                raise no_store(name, path)
            before_made(name, path)
            root = find_store(name, path)
        noted = {} if root is None else note_of(root, name)
        theirs = noted.get("embedder")
        embedder = None
        if may_embed:
            from ..store.embedders import E5, bundled

            embedder = bundled(E5.name if is_embedded else theirs, is_wanted=is_embedded)
        root = root_of(path, "memory") if root is None else root
        with Store(name, root, embedder=embedder, durability=noted.get("durability")) as store:
            if embedder is None and theirs is not None and before_made is not None:
                _say(
                    f"the vectors of this store are made by {theirs}; that is not here, so texts that are added get "
                    "none, and are found by their words"
                )
            yield store


def _json_of(text: str | None, what: str) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        _say(f"{what} is no JSON: {error}")
        raise typer.Exit(_WRONG) from None


def _print_line(shown: dict[str, Any]) -> None:
    """Print one line of JSON, with non-ASCII letters as they are if the output's encoding is UTF."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(shown, ensure_ascii=not is_utf)
    typer.echo(_unsafe.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _print_record(record: Record, **more: Any) -> None:
    """Print a record as a line of JSON; of tensors, the dtypes and shapes only."""
    from ..store.records import FIELDS

    shown = {
        "id": record.id,
        "version": record.version,
        **{name: value for name in FIELDS if (value := getattr(record, name)) not in (None, {})},
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        **({} if record.expires_at is None else {"expires_at": record.expires_at}),
        **({} if record.vector is None else {"dim": record.vector.size}),
        **(
            {"tensors": {n: [t.dtype.name, list(t.shape)] for n, t in record.tensors.items()}} if record.tensors else {}
        ),
        **more,
    }
    _print_line(shown)


@app.command("ls")
def list_(
    name: Annotated[str | None, typer.Argument(help="The store's name; else list the stores.", metavar="STORE")] = None,
    path: _Path = None,
    filter_: _Filter = None,
    user_id: _User = None,
    limit: Annotated[int | None, typer.Option(help="How many at most.", metavar="N")] = None,
) -> None:
    """List the stores; or the records of one, newest first: a line of JSON each."""
    if name is None:
        if (given := (filter_, user_id, limit)) != (None, None, None):
            option = next(o for o, v in zip(("--filter", "--user-id", "--limit"), given, strict=True) if v is not None)
            _say(f"{option} chooses records; say of which store")
            raise typer.Exit(_WRONG)
        with _one_line_errors():
            from ..store.places import Places, note_of, roots_of, stores_in

            if path is not None:
                path.stat()  # a folder that is not there is a mistake
            found = {root: stores_in(root) for root in roots_of(path)}
            if not any(found.values()):
                typer.echo(f"there are no stores in {' or '.join(found)}", err=True)
            for root, names in found.items():
                for each in names:
                    noted = note_of(root, each)
                    shown = {key: noted[key] for key in ("durability", "dim", "embedder") if noted.get(key) is not None}
                    places = Places(root, each)
                    _print_line({"name": each, "directory": places.directory, "bytes": places.nbytes(), **shown})
        return
    filters = _json_of(filter_, "--filter")
    with _opened(name, path) as store:
        from ..store import StoreCorrupt
        from ..store.arguments import check_limit

        check_limit(limit)
        lost: list[Exception] = []
        count = 0
        for each in store.ids(filters=filters, user_id=user_id):
            if count == limit:
                break
            try:
                record = store.get(each)
            except StoreCorrupt as error:
                lost.append(error)
                continue
            if record is not None:
                _print_record(record)
                count += 1
        _name_lost(lost)
        if lost:
            raise typer.Exit(_FAILED)


def _name_lost(lost: Sequence[Exception]) -> None:
    """Name the records that could not be read."""
    for error in lost[:_MOST_LINES]:
        _say(f"left out: {error}")
    if len(lost) > _MOST_LINES:
        _say(f"left out: {len(lost) - _MOST_LINES} others")


@app.command()
def add(
    name: _Name,
    content: Annotated[str, typer.Argument(help="The text; - for the standard input.", metavar="TEXT")],
    path: _Path = None,
    id_: Annotated[str | None, typer.Option("--id", help="Its name; else a new one.", metavar="ID")] = None,
    user_id: Annotated[str | None, typer.Option(help="Whose it is.", metavar="USER")] = None,
    vector: Annotated[str | None, typer.Option(help="Its vector: a list of numbers.", metavar="JSON")] = None,
    metadata: Annotated[str | None, typer.Option(help="Its metadata: an object.", metavar="JSON")] = None,
    importance: Annotated[float, typer.Option(help="0 to 1.", metavar="X")] = 0.5,
    ttl_s: Annotated[float | None, typer.Option(help="After how many seconds it is gone.", metavar="S")] = None,
    is_embedded: _Embed = False,
) -> None:
    """Add a record, and print its id. Makes the store if there is none."""
    given = {"vector": _json_of(vector, "--vector"), "metadata": _json_of(metadata, "--metadata"), "user_id": user_id}
    given |= {"id": id_, "importance": importance, "ttl_s": ttl_s}
    given["content"] = _text_of(_input()) if content == "-" else content

    def check(*_: object) -> None:
        from ..store.incoming import check_record

        check_record(given)  # no store is made for what it would not take

    with _opened(name, path, before_made=check, may_embed=True, is_embedded=is_embedded) as store:
        typer.echo(store.add(**given))


def _input() -> TextIO:
    """The standard input."""
    if sys.stdin is None:
        _say("there is no standard input")
        raise typer.Exit(_FAILED)
    return sys.stdin


def _text_of(file: TextIO) -> str:
    try:
        return file.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        _say(f"the standard input is no text: {error}")
        raise typer.Exit(_WRONG) from None


@app.command()
def search(
    name: _Name,
    query: Annotated[str, typer.Argument(help="A text; or a vector: numbers in [ ].", metavar="QUERY")],
    path: _Path = None,
    filter_: _Filter = None,
    user_id: _User = None,
    limit: Annotated[int, typer.Option(help="How many at most.", metavar="N")] = 10,
    mode: Annotated[str, typer.Option(help="text: by words; exact: by vectors; auto.", metavar="MODE")] = "auto",
) -> None:
    """Search, and print what was found, the best first: a line of JSON each."""
    asked = _json_of(query, "the vector") if mode != "text" and _is_vector(query) else query
    filters = _json_of(filter_, "--filter")
    with _opened(name, path, may_embed=mode != "text") as store:
        found = store.search(asked, filters=filters, user_id=user_id, limit=limit, mode=mode)  # type: ignore[arg-type]
        for hit in found:
            _print_record(hit.record, score=hit.score)


@app.command()
def get(name: _Name, id_: Annotated[str, typer.Argument(metavar="ID")], path: _Path = None) -> None:
    """Print one record as a line of JSON; exit status 1 if there is none."""
    with _opened(name, path) as store:
        record = store.get(id_)
        if record is None:
            typer.echo(f"tr-mmap: there is no record {id_!r}", err=True)
            raise typer.Exit(_FAILED)
        _print_record(record)


@app.command()
def export(
    name: _Name,
    directory: Annotated[Path, typer.Argument(help="Is made: records.jsonl, tensors.safetensors.", metavar="DIR")],
    path: _Path = None,
    filter_: _Filter = None,
) -> None:
    """Write records, their vectors and tensors into a new directory."""
    filters = _json_of(filter_, "--filter")
    with _opened(name, path) as store:
        from ..store.exchange import export_to

        with _progress("export") as step:
            written, lost = export_to(store, directory, filters, step)
    _name_lost(lost)
    typer.echo(f"{_records(written)} written to {directory}" + (f", {len(lost)} left out" if lost else ""), err=True)
    if lost:
        raise typer.Exit(_FAILED)


@app.command("import")
def import_(
    name: _Name,
    source: Annotated[
        str, typer.Argument(help="An exported directory, a file of JSON lines, or - for lines from the standard input.")
    ],
    path: _Path = None,
    is_embedded: _Embed = False,
    is_going_on: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out the records whose ids are there already.")
    ] = False,
) -> None:
    """Add the records that export has written, or a file of JSON lines. Makes the store if there is none."""
    with _one_line_errors():
        from ..store.embedders import E5
        from ..store.incoming import import_from, make_for, read_lines, read_source

        found = read_lines(_input().buffer) if source == "-" else read_source(Path(source))
        make = partial(make_for, found, embedder=E5.name if is_embedded else None)
    with (
        _opened(name, path, before_made=make, may_embed=True, is_embedded=is_embedded) as store,
        _progress("import") as step,
    ):
        added, skipped = import_from(store, found, is_going_on=is_going_on, step=step)
    typer.echo(f"{_records(added)} added" + (f", {skipped} were there" if skipped else ""), err=True)


@app.command()
def check(name: _Name, path: _Path = None) -> None:
    """Look at all that the store holds; exit status 1 if something is wrong with it."""
    with _opened(name, path) as store:
        wrong = store.check()
        stats = store.stats()
    for line in wrong:
        typer.echo(_unsafe.sub("?", line))
    if wrong:
        raise typer.Exit(_FAILED)
    typer.echo(f"sound: {_records(stats.records)}, {stats.vectors} with a vector, {stats.disk_nbytes} bytes")


@app.command()
def compact(name: _Name, path: _Path = None) -> None:
    """Remove expired records, and free the files and rows of vectors that no record uses."""
    with _opened(name, path) as store:
        before = store.stats().disk_nbytes
        rows = store.compact()
        typer.echo(f"{rows} rows freed; {before} bytes before, {store.stats().disk_nbytes} after")


@app.command("rm")
def remove(
    name: _Name,
    path: _Path = None,
    is_sure: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Remove a store with all its records, also one that is broken. Asks first."""
    with _one_line_errors():
        from ..store.places import Places, find_store, no_store, remove_store

        root = find_store(name, path)
        if root is None:
            raise no_store(name, path)
        places = Places(root, name)
        if not is_sure:
            typer.echo(f"Remove {places.directory} with {places.nbytes()} bytes? [y/N] ", err=True, nl=False)
            answer = _input().readline()
            if not answer:
                typer.echo(err=True)
                _say("nothing was removed: there is no answer; say --yes to be asked nothing")
                raise typer.Exit(_WRONG)
            if answer.strip().lower() not in ("y", "yes"):
                _say("nothing was removed")
                raise typer.Exit(_FAILED)
        remove_store(root, name)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[Iterable[Any], int], Iterable[Any]]]:
    """A progress bar on stderr, if rich is installed and stderr is a terminal."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda several, _: several
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield lambda several, total: progress.track(several, total=total, description=what)
