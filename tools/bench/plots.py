"""The pictures of a run: latency against size, bandwidth against size, and what each peer takes beside tr_mmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .machine import one_line
from .peers import OURS, PEERS
from .peers.servers import SERVERS
from .report import in_flight_labels
from .stats import format_nbytes, format_us

__all__ = ["draw_all", "spread"]

Results = dict[str, Any]

_OURS: Final = "#d1410c"
_STRONG: Final = "#1f4e79"  # the strongest peer
_PEER: Final = "#8a9099"
_FLOOR: Final = "#b9bec5"
_INK: Final = "#22262b"
_MUTED: Final = "#6b7178"
_LINES: Final = {  # colour, width, dashes; the others are plain peers
    "ours": (_OURS, 2.6, "-"),
    "ours-loaned": (_OURS, 2.6, (0, (5, 1.6))),
    "ours-spin": (_OURS, 1.4, "-"),
    "ours-loaned-spin": (_OURS, 1.4, (0, (5, 1.6))),
    "cpp-loaned": (_OURS, 1.4, (0, (1, 1.4))),
    "iceoryx2": (_STRONG, 1.8, "-"),
    "iceoryx2-loaned": (_STRONG, 1.8, (0, (5, 1.6))),
    "passes": (_FLOOR, 1.4, (0, (1, 1.4))),
    "semaphore": (_FLOOR, 1.4, (0, (1, 1.4))),
}
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#c9cdd2",
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "white",
    "svg.hashsalt": "tr_mmap",
}
_DPI: Final = 180


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near the wanted ones, in the same order, and at least ``gap`` apart.

    Neighbours that are too close form a block around the middle of what its members want.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, list[int]]] = []  # the lowest position, and the members from there on
    for index in order:
        members = [index]
        low = wanted[index]
        while blocks and blocks[-1][0] + len(blocks[-1][1]) * gap > low:
            members = blocks.pop()[1] + members
            low = sum(wanted[each] - place * gap for place, each in enumerate(members)) / len(members)
        blocks.append((low, members))
    placed = [0.0] * len(wanted)
    for low, members in blocks:
        for place, index in enumerate(members):
            placed[index] = low + place * gap
    return placed


def _series(results: Results, key: str) -> tuple[list[int], list[float]]:
    cells = sorted((row["nbytes"], row["median_us"]) for row in results["sweep"] if row["peer"] == key)
    return [nbytes for nbytes, _ in cells], [us for _, us in cells]


def _keys(results: Results) -> list[str]:
    measured = {row["peer"] for row in results["sweep"]}
    return [key for key in PEERS if key in measured]


def _title(figure: Figure, text: str, under: str, results: Results) -> None:
    figure.text(0.012, 0.985, text, fontsize=15, fontweight="bold", va="top")
    figure.text(0.012, 0.93, under, fontsize=10, color=_MUTED, va="top")
    figure.text(
        0.012,
        0.012,
        f"{one_line(results['machine'])} · medians of one interleaved run, {results['created']}",
        fontsize=7.5,
        color=_MUTED,
        va="bottom",
    )


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [format_nbytes(nbytes) for nbytes in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.12)
    axes.set_xlabel("size of the tensor, each way")
    axes.grid(visible=False, axis="x")


def _lines(axes: Axes, series: dict[str, tuple[list[int], list[float]]]) -> None:
    for key, (x, y) in series.items():
        colour, width, dashes = _LINES.get(key, (_PEER, 1.2, "-"))
        rank = 4 if key.startswith("ours") else 3 if key in _LINES else 2
        axes.plot(x, y, color=colour, linewidth=width, linestyle=dashes, zorder=rank, solid_capstyle="round")
        axes.plot(x, y, "o", color=colour, markersize=4 if rank == 4 else 2.6, zorder=rank, clip_on=False)


def _label_ends(axes: Axes, series: dict[str, tuple[list[int], list[float]]], grows: bool) -> None:
    """Write the peers' names at the right, far enough apart to be read, each joined to the end of its line.

    Args:
        grows: how a line that ends early would go on, which decides where its name wants to be: in proportion to the
            size (as latency does), or level.
    """
    low, high = np.log(axes.get_ylim())
    first, last = np.log(axes.get_xlim())
    ends = {key: (x[-1], y[-1]) for key, (x, y) in series.items()}
    widest = max(x for x, _ in ends.values())
    heights = [(np.log(y) - low) / (high - low) for _, y in ends.values()]
    wanted = [(np.log(y * (widest / x if grows else 1)) - low) / (high - low) for x, y in ends.values()]
    places = spread(wanted, 0.044)
    shift = max(0.0, -min(places)) + min(0.0, 1.0 - max(places))
    for (key, (x, _)), height, place in zip(ends.items(), heights, places, strict=True):
        colour = _LINES.get(key, (_PEER, 0, ""))[0]
        colour = _MUTED if colour in (_PEER, _FLOOR) else colour
        at = (np.log(x) - first) / (last - first)
        place += shift
        axes.plot(
            [at + 0.008, 1.015, 1.03], [height, height if at > 0.9 else place, place],
            color="#d5d8dc", linewidth=0.7, transform=axes.transAxes, clip_on=False, zorder=1,
        )  # fmt: skip
        axes.text(
            1.035, place, PEERS[key].label, transform=axes.transAxes, color=colour, va="center", fontsize=9.5,
            fontweight="bold" if key in ("ours", "ours-loaned") else "normal",
        )  # fmt: skip


def draw_latency(results: Results) -> Figure:
    """Round trip against size; both axes logarithmic."""
    series = {key: _series(results, key) for key in _keys(results)}
    sizes = sorted({row["nbytes"] for row in results["sweep"]})
    figure, axes = plt.subplots(figsize=(10, 6.4))
    figure.subplots_adjust(left=0.075, right=0.765, top=0.85, bottom=0.135)
    axes.set_yscale("log")
    _size_axis(axes, sizes)
    _lines(axes, series)
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    axes.set_yticks(powers, [format_us(us).replace(".00", "").replace(".0", "") for us in powers])
    axes.set_ylim(low, high)
    axes.minorticks_off()
    _label_ends(axes, series, grows=True)
    _title(
        figure,
        "A tensor to another process, and an answer of the same size",
        "Round trip; lower is better. Loaned (dashed): both sides work in shared memory; the hand-over is left.",
        results,
    )
    return figure


def _per_second(gigabytes: float) -> str:
    for unit, scale in (("GB", 1), ("MB", 1e3)):
        if gigabytes * scale > 0.9:
            return f"{gigabytes * scale:g} {unit}/s"
    return f"{gigabytes * 1e6:g} kB/s"


def draw_bandwidth(results: Results) -> Figure:
    """Payload moved in a second, there and back; loans move none, so they are left out."""
    keys = [key for key in _keys(results) if not PEERS[key].is_loaned and key != "semaphore"]
    series = {}
    for key in keys:
        x, y = _series(results, key)
        series[key] = (x, [2 * nbytes / us / 1e3 for nbytes, us in zip(x, y, strict=True)])
    sizes = sorted({row["nbytes"] for row in results["sweep"]})
    figure, axes = plt.subplots(figsize=(10, 6.4))
    figure.subplots_adjust(left=0.075, right=0.765, top=0.85, bottom=0.135)
    axes.set_yscale("log")
    _size_axis(axes, sizes)
    _lines(axes, series)
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    axes.set_yticks(powers, [_per_second(value) for value in powers])
    axes.set_ylim(low, high)
    axes.minorticks_off()
    _label_ends(axes, series, grows=False)
    _title(
        figure,
        "How much of the memory's speed is left",
        "Payload there and back in a second; higher is better. Dotted: the same two passes over memory in one process.",
        results,
    )
    return figure


def draw_bars(results: Results) -> Figure:
    """How many times as long as tr_mmap each peer takes, at up to three sizes."""
    present = sorted({row["nbytes"] for row in results["sweep"] if row["ours_ratio"]})
    sizes = [nbytes for nbytes in (1 << 10, 1 << 20, 64 << 20) if nbytes in present] or present[:3]
    times: dict[str, dict[int, float]] = {}
    for row in results["sweep"]:
        key = row["peer"]
        ratio = row["loaned_ratio"] if PEERS[key].is_loaned else row["ours_ratio"]
        if row["nbytes"] in sizes and ratio and key not in OURS and not PEERS[key].is_floor:
            times.setdefault(key, {})[row["nbytes"]] = 1 / ratio
    keys = sorted(times, key=lambda key: times[key].get(sizes[-1], float("inf")))
    figure, panels = plt.subplots(1, len(sizes), figsize=(10, 1.9 + 0.36 * len(keys)), sharey=True, squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.2, right=0.99, top=1 - 1.15 / height, bottom=0.62 / height, wspace=0.12)
    for axes, nbytes in zip(panels[0], sizes, strict=True):
        _bar_panel(axes, nbytes, keys, times)
    axes = panels[0][0]
    axes.set_yticks(range(len(keys)), [PEERS[key].label for key in keys])
    axes.tick_params(axis="y", colors=_INK)
    axes.invert_yaxis()
    _title(
        figure,
        "How many times as long as tr_mmap",
        "Right of the line tr_mmap is faster. Loaned peers are measured against tr_mmap's loans.",
        results,
    )
    for text, inches in zip(figure.texts, (0.12, 0.45, None), strict=True):
        if inches is not None:
            text.set_y(1 - inches / height)
    return figure


def _bar_panel(axes: Axes, nbytes: int, keys: list[str], times: dict[str, dict[int, float]]) -> None:
    axes.set_xscale("log")
    every = [value for each in times.values() for value in each.values()]
    low, high = min(0.8, *every), max(2.0, *every)
    axes.set_xlim(low / (high / low) ** 0.3, high * (high / low) ** 0.2)
    for place, key in enumerate(keys):
        value = times[key].get(nbytes)
        if value is None:
            axes.text(1.08, place, "not run", va="center", color=_MUTED, fontsize=8.5)
            continue
        is_ahead = value >= 1
        axes.barh(place, value - 1, left=1, height=0.62, color=_OURS if is_ahead else _STRONG, alpha=0.88, linewidth=0)
        text = f"{value:,.0f} ×" if value >= 9.95 else f"{value:.1f} ×" if value >= 1.095 else f"{value:.2f} ×"
        axes.text(
            value * 1.12 if is_ahead else value / 1.12, place, text, va="center", ha="left" if is_ahead else "right",
            fontsize=9, color=_INK,
        )  # fmt: skip
    axes.axvline(1, color=_INK, linewidth=1)
    axes.text(1, -0.85, format_nbytes(nbytes), ha="center", va="bottom", fontsize=10.5, fontweight="bold")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.minorticks_off()
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def draw_in_flight(results: Results) -> Figure:
    """Requests a second of each way to have many short texts under way."""
    found = results["extras"]["in_flight"]
    labels = in_flight_labels(found)
    figure, axes = plt.subplots(figsize=(10, 1.75 + 0.42 * len(labels)))
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.27, right=0.97, top=1 - 0.85 / height, bottom=0.7 / height)
    rates = [1e6 / found[row]["median_us"] for row in labels]
    for place, (row, rate) in enumerate(zip(labels, rates, strict=True)):
        colour = _PEER if row.startswith("pool") else _OURS
        axes.barh(
            place, rate, height=0.6, color=colour, alpha=0.55 if row.endswith("one_by_one") else 0.88, linewidth=0
        )
        axes.text(rate, place, f" {rate:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(labels)), labels.values())
    axes.tick_params(axis="y", colors=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(rates) * 1.12)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:,.0f}")
    axes.set_xlabel("requests a second")
    axes.grid(visible=False, axis="y")
    _title(
        figure,
        "Short texts, many at once",
        f"Each answer is checked. Awaits, and calls to ProcessPoolExecutor: {found['awaits']:,} at once, in asyncio.",
        results,
    )
    for text, inches in zip(figure.texts, (0.12, 0.45, None), strict=True):
        if inches is not None:
            text.set_y(1 - inches / height)
    return figure


def draw_gateway(results: Results) -> Figure:
    """Requests a second of each server of algorithms, and how long a request takes at half that rate."""
    labels = {row: label for peer in SERVERS.values() for row, label in peer.rows.items()}
    cells = {row: each for row, each in results["extras"]["gateway"]["json"].items() if each["rate"]}
    rows = sorted(cells, key=lambda row: -cells[row]["rate"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.9 + 0.42 * len(rows)), sharey=True)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.235, right=0.98, top=1 - 0.85 / height, bottom=0.62 / height, wspace=0.08)
    for place, row in enumerate(rows):
        colour = _OURS if row.startswith("ours") else _STRONG if row == "triton" else _PEER
        each = cells[row]
        left.barh(place, each["rate"], height=0.6, color=colour, alpha=0.88, linewidth=0)
        left.text(each["rate"], place, f" {each['rate']:,.0f}", va="center", fontsize=9)
        right.plot(
            [each["median_us"], each["p99_us"]], [place, place], color=colour, linewidth=3, solid_capstyle="butt"
        )
        right.plot(each["median_us"], place, "o", color=colour, markersize=6)
        right.text(each["p99_us"] * 1.12, place, format_us(each["p99_us"]), va="center", fontsize=9)
    left.set_yticks(range(len(rows)), [labels[row] for row in rows])
    left.tick_params(axis="y", colors=_INK)
    left.invert_yaxis()
    left.set_xlim(0, max(each["rate"] for each in cells.values()) * 1.18)
    left.set_xlabel("requests a second")
    right.set_xscale("log")
    right.set_xlim(
        min(each["median_us"] for each in cells.values()) / 1.6, max(each["p99_us"] for each in cells.values()) * 2.6
    )
    right.xaxis.set_major_formatter(lambda us, _: format_us(us).replace(".00", "").replace(".0", ""))
    right.minorticks_off()
    right.set_xlabel("at half of that rate: median (dot) to 99th percentile")
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    _title(
        figure,
        "x * 2 over HTTP",
        "16 numbers as JSON, 8 connections. tr_mmap checks a token and runs the code in a sandbox; no other does.",
        results,
    )
    for text, inches in zip(figure.texts, (0.12, 0.45, None), strict=True):
        if inches is not None:
            text.set_y(1 - inches / height)
    return figure


def draw_all(results: Results, directory: Path) -> list[Path]:
    """Write each picture as PNG and SVG.

    Returns:
        The paths written; none if the run has nothing to draw.
    """
    drawn: list[tuple[str, Callable[[Results], Figure]]] = []
    if any(row["ours_ratio"] for row in results["sweep"]):
        drawn += [("latency", draw_latency), ("bandwidth", draw_bandwidth), ("ratio", draw_bars)]
    if "submit" in results["extras"].get("in_flight", {}):
        drawn.append(("in_flight", draw_in_flight))
    if any(each["rate"] for each in results["extras"].get("gateway", {}).get("json", {}).values()):
        drawn.append(("gateway", draw_gateway))
    paths: list[Path] = []
    with plt.rc_context(_STYLE):
        for name, draw in drawn:
            figure = draw(results)
            for suffix in ("png", "svg"):
                path = directory / f"{name}.{suffix}"
                figure.savefig(path, dpi=_DPI, metadata={"Date": None} if suffix == "svg" else None)
                paths.append(path)
            plt.close(figure)
    return paths
