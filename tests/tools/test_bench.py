"""The benchmark's own arithmetic, tables and pictures, and one tiny real run. Nothing here bounds a speed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from bench import report, stats, sweep, targets  # noqa: E402
from bench.extras import store  # noqa: E402
from bench.peers import PEERS, Peer, TimedPeer  # noqa: E402
from bench.peers.stores import STORES  # noqa: E402
from bench.peers.stores.base import serve  # noqa: E402

SIZES = (1 << 10, 1 << 20, 64 << 20)


def row(peer: str, nbytes: int, median_us: float, ours_us: float, loaned_us: float) -> dict:
    return {
        "peer": peer,
        "nbytes": nbytes,
        "median_us": median_us,
        "p99_us": 2 * median_us,
        "least_us": median_us / 2,
        "n": 100,
        "ours_ratio": ours_us / median_us,
        "loaned_ratio": loaned_us / median_us,
    }


def results(**changes) -> dict:
    rows = []
    for nbytes in SIZES:
        ours, loaned = 20 + nbytes / 1e4, 20.0
        for place, peer in enumerate(("semaphore", "passes", "ours", "ours-loaned", "iceoryx2", "zmq", "pipe")):
            us = {"ours": ours, "ours-loaned": loaned, "semaphore": 5.0}.get(peer, ours * (1 + place))
            rows.append(row(peer, nbytes, us, ours, loaned))
    made = {
        "created": "2026-01-01 00:00 UTC",
        "mode": "quick",
        "seconds": 3.0,
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gib": 8.0,
            "kernel": "Linux 6",
            "python": "3.11",
            "is_virtual": True,
            "versions": {"numpy": "2.4"},
        },
        "absent": {"ray": "not installed: ray"},
        "skipped": [{"peer": "pipe", "nbytes": 1 << 30, "reason": "not run: too slow (about 18 s each)"}],
        "sweep": rows,
        "extras": {"text": {"ours": stats.summarise([20_000]).to_json(), "zmq": stats.summarise([80_000]).to_json()}},
        "targets": [each.to_json() for each in targets.judge(rows, {})],
    }
    return {**made, **changes}


def test_summary_has_median_and_tail():
    summary = stats.summarise([1000 * number for number in range(1, 102)])
    assert (summary.median_us, summary.p99_us, summary.least_us, summary.n) == (51, 100, 1, 101)


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        stats.summarise([])


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.5, "0.50 µs"),
        (9.999, "10.0 µs"),
        (131.2, "131 µs"),
        (999.6, "1.00 ms"),
        (13_400, "13.4 ms"),
        (2.31e6, "2.31 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(us, text):
    assert stats.format_us(us) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1024, "1 KiB"), (64 << 20, "64 MiB"), (1 << 30, "1 GiB"), (1500, "1500 B"), (12, "12 B")]
)
def test_sizes_have_the_largest_whole_unit(nbytes, text):
    assert stats.format_nbytes(nbytes) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0031, "0.0031"), (0.06, "0.060"), (0.42, "0.42"), (1.004, "1.00"), (2.74, "2.7"), (17.2, "17")],
)
def test_ratios_keep_two_digits(ratio, text):
    assert stats.format_ratio(ratio) == text


def test_groups_fit_and_each_has_what_it_is_compared_with():
    needs = {"semaphore": 0, "ours": 2, "zmq": 3, "pipe": 4, "torch": 4, "ray": 20}
    groups = sweep.pack(needs, 9)
    assert groups == [
        ["semaphore", "ours", "zmq", "pipe"],
        ["semaphore", "ours", "torch"],
        ["semaphore", "ours", "ray"],
    ]


def test_small_sizes_share_one_start_and_large_ones_do_not():
    keys = ["ours", "zmq", "pipe"]
    assert sweep.stages(keys, [1 << 10, 1 << 20], 1 << 30) == [[1 << 10, 1 << 20]]
    assert sweep.stages(keys, [1 << 10, 1 << 20, 1 << 30, 4 << 30], 7 << 30) == [
        [1 << 10, 1 << 20],
        [1 << 30],
        [4 << 30],
    ]
    assert sweep.stages(keys, [1 << 30], 1 << 30) == [[1 << 30]]


def test_targets_say_met_not_met_and_not_measured():
    verdicts = {(each.what, each.target): each for each in targets.judge(results()["sweep"], {})}
    assert verdicts["1 MiB", "≤ 0.4 × pyzmq ipc"].is_met is True
    assert verdicts["64 MiB loaned on both sides", "≤ 5 × semaphore ping-pong"].is_met is True
    assert verdicts["64 MiB, one copy a side", "≤ 0.3 × pyzmq ipc"].measured == "0.17 ×"
    assert verdicts["64 MiB loaned on both sides", "≤ 0.6 × iceoryx2 loaned"].is_met is None
    slow = [row("iceoryx2", 1 << 20, 10, 11, 11)]
    assert [each.is_met for each in targets.judge(slow, {}) if each.target == "≤ 0.9 × iceoryx2"] == [False]


def test_targets_of_the_extras():
    extras = {
        "idle": {"seconds": 10.0, "controller_percent": 0.3, "worker_percent": 0.3},
        "memory": {
            "payload_nbytes": 1 << 30,
            "tmpfs_nbytes": (1 << 30) + 4096,
            "controller_anon_nbytes": 9 << 20,
            "worker_anon_nbytes": 0,
        },
        "flood": {
            "messages": 100_000,
            "controller_rss_growth_nbytes": 4096,
            "worker_rss_growth_nbytes": 0,
            "controller_fd_growth": 0,
            "worker_fd_growth": 0,
        },
    }
    assert [each.is_met for each in targets.judge([], extras)[-3:]] == [False, False, True]


@pytest.mark.parametrize(("us", "text", "is_met"), [(10, "0.50 ×", True), (40, "2.0 ×", True), (41, "2.1 ×", False)])
def test_target_of_the_cpp_controller(us, text, is_met):
    rows = [*results()["sweep"], row("cpp-loaned", 64 << 20, us, 20, 20)]
    found = [each for each in targets.judge(rows, {}) if each.what.startswith("C++")]
    assert [(each.target, each.measured, each.is_met) for each in found] == [
        ("≤ 2 × the Python controller's", text, is_met)
    ]


def test_targets_of_contained_runs():
    def cell(us):
        return stats.summarise([int(us * 1000)]).to_json()

    found = {
        "contained": {
            "numpy": cell(100),
            "fresh": cell(190),
            "reused": cell(150),
            "start": cell(14e3),
            "overrun_ms": 7.0,
        },
        "held": {"boxes": 10, "right": 10, "seconds": 3.0, "idle_percent": 0.0, "nbytes": 64 << 20},
    }
    verdicts = {each.what: each for each in targets.judge([], {"sandbox": found})}
    assert verdicts["contained: 64 MiB in and out, fresh process"].is_met is True
    assert verdicts["contained: 64 MiB in and out, kept process"].is_met is False
    assert verdicts["contained: a fresh process from a spare"].measured == "14 ms"
    assert verdicts["10 sandboxes at once"].measured == "10 of 10"
    assert verdicts["memory of an open sandbox"].measured == "64 MiB"
    assert verdicts["wasm: beyond a limit on time"].is_met is None
    text = report.to_markdown(results(extras={"sandbox": found}))
    assert "| a fresh process | 190 µs |" in text


def store_results(**changes) -> dict:
    def cell(us):
        return stats.summarise([int(us * 1000)]).to_json()

    return {
        "absent": {"redis": "not installed: redis-server"},
        "failed": {"mem0": "failed: ValueError: no"},
        "get": {"records": 10_000, "ours": cell(4), "lmdb": cell(3), "chroma": cell(1000)},
        "top": {"records": 100_000, "ours": cell(12e3), "numpy": cell(10e3), "sqlite-vec": cell(60e3)},
        "tensor": {"ours": cell(26), "load": cell(20)},
        "filter": {"recall": 1.0, "passing": 1000, "filtered": cell(2e3), "unfiltered": cell(12e3)},
        "empty": {"nbytes": 300 << 10, "one_record_nbytes": 2 << 20},
        "readers": {"count": 8, "one_nbytes": 100, "many_nbytes": 109, "vectors_nbytes": 90},
        "writers": {"count": 8, "one_rate": 1000.0, "many_rate": 790.0, "lost": 0, "wrong": []},
        "visible": {"from_call": cell(300), "from_return": cell(1), "update": cell(200)},
        "loop": {
            "get": {**cell(9000), "held_p99_us": 100.0, "held_most_us": 900.0, "calls": 7},
            "search": {**cell(9000), "held_p99_us": 5001.0, "held_most_us": 6e3, "calls": 3},
        },
        **changes,
    }


def test_targets_of_stores():
    verdicts = {
        (each.what.removeprefix("store: "), each.target): each.is_met
        for each in targets.judge([], {"store": store_results()})
        if each.what.startswith("store: ")
    }
    record, nearest = "get of a record with 384 numbers", "exact top 10 of 100,000 × 384"
    assert verdicts == {
        (record, "≤ 1.5 × bare lmdb + msgspec"): True,
        (record, "≤ 0.2 × Redis"): None,
        (record, "≤ 0.05 × chromadb"): True,
        (record, "≤ 0.05 × lancedb"): None,
        ("get of a 64 MiB tensor", "≤ 1.3 × tr_mmap.load"): True,
        (nearest, "≤ 1.15 × bare numpy"): False,
        (nearest, "≤ 0.5 × sqlite-vec"): True,
        ("recall with a filter that leaves 1 %", "1.0"): True,
        ("such a search", "≤ 0.3 × the unfiltered one"): True,
        ("memory of 8 readers", "≤ 1.1 × that of one"): True,
        ("records a second of 8 writers", "≥ 0.8 × those of one"): False,
        ("records that these have lost", "0"): True,
        ("a commit is seen by another process, p99", "≤ 1 ms"): True,
        ("an empty one", "≤ 1 MiB"): True,
        ("asyncio's loop waits for a method, p99", "≤ 5 ms"): False,
    }
    assert all(each.is_met is None for each in targets.judge([], {"store": {"skipped": "not installed: lmdb"}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"filter": {**store_results()["filter"], "recall": 0.99}},
        {"writers": {**store_results()["writers"], "many_rate": 900.0, "lost": 1}},
        {"writers": {**store_results()["writers"], "many_rate": 900.0, "wrong": ["a row is not its own"]}},
    ],
)
def test_a_store_that_loses_something_misses_a_target(changes):
    sound = store_results(writers={**store_results()["writers"], "many_rate": 900.0})

    def missed(found):
        return [each.what for each in targets.judge([], {"store": found}) if each.is_met is False]

    assert len(missed({**sound, **changes})) == len(missed(sound)) + 1


def test_report_has_the_tables_of_stores_and_names_those_that_are_absent():
    text = report.to_markdown(results(extras={"store": store_results()}))
    assert "| bare lmdb + msgspec | 3.00 µs | 3.00 µs | 1.33 | 1 |" in text
    assert "| tr_mmap.store | 4.00 µs | 4.00 µs |  | 1 |" in text
    assert "The nearest 10 of 100,000 vectors" in text
    assert "| search | 9.00 ms | 9.00 ms | 5.00 ms | 6.00 ms | 3 |" in text
    assert "- Redis, socket of this machine is absent: not installed: redis-server." in text
    assert "- mem0, infer=False is absent: failed: ValueError: no." in text
    assert "one writer adds 1000 records a second, 8 together 790" in text
    assert "Stores" not in report.to_markdown(results(extras={"store": {"skipped": "not installed: lmdb"}}))


def test_report_names_machine_absent_and_cut_off_peers():
    text = report.to_markdown(results())
    assert "Some CPU (virtual), 2 cores" in text
    assert "Ray actor is absent: not installed: ray." in text
    assert "multiprocessing.Pipe, 1 GiB: not run: too slow (about 18 s each)." in text
    assert "| tr_mmap | 20.1 µs |" in text
    assert "**not met**" not in text.partition("## Targets")[0]


def test_report_says_that_the_machine_was_busy():
    busy = {**results()["machine"], "load_before": 3.2}
    assert "a load of 3.2 on 2 cores" in report.to_markdown(results(machine=busy))
    assert "busy" not in report.to_markdown(results())


def test_tables_have_as_many_cells_in_each_line():
    for line in report.to_markdown(results()).split("\n\n"):
        if line.startswith("|"):
            assert len({each.count("|") for each in line.splitlines()}) == 1


def test_comparison_shows_what_both_runs_have():
    old = results(sweep=[{**each, "ours_ratio": 2 * each["ours_ratio"]} for each in results()["sweep"]])
    text = report.compare(old, results())
    assert "| 1 KiB / pyzmq ipc | 0.33 | 0.17 | 0.50 |" in text
    assert "no figure in common" in report.compare({**old, "sweep": [], "extras": {}}, results())


def test_labels_keep_their_order_and_their_distance():
    plots = pytest.importorskip("bench.plots", exc_type=ImportError)
    placed = plots.spread([0.5, 0.5, 0.51, 0.9, 0.1], 0.1)
    ordered = sorted(placed)
    assert all(high - low >= 0.1 - 1e-9 for low, high in itertools.pairwise(ordered))
    assert placed[4] == 0.1
    assert placed[3] == 0.9
    assert placed[0] < placed[1] < placed[2]
    assert plots.spread([], 0.1) == []


def test_pictures_are_drawn_as_png_and_svg(tmp_path):
    plots = pytest.importorskip("bench.plots", exc_type=ImportError)
    paths = plots.draw_all(results(), tmp_path)
    assert {path.name for path in paths} == {
        f"{name}.{suffix}" for name in ("latency", "bandwidth", "ratio") for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size > 4000 for path in paths)
    assert plots.draw_all(results(sweep=[]), tmp_path) == []


def gateway_results() -> dict:
    cell = stats.summarise([1_000_000, 2_000_000]).to_json()
    cells = {
        row: {"rate": rate, "rates": [rate], "bad": 0, **cell}
        for row, rate in (("ours", 3000.0), ("ours-fresh", 100.0), ("triton", 2000.0), ("litserve", 500.0))
    }
    alone = {
        "start_ms": 900.0,
        "first_ms": 20.0,
        "code_ms": 15.0,
        "sandbox_ms": 14.0,
        "python_ms": 300.0,
        "idle_percent": 0.1,
        "processes": 7,
        "nbytes": 100 << 20,
        "at_once": 16,
        "at_once_right": 60,
        "at_once_bad": 0,
    }
    absent = {"bentoml": "not installed: python3 -m venv"}
    return {"json": cells, "large": {"ours": cell}, "alone": alone, "absent": absent, "failed": {}}


def test_servers_are_compared_by_their_rates():
    found = {"gateway": gateway_results()}
    verdicts = {each.what + each.target: each for each in targets.judge([], found)}
    litserve = next(each for each in verdicts.values() if each.target == "≥ 3 × LitServe")
    bentoml = next(each for each in verdicts.values() if each.target == "≥ 3 × BentoML")
    assert (litserve.measured, litserve.is_met, bentoml.is_met) == ("6.0 ×", True, None)
    text = report.to_markdown(results(extras=found))
    assert "| Triton, Python backend | 2,000 | 1.50 |" in text
    assert "BentoML is absent: not installed: python3 -m venv" in text
    assert report.headlines(results(extras=found))["gateway / triton"] == pytest.approx(2 / 3)


def test_the_servers_are_drawn(tmp_path):
    plots = pytest.importorskip("bench.plots", exc_type=ImportError)
    paths = plots.draw_all(results(sweep=[], extras={"gateway": gateway_results()}), tmp_path)
    assert {path.name for path in paths} == {"gateway.png", "gateway.svg"}


def test_a_peer_that_is_not_installed_is_absent(monkeypatch):
    monkeypatch.setattr(PEERS["zmq"], "unavailable", lambda peer: "not installed: zmq" if peer.key == "zmq" else None)
    measured = sweep.Sweep(["semaphore", "zmq"], [1024], sweep.Limits.quick())
    assert measured.absent == {"zmq": "not installed: zmq"}


class Broken(Peer):
    """Answers in this process, and fails as it is told."""

    key = "broken"
    label = "broken"
    failure: ClassVar[str] = ""

    def start(self, max_nbytes):  # noqa: ARG002 - the interface
        if self.failure == "start":
            raise OSError("no room")

    def roundtrip(self, x):
        if self.failure == "roundtrip":
            raise OSError("gone")
        return x + (1 if self.failure != "wrong" else 2)

    def close(self):
        if self.failure == "close":
            raise OSError("stuck")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("start", "failed: OSError: no room"),
        ("roundtrip", "failed: OSError: gone"),
        ("wrong", "failed: ValueError: the answer is wrong"),
        ("close", "failed to end: OSError: stuck"),
    ],
)
def test_a_peer_that_fails_is_recorded_and_leaves_the_run(monkeypatch, failure, reason):
    monkeypatch.setitem(PEERS, "broken", Broken)
    monkeypatch.setattr(Broken, "failure", failure)
    limits = sweep.Limits(rounds=1, peer_s=0.01, most=3, least=1, slow_s=5)
    measured = sweep.Sweep(["broken"], [1024, 4096], limits)
    measured.run()
    assert [each["reason"] for each in measured.skipped] == [reason]
    assert len(measured.rows) == (2 if failure == "close" else 0)


class Elsewhere(TimedPeer):
    """Takes its times itself, as a client in another language does."""

    key = "elsewhere"
    label = "elsewhere"

    def start(self, max_nbytes):  # noqa: ARG002 - the interface
        self.asked = []

    def check(self, count):
        self.asked.append(count)
        return 7000

    def measure(self, count, most, quota_s):  # noqa: ARG002
        return [5000] * most

    def close(self):
        assert set(self.asked) == {256, 1024}


def test_a_client_in_another_language_takes_its_times_itself(monkeypatch):
    monkeypatch.setitem(PEERS, "elsewhere", Elsewhere)
    limits = sweep.Limits(rounds=2, peer_s=1, most=6, least=1, slow_s=5)
    measured = sweep.Sweep(["elsewhere"], [1024, 4096], limits)
    measured.run()
    assert measured.skipped == []
    assert [(each["nbytes"], each["median_us"], each["n"]) for each in measured.rows] == [(1024, 5, 6), (4096, 5, 6)]


def test_the_cpp_controller_is_absent_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    measured = sweep.Sweep(["cpp-loaned"], [1024], sweep.Limits.quick())
    assert measured.absent == {"cpp-loaned": "there is no g++, and CXX names no other compiler"}


def test_a_peer_that_would_take_too_long_is_cut_off(monkeypatch):
    monkeypatch.setitem(PEERS, "broken", Broken)
    limits = sweep.Limits(rounds=1, peer_s=0.01, most=3, least=1, slow_s=0.0)
    measured = sweep.Sweep(["broken"], [1024], limits)
    measured.run()
    assert measured.rows == []
    assert measured.skipped[0]["reason"].startswith("not run: too slow (about ")


# For a program that runs for a moment: g++ with -O2 compiles it for longer than all the rest takes.
QUICK_BUILD = {"CXX": os.environ.get("CXX") or shutil.which("clang++") or "g++", "CXXFLAGS": "-O0"}


def test_a_tiny_run_writes_its_results(tmp_path):
    run = subprocess.Popen(
        [sys.executable, str(TOOLS / "bench"), "--quick", "--budget", "2",
         "--only", "semaphore,ours,ours-loaned,cpp-loaned,pipe",
         "--out", str(tmp_path / "out"), "--no-plots"],
        env={**os.environ, **QUICK_BUILD, "TR_WORKSPACE": str(tmp_path / "workspace"), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    _, errors = run.communicate(timeout=100)
    assert run.returncode == 0, errors
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    wanted = {"semaphore", "ours", "ours-loaned", "cpp-loaned"} - set(found["absent"])
    measured = {(each["peer"], each["nbytes"]) for each in found["sweep"]}
    assert measured >= {(peer, SIZES[0]) for peer in wanted}
    too_slow = {(each["peer"], each["nbytes"]) for each in found["skipped"] if "too slow" in each["reason"]}
    assert measured | too_slow >= {(peer, nbytes) for peer in wanted for nbytes in SIZES}  # on a busy machine
    assert set(found["absent"]) <= ({"cpp-loaned"} if shutil.which(QUICK_BUILD["CXX"]) is None else set())
    assert all(each["n"] >= 1 and each["median_us"] > 0 for each in found["sweep"])
    assert "multiprocessing.Pipe" in (tmp_path / "out" / "bench.md").read_text()
    assert not [name for name in os.listdir("/dev/shm") if f"tr_bench_{run.pid}_" in name]


@pytest.mark.parametrize("key", ["ours", "lmdb", "numpy", "sqlite-vec"])
def test_a_way_to_keep_records_answers_what_was_added(tmp_path, key):
    if (reason := STORES[key]().unavailable()) is not None:
        pytest.skip(reason)
    vectors = store.make_vectors(50)
    np.save(tmp_path / "vectors.npy", vectors)
    ours, theirs = multiprocessing.Pipe()
    (tmp_path / "peer").mkdir()
    peer = threading.Thread(
        target=serve, args=(theirs, STORES[key], str(tmp_path / "peer"), str(tmp_path / "vectors.npy"), 50)
    )
    peer.start()
    assert ours.recv() is None
    for what in ["get"] * STORES[key].has_get + ["top"] * STORES[key].has_top:
        ours.send((what, 7, 100.0))
        assert len(ours.recv()) == 7
        ours.send((what, 7, 0.0))
        assert len(ours.recv()) == 1
    ours.close()
    peer.join()


def test_a_way_to_keep_records_that_finds_something_else_is_told(tmp_path, monkeypatch):
    np.save(tmp_path / "vectors.npy", store.make_vectors(50))
    monkeypatch.setattr(STORES["numpy"], "top", lambda *_: list(range(10)))
    ours, theirs = multiprocessing.Pipe()
    serve(theirs, STORES["numpy"], str(tmp_path), str(tmp_path / "vectors.npy"), 50)
    assert ours.recv() == "failed: ValueError: a search has not found the nearest vectors"
    ours.close()


def test_an_unknown_name_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOLS / "bench"), "--only", "ours,rsocket"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown: rsocket" in done.stderr
