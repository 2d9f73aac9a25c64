"""What a run leaves to read: Markdown tables, and the comparison with an earlier run. Pure: results in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from .machine import one_line
from .peers import OURS, PEERS
from .peers.servers import SERVERS
from .peers.stores import STORES
from .report_calls import calls
from .stats import format_nbytes, format_ratio, format_us

__all__ = ["compare", "headlines", "in_flight_labels", "table", "to_markdown"]

Results = dict[str, Any]
_HEADLINE_SIZES: Final = (1 << 10, 1 << 20, 64 << 20, 1 << 30)
_MARKS: Final = {True: "met", False: "**not met**", None: "—"}


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rules, *lines])


def _cells(results: Results) -> dict[tuple[str, int], Results]:
    return {(row["peer"], row["nbytes"]): row for row in results["sweep"]}


def _reasons(results: Results) -> dict[tuple[str, int], str]:
    return {(each["peer"], each["nbytes"]): each["reason"] for each in results["skipped"]}


def _sizes(results: Results) -> list[int]:
    return sorted({row["nbytes"] for row in results["sweep"]})


def _keys(results: Results) -> list[str]:
    """The measured peers, ours first, then as they are listed."""
    measured = {row["peer"] for row in results["sweep"]} | {each["peer"] for each in results["skipped"]}
    return [key for key in PEERS if key in measured]


def _short(reason: str) -> str:
    return reason.partition(":")[2].strip().partition(" (")[0] if reason.startswith("not run") else "failed"


def _matrix(results: Results, keys: list[str], sizes: list[int], field: str) -> str:
    cells, reasons = _cells(results), _reasons(results)

    def write(key: str, nbytes: int) -> str:
        cell = cells.get((key, nbytes))
        if cell is None:
            return _short(reasons[key, nbytes]) if (key, nbytes) in reasons else "—"
        return format_us(cell[field])

    lines = [[PEERS[key].label, *(write(key, nbytes) for nbytes in sizes)] for key in keys]
    return table(["", *map(format_nbytes, sizes)], lines)


def _headline(results: Results) -> str:
    """The table of each peer's median, with the ratio of our median to it."""
    cells, reasons = _cells(results), _reasons(results)
    sizes = [nbytes for nbytes in _HEADLINE_SIZES if nbytes in _sizes(results)]

    def write(key: str, nbytes: int) -> str:
        cell = cells.get((key, nbytes))
        if cell is None:
            return _short(reasons[key, nbytes]) if (key, nbytes) in reasons else "—"
        text = format_us(cell["median_us"])
        if key in OURS or cell["ours_ratio"] is None:
            return text
        return f"{text} (**{format_ratio(cell['ours_ratio'])}**)"

    lines = [[PEERS[key].label, *(write(key, nbytes) for nbytes in sizes)] for key in _keys(results)]
    return table(["round trip, median (ours / theirs)", *map(format_nbytes, sizes)], lines)


def _extras(extras: dict[str, Results]) -> list[str]:
    parts: list[str] = []
    names = {
        "ours": "tr_mmap",
        "ours_spin": "tr_mmap, spinning",
        "ours_torch": "tr_mmap, as torch",
        "ours_spare": "tr_mmap, a later start with a spare worker",
        "semaphore": "semaphore ping-pong",
        "pipe": "multiprocessing.Pipe",
        "zmq": "pyzmq ipc",
        "numpy_mmap": 'numpy.load(mmap_mode="r")',
        "safetensors_numpy": "safetensors, as numpy",
        "safetensors_torch": "safetensors, as torch",
        "python": "python -c pass",
        "python_numpy": 'python -c "import numpy"',
        "fresh": "a fresh process",
        "fresh_in_a_row": "a fresh process, one right after another",
        "fresh_loan": "a fresh process, a loan in",
        "reused": "a kept process",
        "reused_loan": "a kept process, a loan in",
        "kept": "a kept module",
        "kept_loan": "a kept module, a loan in",
        "start": "nothing, in a fresh process",
        "warm": "nothing, in a kept process",
        "engine_start": "nothing, in a fresh process, by its own clock",
        "engine_call": "nothing, in a kept process, by its own clock",
        "numpy": "numpy in this process",
    }
    titles = {
        "text": "A short text there and back",
        "files": "A 256 MiB file, to its first element (in the page cache)",
        "startup": "Start-up, until the worker is ready",
    }
    kinds = extras.get("sandbox", {})
    found_by_title = {title: extras.get(key, {}) for key, title in titles.items()} | {
        "`x * 2` of 64 MiB, contained": kinds.get("contained", {}),
        "The same by a module of WebAssembly": kinds.get("wasm", {}),
    }
    for title, cells in found_by_title.items():
        found = {name: each for name, each in cells.items() if isinstance(each, dict) and "n" in each}
        if found:
            lines = [
                [names.get(name, name), format_us(each["median_us"]), format_us(each["p99_us"]), str(each["n"])]
                for name, each in sorted(found.items(), key=lambda item: item[1]["median_us"])
            ]
            parts += [f"## {title}", table(["", "median", "p99", "n"], lines)]
    flight = calls(extras.get("calls", {}), table) + _in_flight(extras.get("in_flight", {}))
    flight += _pool(extras.get("pool", {}))
    return parts + flight + _store(extras.get("store", {})) + _gateway(extras.get("gateway", {}))


def in_flight_labels(found: Results) -> dict[str, str]:
    """What each row of the requests in flight is, in the order in which they are compared."""
    many = found.get("many", 4)
    depth = found.get("depth", 32)
    labels = {
        "one_by_one": "one at a time",
        "submit": f"submit(), {depth} in flight",
        "cpp_one_by_one": "from C++, one at a time",
        "cpp_submit": f"from C++, submit(), {depth} in flight",
        "gather": "awaits at once, one session",
        "gather_many": f"awaits at once, {many} sessions",
        "pool": "ProcessPoolExecutor, one process",
        "pool_many": f"ProcessPoolExecutor, {many} processes",
    }
    return {row: label for row, label in labels.items() if row in found}  # those of C++ need a compiler


def _in_flight(found: Results) -> list[str]:
    if "submit" not in found:
        return []
    lines = [
        [label, f"{1e6 / found[row]['median_us']:,.0f}", format_us(found[row]["median_us"]), str(found[row]["n"])]
        for row, label in in_flight_labels(found).items()
    ]
    calls = [
        [label, format_us(found[row]["median_us"]), format_us(found[row]["p99_us"]), str(found[row]["n"])]
        for row, label in (("blocking", "a blocking round trip"), ("await", "an await"))
    ]
    return [
        "## Many short texts at once",
        f"Every answer is checked. Awaits at once: {found['awaits']:,} tasks; beside them the same number of calls by "
        "asyncio's `run_in_executor`.",
        table(["", "requests/s", "time by requests", "batches"], lines),
        "## One short text, blocking and awaited",
        table(["", "median", "p99", "n"], calls),
    ]


POOLS: Final = {
    "ours": "SessionPool.map",
    "standard": "ProcessPoolExecutor.map",
    "imap": "multiprocessing.Pool.imap",
    "loky": "loky, map",
    "joblib": "joblib.Parallel, which batches",
    "mpire": "mpire, imap",
    "ray": "Ray, ActorPool.map",
}


def _pool(found: Results) -> list[str]:
    sizes = [name for name in found if name.isdigit()]
    if not sizes:
        return []
    lines = []
    for name, label in POOLS.items():
        cells = [found[size].get(name) for size in sizes]
        if any(cells):
            ours = [found[size]["ours"]["median_us"] for size in sizes]
            shown = [
                f"{format_us(cell['median_us'])} ({format_ratio(us / cell['median_us'])})" if cell else ""
                for us, cell in zip(ours, cells, strict=True)
            ]
            lines.append([label, *shown])
    return [
        f"## A map over new arrays, {found['workers']} processes",
        "The time of a map by the number of its items; in brackets, ours divided by theirs.",
        table(["", *(format_nbytes(int(size)) for size in sizes)], lines),
        *_broadcast(found.get("broadcast", {})),
        *_handed_on(found.get("handed_on", {})),
    ]


def _broadcast(found: Results) -> list[str]:
    if not found:
        return []
    ours, copied = (format_us(found[name]["median_us"]) for name in ("ours", "memcpy"))
    return [f"One 64 MiB tensor to four workers: {ours}; one copy of it in one process: {copied}."]


def _handed_on(found: Results) -> list[str]:
    if not found:
        return []
    cells = [f"{format_nbytes(int(nbytes))}: {format_us(each['median_us'])}" for nbytes, each in found.items()]
    return [f"A result of one worker into a request to another, which looks at its ends; {'; '.join(cells)}."]


def _store(found: Results) -> list[str]:
    """The tables of stores, and what is to be said of their peers."""
    parts: list[str] = []
    for what, title in (
        ("get", "`get` of a record with a vector of 384 numbers"),
        ("top", "The nearest 10 of {records:,} vectors of 384 numbers, exactly"),
    ):
        cells = {key: each for key, each in found.get(what, {}).items() if isinstance(each, dict)}
        if not cells:
            continue
        ours = cells.get("ours")
        lines = [
            [
                STORES[key].label,
                format_us(each["median_us"]),
                format_us(each["p99_us"]),
                format_ratio(ours["median_us"] / each["median_us"]) if ours and key != "ours" else "",
                str(each["n"]),
            ]
            for key, each in sorted(cells.items(), key=lambda item: item[1]["median_us"])
        ]
        title = title.format(records=found[what].get("records", 0))
        parts += [f"## {title}", table(["", "median", "p99", "ours / theirs", "n"], lines)]
    if "loop" in found:
        lines = [
            [
                name,
                format_us(each["median_us"]),
                format_us(each["p99_us"]),
                format_us(each["held_p99_us"]),
                format_us(each["held_most_us"]),
                str(each["calls"]),
            ]
            for name, each in found["loop"].items()
        ]
        parts += [
            "## By how much a task is late that ticks each millisecond while another one uses an `AsyncStore`",
            table(["", "late, median", "late, p99", "of it computing, p99", "computing, most", "calls"], lines),
        ]
    return parts


def _store_remarks(found: Results) -> list[str]:
    measured = {key for what in ("get", "top") for key in found.get(what, {}) if key in STORES}
    remarks = [f"- {STORES[key].label}: {STORES[key].note}." for key in STORES if key in measured and STORES[key].note]
    reasons = found.get("absent", {}) | found.get("failed", {})
    remarks += [f"- {STORES[key].label} is absent: {reason}." for key, reason in reasons.items()]
    if "writers" in found:
        each = found["writers"]
        remarks.append(
            f"- Stores: one writer adds {each['one_rate']:.0f} records a second, {each['count']} together "
            f"{each['many_rate']:.0f}."
        )
    return remarks


def _gateway(found: Results) -> list[str]:
    """The tables of servers of algorithms, and of a gateway alone."""
    parts: list[str] = []
    labels = {row: label for peer in SERVERS.values() for row, label in peer.rows.items()}
    cells = {row: each for row, each in found.get("json", {}).items() if each["rate"]}
    if cells:
        ours = cells.get("ours")
        lines = [
            [
                labels[row],
                f"{each['rate']:,.0f}",
                format_ratio(ours["rate"] / each["rate"]) if ours and row != "ours" else "",
                format_us(each["median_us"]),
                format_us(each["p99_us"]),
                str(each["bad"]),
            ]
            for row, each in sorted(cells.items(), key=lambda item: -item[1]["rate"])
        ]
        head = ["", "requests/s", "ours / theirs", "median at half of it", "p99 at half of it", "wrong or lost"]
        parts += ["## `x * 2` over HTTP: 16 numbers as JSON, 8 connections", table(head, lines)]
    large = {row: each for row, each in found.get("large", {}).items() if "median_us" in each}
    if large:
        lines = [
            [labels[row], format_us(each["median_us"]), format_us(each["p99_us"]), str(each["n"])]
            for row, each in sorted(large.items(), key=lambda item: item[1]["median_us"])
        ]
        parts += [
            "## The same: 64 MiB as bytes, there and back, one connection",
            table(["", "median", "p99", "n"], lines),
        ]
    if "alone" in found:
        each = found["alone"]
        lines = [
            ["from its start until it listens", f"{each['start_ms']:,.0f} ms"],
            ["its first simple code", f"{each['first_ms']:.1f} ms"],
            ["simple code (`output = 1 + 1`), in a fresh process", f"{each['code_ms']:.1f} ms"],
            ["the same, of an algorithm, with a spare process ready", f"{each['sandbox_ms']:.1f} ms"],
            ["a registration that needs a sandbox of other limits", f"{each['python_ms']:.0f} ms"],
            ["idle, all processes, of one core", f"{each['idle_percent']:.2f} %"],
            [f"memory of all {each['processes']} processes (PSS)", f"{each['nbytes'] / (1 << 20):.0f} MiB"],
        ]
        parts += ["## A gateway alone", table(["", "measured"], lines)]
    return parts


def _gateway_remarks(found: Results) -> list[str]:
    measured = [peer for peer in SERVERS.values() if peer.rows.keys() & found.get("json", {}).keys()]
    remarks = [f"- {next(iter(peer.rows.values()))}: {peer.note}." for peer in measured if peer.note]
    reasons = found.get("absent", {}) | found.get("failed", {}) | found.get("large", {}).get("failed", {})
    for key, reason in reasons.items():
        name = next(iter(SERVERS[key].rows.values())) if key in SERVERS else key
        remarks.append(f"- {name} is absent: {reason}")
    return remarks


def to_markdown(results: Results) -> str:
    """The whole report."""
    keys, sizes = _keys(results), _sizes(results)
    parts = [
        "# tr_mmap: benchmark",
        f"{results['created']}, {results['mode']} run of {results['seconds']:.0f} s on {one_line(results['machine'])}. "
        + ", ".join(f"{package} {version}" for package, version in results["machine"]["versions"].items())
        + ".",
    ]
    if sizes:
        parts += [
            "The client sends a float32 array, the worker answers with `x + 1`, made by one pass into the memory that "
            "it answers from, and the client reads its ends. All took turns in one run. In brackets: tr_mmap's median "
            "over that peer's, for loaned peers tr_mmap's loaned one; below 1, tr_mmap is faster. Loaned: both sides "
            "work in shared memory that they were lent, and the two passes over it are left out, so that only the "
            "hand-over is measured.",
            _headline(results),
        ]
    if results["targets"]:
        lines = [
            [each["what"], each["target"], each["measured"], _MARKS[each["is_met"]]] for each in results["targets"]
        ]
        parts += ["## Targets", table(["", "target", "measured", ""], lines)]
    if sizes:
        parts += ["## Every size: median", _matrix(results, keys, sizes, "median_us")]
        parts += ["## Every size: 99th percentile", _matrix(results, keys, sizes, "p99_us")]
    parts += _extras(results["extras"])
    remarks = [f"- {PEERS[key].label}: {PEERS[key].note}." for key in keys if PEERS[key].note]
    load, cores = results["machine"].get("load_before", 0), results["machine"]["cores"]
    if load > cores / 2:
        remarks.insert(0, f"- **The machine was busy**: a load of {load:g} on {cores} cores before it began.")
    remarks += [f"- {PEERS[key].label} is absent: {reason}." for key, reason in results["absent"].items()]
    remarks += [
        f"- {PEERS[key].label}, {format_nbytes(nbytes)}: {reason}."
        for (key, nbytes), reason in _reasons(results).items()
    ]
    remarks += _store_remarks(results["extras"].get("store", {}))
    remarks += _gateway_remarks(results["extras"].get("gateway", {}))
    if remarks:
        parts += ["## Remarks", "\n".join(remarks)]
    return "\n\n".join(parts) + "\n"


def headlines(results: Results) -> dict[str, float]:
    """The ratios that two runs are compared by: ours to each peer at headline sizes, and to floors of the extras."""
    found: dict[str, float] = {}
    for row in results["sweep"]:
        if row["nbytes"] in _HEADLINE_SIZES and row["peer"] not in OURS and row["ours_ratio"]:
            found[f"{format_nbytes(row['nbytes'])} / {PEERS[row['peer']].label}"] = row["ours_ratio"]
    pairs = (("text", "semaphore"), ("text", "zmq"), ("files", "numpy_mmap"), ("startup", "python"))
    for extra, peer in pairs:
        each = results["extras"].get(extra, {})
        if "ours" in each and peer in each:
            found[f"{extra} / {peer}"] = each["ours"]["median_us"] / each[peer]["median_us"]
    each = results["extras"].get("in_flight", {})
    for ours, other in (
        ("submit", "one_by_one"),
        ("cpp_submit", "cpp_one_by_one"),
        ("await", "blocking"),
        ("gather", "pool"),
        ("gather_many", "pool_many"),
    ):
        if ours in each and other in each:
            found[f"in flight: {ours} / {other}"] = each[ours]["median_us"] / each[other]["median_us"]
    for what, peer in (("get", "lmdb"), ("top", "numpy")):
        each = results["extras"].get("store", {}).get(what, {})
        if "ours" in each and peer in each:
            found[f"store {what} / {peer}"] = each["ours"]["median_us"] / each[peer]["median_us"]
    each = results["extras"].get("gateway", {}).get("json", {})
    for peer in ("triton", "litserve", "bentoml"):  # how long a request takes, so that less is better here, too
        if each.get("ours", {}).get("rate") and each.get(peer, {}).get("rate"):
            found[f"gateway / {peer}"] = each[peer]["rate"] / each["ours"]["rate"]
    return found


def compare(old: Results, new: Results) -> str:
    """Each headline in both runs, as a Markdown table; the last column below 1 means that we became faster."""
    before, after = headlines(old), headlines(new)
    lines = [
        [name, format_ratio(before[name]), format_ratio(ratio), f"{ratio / before[name]:.2f}"]
        for name, ratio in after.items()
        if name in before
    ]
    if not lines:
        return "The two runs have no figure in common."
    return table(["ours / theirs", "then", "now", "now / then"], lines)
