"""A watch tells a death once, of the right process, and never after it was stopped."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
from other_process import Peer, in_forked_child
from support import BOUND_S, check_open_files, forks, open_files, run_python

from tr_mmap.base import background
from tr_mmap.base.background import Background
from tr_mmap.processes import watch
from tr_mmap.processes.identity import Identity
from tr_mmap.processes.watch import PeerWatch

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


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
    before = open_files()
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: calls.append(1))
    watch.stop()
    watch.stop()
    assert not watch._background.is_running()
    check_open_files(before)
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
        assert not watch._background.is_running()
        assert len(calls) <= 1
        peer.close()


def test_a_death_that_stop_overtook_is_not_told(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, go_on = threading.Event(), threading.Event()
    real = PeerWatch._has_ended

    def slow(self: PeerWatch) -> bool:
        result = real(self)
        if result:
            seen.set()
            go_on.wait(BOUND_S)
        return result

    monkeypatch.setattr(PeerWatch, "_has_ended", slow)
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: calls.append(1))
    peer.kill()
    assert seen.wait(BOUND_S)  # the thread knows, and has not called back yet
    stopper = threading.Thread(target=watch.stop)
    stopper.start()
    while not watch._background.has_to_return:
        pass
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
    assert not watch._background.is_running()


def test_stop_in_a_forks_child_leaves_the_parents_watch_alone(peer: Peer) -> None:
    died = threading.Event()
    watch = PeerWatch(peer.identity, died.set)
    assert in_forked_child(watch.stop) == 0
    assert not watch._background.has_to_return
    assert watch._background.is_running()
    peer.kill()
    assert died.wait(BOUND_S)
    watch.stop()


def test_a_watch_that_has_ended_keeps_nothing_alive(peer: Peer, way: str) -> None:
    """Its callback is a channel's, whose mappings must not wait for the garbage collector."""

    class Channel:
        def wake(self) -> None:
            pass

    gc.disable()
    try:
        for is_killed in (False, True):
            channel = Channel()
            known = weakref.ref(channel)
            watch = PeerWatch(peer.identity, channel.wake)
            if is_killed:
                peer.kill()
            watch.stop()
            del watch, channel
            assert known() is None
    finally:
        gc.enable()


# -- forks -----------------------------------------------------------------------------------------------------------


def threads() -> list[str]:
    return os.listdir("/proc/self/task")


@on_linux
def test_at_a_fork_there_is_no_thread_of_a_watch_and_after_it_there_is_again(
    peer: Peer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threads())
    died = threading.Event()
    watches = [PeerWatch(peer.identity, died.set) for _ in range(3)]
    counted: list[set[str]] = []
    real = Background.resume
    monkeypatch.setattr(Background, "resume", lambda self: (counted.append(set(threads())), real(self))[1])
    assert in_forked_child(lambda: None) == 0
    assert not counted[0] - before
    assert all(watch._background.is_running() for watch in watches)
    peer.kill()
    assert died.wait(BOUND_S)
    for each in watches:
        each.stop()


def test_a_death_during_a_fork_is_told_after_it(peer: Peer, way: str) -> None:
    died = threading.Event()
    watch = PeerWatch(peer.identity, died.set)
    watch._background.pause()
    peer.kill()
    assert not watch._background.is_running()
    assert not watch.is_dead
    watch._background.resume()
    assert died.wait(BOUND_S)
    watch.stop()


def test_a_watch_that_is_stopped_during_a_fork_stays_stopped(peer: Peer, way: str) -> None:
    before = open_files()
    calls: list[int] = []
    watch = PeerWatch(peer.identity, lambda: calls.append(1))
    watch._background.pause()
    watch.stop()
    watch._background.resume()
    peer.kill()
    assert not watch._background.is_running()
    assert calls == []
    check_open_files(before)


def test_of_two_threads_that_fork_at_once_the_last_brings_the_watch_back(peer: Peer) -> None:
    watch = PeerWatch(peer.identity, lambda: None)
    watch._background.pause()
    other = threading.Thread(target=watch._background.pause)
    other.start()
    other.join()
    watch._background.resume()
    assert not watch._background.is_running()
    watch._background._forking.clear()  # what the other thread's resume does
    watch._background.resume()
    assert watch._background.is_running()
    watch.stop()


def test_a_fork_does_not_wait_for_a_callback_that_has_begun(peer: Peer) -> None:
    began, go_on = threading.Event(), threading.Event()
    watch = PeerWatch(peer.identity, lambda: (began.set(), go_on.wait(BOUND_S))[0])
    peer.kill()
    assert began.wait(BOUND_S)
    watch._background.pause()
    watch._background.resume()
    assert watch._background.is_running()
    go_on.set()
    watch.stop()
    assert not watch._background.is_running()


@forks
def test_many_forks_in_many_threads_leave_every_watch_at_work() -> None:
    peers = [Peer() for _ in range(4)]
    died = [threading.Event() for _ in peers]
    watches = [PeerWatch(peer.identity, each.set) for peer, each in zip(peers, died, strict=True)]
    codes: list[int] = []
    code = "import sys; sys.exit(3)"

    def fork_often() -> None:
        for _ in range(10):
            ended = subprocess.run([sys.executable, "-S", "-c", code], preexec_fn=int, check=False)  # so that it forks
            codes.append(ended.returncode)

    forkers = [threading.Thread(target=fork_often) for _ in range(3)]
    for each in forkers:
        each.start()
    for each in forkers:
        each.join()
    assert codes == [3] * 30
    assert all(watch._background.is_running() for watch in watches)
    for peer in peers:
        peer.kill()
    assert all(each.wait(BOUND_S) for each in died)
    for each_watch, peer in zip(watches, peers, strict=True):
        each_watch.stop()
        peer.close()


# -- without threads -------------------------------------------------------------------------------------------------


def test_where_no_thread_can_be_had_the_watch_looks_when_it_is_asked(
    peer: Peer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_HAS_THREADS", False)
    watch = PeerWatch(peer.identity, lambda: None)
    assert not watch.has_thread
    assert not watch.is_dead
    peer.kill()
    assert watch.is_dead
    watch.stop()


def test_a_death_is_told_although_no_descriptor_was_left_while_the_watch_looked(peer: Peer) -> None:
    """In a process of its own, for the limit is the process's."""
    done = run_python("-c", NO_DESCRIPTOR, str(peer.identity.pid))
    assert done.stdout.split() == ["True", "False", "SystemLimit", "dead"], done.stderr


NO_DESCRIPTOR = """
import os, sys, threading
from tr_mmap.processes import watch
from tr_mmap.processes.identity import Identity
del os.pidfd_open  # as on a kernel without pidfds
watch.POLL_S = 0.005
peer = Identity.of(int(sys.argv[1]))
looks, real = [], Identity.is_alive
Identity.is_alive = lambda self: (looks.append(1), real(self))[1]
died = threading.Event()
watching = watch.PeerWatch(peer, died.set)
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
before = len(looks)
while len(looks) < before + 3 and watching._background.is_running():
    pass
print(peer.is_alive(), watching.is_dead)
try:
    Identity.of(os.getpid())
except OSError as error:
    print(type(error).__name__)
for fd in taken:
    os.close(fd)
os.kill(peer.pid, 9)
print("dead" if died.wait(60) else "never told")
watching.stop()
"""


def test_a_watch_does_not_take_a_closed_descriptor_for_a_death(peer: Peer) -> None:
    """As after os.closerange() in a handler."""
    watch = PeerWatch(peer.identity, lambda: None)
    pidfd = watch._pidfd
    if pidfd is None:
        pytest.skip("there are no pidfds")
    watch._background.pause()
    os.close(pidfd.fd)
    watch._background.resume()
    assert not watch._has_ended()
    assert watch._background.is_running()
    peer.kill()
    assert watch._has_ended()
    watch.stop()
