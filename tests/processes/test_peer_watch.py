"""A watch tells a death once, of the right process, and never after it was stopped."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from other_process import Peer, in_forked_child
from support import BOUND_S, count_fds, forks

from tr_mmap.processes import watch
from tr_mmap.processes.identity import Identity
from tr_mmap.processes.watch import PeerWatch


@pytest.fixture(params=["pidfd", "polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "polling":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr(watch, "POLL_S", 0.005)
    return str(request.param)


def test_a_death_is_told_once(peer: Peer, way: str) -> None:
    died = threading.Event()
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: (calls.append(1), died.set())[0])
    assert not watch.is_dead
    peer.kill()
    assert died.wait(BOUND_S)
    assert watch.is_dead
    watch.stop()
    assert calls == [1]


def test_a_peer_that_was_dead_already_is_told_at_once(peer: Peer, way: str) -> None:
    peer.kill()
    died = threading.Event()
    watch = PeerWatch(peer.identity, died.set)
    assert died.wait(BOUND_S)
    assert watch.is_dead
    watch.stop()


def test_a_stranger_with_the_peers_pid_is_not_watched(peer: Peer, way: str) -> None:
    died = threading.Event()
    watch = PeerWatch(Identity.local(peer.identity.pid, peer.identity.start_ticks - 1), died.set)
    assert died.wait(BOUND_S)
    watch.stop()


def test_a_stopped_watch_never_fires_and_keeps_nothing(peer: Peer, way: str) -> None:
    before = count_fds()
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: calls.append(1))
    watch.stop()
    watch.stop()
    assert not watch._thread.is_alive()
    assert count_fds() == before
    peer.kill()
    assert calls == []
    assert not watch.is_dead


def test_stop_waits_for_a_callback_that_has_begun(peer: Peer) -> None:
    began, go_on = threading.Event(), threading.Event()
    finished: list[int] = []

    def on_death() -> None:
        began.set()
        go_on.wait(BOUND_S)
        finished.append(1)

    watch = PeerWatch(peer.identity, on_death)
    peer.kill()
    assert began.wait(BOUND_S)
    stopper = threading.Thread(target=watch.stop)
    stopper.start()
    go_on.set()
    stopper.join(BOUND_S)
    assert finished == [1]


def test_a_death_at_the_moment_of_stop_is_told_before_stop_returns_or_never() -> None:
    for _ in range(20):
        peer = Peer()
        calls: list[int] = []
        watch = PeerWatch(peer.identity, lambda calls=calls: calls.append(1))  # type: ignore[misc]
        os.kill(peer.popen.pid, signal.SIGKILL)
        watch.stop()
        assert not watch._thread.is_alive()
        assert len(calls) <= 1
        peer.close()


def test_a_death_that_stop_overtook_is_not_told(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, go_on = threading.Event(), threading.Event()
    real = PeerWatch._wait_for_end

    def slow(self: PeerWatch) -> bool:
        result = real(self)
        seen.set()
        go_on.wait(BOUND_S)
        return result

    monkeypatch.setattr(PeerWatch, "_wait_for_end", slow)
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: calls.append(1))
    peer.kill()
    assert seen.wait(BOUND_S)  # the thread knows, and has not called back yet
    stopper = threading.Thread(target=watch.stop)
    stopper.start()
    assert watch._stop_event.wait(BOUND_S)
    go_on.set()
    stopper.join(BOUND_S)
    assert calls == []


def test_a_callback_may_stop_its_own_watch(peer: Peer) -> None:
    stopped = threading.Event()
    watch: PeerWatch

    def on_death() -> None:
        watch.stop()
        stopped.set()

    watch = PeerWatch(peer.identity, on_death)
    peer.kill()
    assert stopped.wait(BOUND_S)
    watch.stop()
    assert not watch._thread.is_alive()


@forks
def test_stop_in_a_forks_child_leaves_the_parents_watch_alone(peer: Peer) -> None:
    died = threading.Event()
    watch = PeerWatch(peer.identity, died.set)
    with watch._lock:  # as if the thread held it at the moment of the fork
        assert in_forked_child(watch.stop) == 0
    assert not watch._is_stopped
    assert watch._thread.is_alive()
    peer.kill()
    assert died.wait(BOUND_S)
    watch.stop()
