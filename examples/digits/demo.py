"""The demo: real data through a worker, every result checked against the same computation done here.

Handwritten digits are classified in another process, two matrices multiplied there, a 64 MiB array looked into, a text
exchanged; then each process says at which address it has the data, and in which mapping of which file. Exits with
status 1 if any check fails. Needs rich (the extra ``demo``); run by ``sh tools/demo``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from worker import mapping_of, nearest

import tr_mmap

FOLDER: Final = Path(__file__).resolve().parent
KNOWN: Final = 1000  # digits that the worker learns; it is asked for the rest
REPEATS: Final = 7  # of each request; the table shows the median
TIMEOUT_MS: Final = 10_000
MATRIX: Final = (1024, 1024)
LOAN: Final = (4096, 4096)  # float32: 64 MiB


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was done, the bytes that crossed, times in ms, and how it was checked."""

    what: str
    nbytes: int
    worker_ms: float
    here_ms: float | None
    is_right: bool
    check: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process has a tensor: the address, and the fields of the line of /proc/self/maps around it."""

    who: str
    address: str
    extent: str
    mode: str
    device: str
    inode: str
    path: str

    @classmethod
    def parse(cls, who: str, line: str) -> Place:
        """Read what ``worker.mapping_of`` says."""
        address, extent, mode, _offset, device, inode, path = line.split(maxsplit=6)
        return cls(who, address, extent, mode, device, inode, path)

    def is_shared_segment(self) -> bool:
        """True if the bytes are those of a mapped .tsr file, not a copy of them."""
        return self.mode.endswith("s") and self.path.removesuffix(" (deleted)").endswith(".tsr")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Do it ``REPEATS`` times after once for warming up; the last result and the median time in ms."""
    result = work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = work()
        times.append((time.perf_counter() - start) * 1e3)
    return result, statistics.median(times)


def text_row(session: tr_mmap.PythonSession) -> Row:
    """A short message and its answer."""
    answer, worker_ms = timed(lambda: session.fetch_response("hello world", TIMEOUT_MS))
    return Row('text, "hello world"', len("hello world"), worker_ms, None, answer == "Hello World", f'"{answer}"')


def digits_row(session: tr_mmap.PythonSession) -> Row:
    """The worker learns the first digits and is asked for the others."""
    images = tr_mmap.load(FOLDER / "digits.tsr", verify=True)
    labels = tr_mmap.load(FOLDER / "labels.tsr", verify=True)
    session.send_tensor(images[:KNOWN], "images")
    session.send_tensor(labels[:KNOWN], "labels")
    learned = session.fetch_response("learn images labels", TIMEOUT_MS)

    asked, truth = images[KNOWN:], labels[KNOWN:]
    found, worker_ms = timed(lambda: session.calculate("classify", asked, timeout_ms=TIMEOUT_MS))
    expected, here_ms = timed(lambda: nearest(asked, images[:KNOWN], labels[:KNOWN]))
    accuracy = float((found == truth).mean())
    is_right = learned == f"{KNOWN} digits known" and np.array_equal(found, expected) and accuracy > 0.95
    return Row(
        f"{len(asked)} digits classified",
        asked.nbytes + found.nbytes,
        worker_ms,
        here_ms,
        is_right,
        f"{accuracy:.1%} right",
    )


def matrix_row(session: tr_mmap.PythonSession) -> tuple[Row, np.ndarray]:
    """A product of two matrices; returns it too."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(MATRIX, dtype=np.float32) for _ in range(2))
    product, worker_ms = timed(lambda: session.calculate("matmul", a, b, timeout_ms=TIMEOUT_MS))
    expected, here_ms = timed(lambda: a @ b)
    difference = float(np.abs(product - expected).max())
    is_right = product.shape == MATRIX and difference < 1e-3
    size = a.nbytes + b.nbytes + product.nbytes
    check = f"off by {difference:.0e}" if difference else "equal"
    return Row("matrix product, 1024 x 1024", size, worker_ms, here_ms, is_right, check), product


def torch_row(session: tr_mmap.PythonSession) -> Row | None:
    """The same with torch tensors, through the same worker, which knows only numpy; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.manual_seed(0)
    a, b = (torch.randn(MATRIX) for _ in range(2))
    product, worker_ms = timed(lambda: session.calculate("matmul", a, b, timeout_ms=TIMEOUT_MS))
    expected, here_ms = timed(lambda: a @ b)
    is_right = isinstance(product, torch.Tensor) and torch.allclose(product, expected, atol=1e-3)
    size = a.nbytes + b.nbytes + product.nbytes
    return Row("the same, from torch to torch", size, worker_ms, here_ms, is_right, "within 1e-3")


def loan_row(session: tr_mmap.PythonSession) -> tuple[Row, np.ndarray]:
    """64 MiB that are filled where the worker maps them; returns the loan too, sent as ``loan``."""
    loan = session.empty(LOAN, "float32")
    loan[:] = np.arange(LOAN[1], dtype=np.float32)
    session.send_tensor(loan, "loan")
    corner, worker_ms = timed(lambda: session.fetch_tensor("corner loan", TIMEOUT_MS))
    return Row(
        "loan, its corner read", loan.nbytes, worker_ms, None, np.array_equal(corner, loan[:8, :8]), "equal"
    ), loan


def mark(is_right: bool) -> str:
    """A tick or a cross, in letters where the terminal has no such signs."""
    is_utf = sys.stdout.encoding.lower().startswith("utf")
    return ("✓" if is_right else "✗") if is_utf else ("ok" if is_right else "WRONG")


def size_text(nbytes: int) -> str:
    """Bytes for people: 11 B, 50 KiB, 12 MiB."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.0f} {unit}"
    return f"{nbytes} B"


def results_table(rows: list[Row]) -> Table:
    """What was done and how long it took, the round trip beside the same work done here."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("sent and answered", no_wrap=True)
    table.add_column("data", justify="right", no_wrap=True)
    table.add_column("worker", justify="right", no_wrap=True)
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("checked", no_wrap=True)
    for row in rows:
        here = "" if row.here_ms is None else f"{row.here_ms:.2f} ms"
        check = Text(f"{mark(row.is_right)} {row.check}", style="green" if row.is_right else "bold red")
        table.add_row(row.what, size_text(row.nbytes), f"{row.worker_ms:.2f} ms", here, check)
    return table


def places_table(places: list[Place]) -> Table:
    """The lines of /proc/self/maps, without their paths."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "data at", "lies in the mapping", "mode", "file"):
        table.add_column(name, no_wrap=True)
    for place in places:
        table.add_row(place.who, place.address, place.extent, place.mode, f"{place.device} {place.inode}")
    return table


def show_proof(console: Console, session: tr_mmap.PythonSession, loan: np.ndarray, product: np.ndarray) -> bool:
    """Print where each process has the data; True if they are the same bytes of the same file."""
    ours = Place.parse("loan here", mapping_of(loan))
    theirs = Place.parse("loan worker", session.fetch_response("where loan", TIMEOUT_MS))
    received = Place.parse("product here", mapping_of(product))
    console.print(places_table([ours, theirs, received]))
    console.print(Text(f"loan:    {ours.path}\nproduct: {received.path}", style="dim", overflow="fold"))
    is_same_file = (ours.device, ours.inode) == (theirs.device, theirs.inode)
    return is_same_file and all(place.is_shared_segment() for place in (ours, theirs, received))


def verdict(console: Console, text: str, is_right: bool) -> bool:
    """Print one check's outcome, and pass it on."""
    console.print(Text(f"{mark(is_right)} {text}", style="green" if is_right else "bold red"))
    return is_right


def run(console: Console, channel: str) -> bool:
    """The whole demo; True if every check holds."""
    console.print(
        f"[bold]tr_mmap {tr_mmap.__version__}[/bold]: one controller, one worker, and tensors in memory that both map"
    )
    start = time.perf_counter()
    with tr_mmap.PythonSession(
        FOLDER / "worker.py", session_id=f"demo_{os.getpid()}", quiet_mode=True, channel=channel
    ) as session:
        console.print(
            f"worker ready after {(time.perf_counter() - start) * 1e3:.0f} ms; times are medians of {REPEATS}"
        )
        matrices, product = matrix_row(session)
        loans, loan = loan_row(session)
        rows = [text_row(session), digits_row(session), matrices, loans]
        if (tensors := torch_row(session)) is not None:
            rows.insert(3, tensors)
        console.print(results_table(rows))
        outcomes = [row.is_right for row in rows]
        outcomes.append(verdict(console, "every result is what the same computation gives here", all(outcomes)))
        if os.path.exists("/proc/self/maps"):
            is_mapped = show_proof(console, session, loan, product)
            outcomes.append(
                verdict(console, "both processes have mapped one file: nothing was copied between them", is_mapped)
            )
        folder = session.session_dir()
    is_clean = not session.is_alive() and not os.path.exists(folder)
    outcomes.append(verdict(console, "the worker has ended and the session directory is gone", is_clean))
    return all(outcomes)


def main() -> int:
    """Parse the command line, run, and say how it went."""
    parser = argparse.ArgumentParser(description="Send real tensors through a worker and check every result.")
    parser.add_argument("--channel", choices=["mapped", "files"], default="mapped", help="how messages travel")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show is no reason to fail
    console = Console(highlight=False)
    try:
        return 0 if run(console, arguments.channel) else 1
    except tr_mmap.TRException as error:
        console.print(f"[bold red]{type(error).__name__}[/bold red]: {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
