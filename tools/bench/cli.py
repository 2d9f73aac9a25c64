"""The command line: what to run, and where its results go."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from . import machine, report, targets
from .extras import EXTRAS
from .peers import PEERS
from .progress import Progress
from .sweep import FULL_SIZES, QUICK_SIZES, Limits, Sweep

__all__ = ["main", "run"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_PUBLISHED: Final = _ROOT / "docs" / "bench"
_EXTRA_STEPS: Final = 0.06  # of the bar, for each extra


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure tr_mmap and its peers, interleaved in one run, and write bench.json, bench.md and plots.",
        epilog=f"peers: {', '.join(PEERS)}. others: {', '.join(EXTRAS)}.",
    )
    parser.add_argument("--quick", action="store_true", help="three sizes, and fewer of everything")
    parser.add_argument("--out", type=Path, default=_ROOT / "bench-results", help="directory for the results")
    parser.add_argument("--publish", action="store_true", help="write to docs/bench, which the README shows")
    parser.add_argument("--only", default="", metavar="NAMES", help="peers and others to run, separated by commas")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print each ratio beside an earlier run's")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="about how long the comparison may take")
    parser.add_argument("--one-core", action="store_true", help="everything on one core: no luck of the scheduler")
    parser.add_argument("--servers", type=Path, metavar="DIR", help="virtual environments of the gateway's peers")
    parser.add_argument("--no-plots", action="store_true", help="write no plots")
    options = parser.parse_args(arguments)
    options.names = [name for name in options.only.replace(" ", ",").split(",") if name]
    unknown = [name for name in options.names if name not in PEERS and name not in EXTRAS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join([*PEERS, *EXTRAS])}")
    if options.servers is not None:
        os.environ["TR_BENCH_SERVERS"] = str(options.servers.resolve())
    if options.publish:
        options.out = _PUBLISHED
    return options


def _limits(options: argparse.Namespace, cells: int) -> Limits:
    limits = Limits.quick() if options.quick else Limits.full()
    if options.budget is None or not cells:
        return limits
    each_s = options.budget / cells
    return dataclasses.replace(
        limits, peer_s=min(limits.peer_s, each_s), least=2, slow_s=min(limits.slow_s, 4 * each_s)
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the options ask for."""
    began_s = time.monotonic()
    peers = [name for name in PEERS if not options.names or name in options.names]
    extras = [name for name in EXTRAS if not options.names or name in options.names]
    sizes = QUICK_SIZES if options.quick else FULL_SIZES
    described = machine.describe()
    with Progress(bool(peers) + _EXTRA_STEPS * len(extras)) as progress:
        limits = _limits(options, len(peers) * len(sizes))
        sweep = Sweep(peers, sizes, limits, progress.say, progress.advance)
        if peers:
            sweep.run()
        found: dict[str, dict[str, Any]] = {}
        for name in extras:
            found[name] = EXTRAS[name].run(options.quick, progress.say)
            progress.advance(_EXTRA_STEPS)
    verdicts = targets.judge(sweep.rows, found)
    return {
        "schema": 1,
        "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "mode": "quick" if options.quick else "full",
        "seconds": round(time.monotonic() - began_s, 1),
        "machine": described,
        "limits": dataclasses.asdict(limits),
        "absent": sweep.absent,
        "skipped": sweep.skipped,
        "sweep": sweep.rows,
        "extras": found,
        "targets": [each.to_json() for each in verdicts if each.is_met is not None or not options.names],
    }


def _show(markdown: str) -> None:
    try:
        from rich.console import Console
        from rich.markdown import Markdown
    except ImportError:
        print(markdown)
        return
    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        print(markdown)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # workers inherit it
    old = json.loads(options.compare.read_text()) if options.compare else None
    results = run(options)
    markdown = report.to_markdown(results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (options.out / "bench.md").write_text(markdown)
    _show(markdown)
    if not options.no_plots:
        try:
            from . import plots
        except ImportError as error:
            print(f"no plots: {error}; pip install '.[bench]' has what is needed", file=sys.stderr)
        else:
            for path in plots.draw_all(results, options.out):
                print(path)
    if old is not None:
        print(report.compare(old, results))
    print(options.out / "bench.json")
    return 0
