"""A lock for life is free when its process has ended, and not before: whatever the process forks, starts or closes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from other_process import Peer, in_forked_child
from support import BOUND_S, check_open_files, environment, open_files, wait_until

from tr_mmap.processes.identity import Identity
from tr_mmap.processes.life_lock import LifeLock, LifeProbe, handed_over, hold_inherited, is_alive
from tr_mmap.processes.orphans import end_orphan
from tr_mmap.processes.watch import PeerWatch
from tr_mmap.wire.names import LOCK_FD_VARIABLE

HOLDER = """
import os, subprocess, sys, time
from tr_mmap.processes.life_lock import LifeLock
lock = LifeLock()
lock.take(sys.argv[1])
what = sys.argv[2]
if what == "fork":
    if os.fork() == 0:
        time.sleep(1000)
elif what == "start":
    subprocess.Popen(["sleep", "1000"], close_fds=False)
print("up", flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that holds a lock, and has left something running if it is asked to."""

    def __init__(self, path: Path, what: str = "") -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n"
        found = Identity.of(self.popen.pid)
        assert found is not None
        self.identity = found

    def elsewhere(self) -> Identity:
        """As a manifest names it that was written in another namespace of pids."""
        return msgspec.structs.replace(self.identity, pid_namespace=self.identity.pid_namespace + 1)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)

    def end_all(self) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.communicate()


@pytest.fixture(params=["", "fork", "start"], ids=["alone", "forks", "starts"])
def holder(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Holder(tmp_path / "lock", request.param)
    yield made
    made.end_all()


def test_a_process_of_another_namespace_is_alive_until_it_has_ended(holder: Holder, tmp_path: Path) -> None:
    for _ in range(3):
        assert is_alive(holder.elsewhere(), str(tmp_path / "lock"))
    holder.kill()
    wait_until(lambda: not is_alive(holder.elsewhere(), str(tmp_path / "lock")))  # its child has it, too, at first


def test_a_stopped_process_is_alive(holder: Holder, tmp_path: Path) -> None:
    holder.popen.send_signal(signal.SIGSTOP)
    assert is_alive(holder.elsewhere(), str(tmp_path / "lock"))


def test_a_process_whose_pid_has_a_meaning_here_is_judged_by_it(holder: Holder, tmp_path: Path) -> None:
    assert is_alive(holder.identity, str(tmp_path / "none"))
    LifeLock().take(str(tmp_path / "free"))  # and drop it
    assert is_alive(holder.identity, str(tmp_path / "free"))
    lock = LifeLock()
    lock.take(str(tmp_path / "ours"))
    holder.kill()
    assert not is_alive(holder.identity, str(tmp_path / "ours"))


def test_without_a_lock_that_we_may_trust_a_process_of_another_namespace_counts_as_alive(tmp_path: Path) -> None:
    here = Identity.current()
    elsewhere = msgspec.structs.replace(here, pid_namespace=here.pid_namespace + 1)
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o666)
    for name in ("none", "dir", "fifo", "link", "file", "no/such"):
        assert is_alive(elsewhere, str(tmp_path / name)), name
    other_boot = msgspec.structs.replace(elsewhere, boot_id="another")
    assert not is_alive(other_boot, str(tmp_path / "none"))


def test_judges_do_not_see_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    LifeLock().take(path)
    probes = [LifeProbe(path) for _ in range(3)]
    assert all(probe.is_free() for probe in probes)
    for probe in probes:
        probe.close()
        assert not probe.is_free()


def test_a_lock_that_is_dropped_or_forgotten_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_files()
    lock = LifeLock()
    lock.take(str(tmp_path / "a"))
    lock.take(str(tmp_path / "b"))
    assert (open_files() - before).total() == 1
    assert lock.is_at(str(tmp_path / "b"))
    assert not lock.is_at(str(tmp_path / "a"))
    lock.drop()
    lock.drop()
    assert not lock.is_held
    forgotten = LifeLock()
    forgotten.take(str(tmp_path / "c"))
    del forgotten
    check_open_files(before)


def test_a_forked_child_gives_the_lock_up_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    lock = LifeLock()
    lock.take(path)

    def in_child() -> None:
        assert not lock.is_held
        lock.drop()

    assert in_forked_child(in_child) == 0
    probe = LifeProbe(path)
    assert not probe.is_free()
    lock.drop()
    assert probe.is_free()
    probe.close()


def test_a_worker_has_its_lock_from_its_first_moment_to_its_last(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    with handed_over(path) as (variables, fds):
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            env={**os.environ, **variables},
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    probe = LifeProbe(path)
    assert not probe.is_free()  # whether it has come to its first line or not
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    assert not probe.is_free()
    child.kill()
    child.communicate()
    assert probe.is_free()
    probe.close()


def test_a_lock_that_was_not_handed_over_is_not_held(tmp_path: Path) -> None:
    for number in ("", "x", "-1", "99999"):
        environ = {LOCK_FD_VARIABLE: number}
        assert hold_inherited(environ) is None
        assert environ == {}
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    held = hold_inherited({LOCK_FD_VARIABLE: str(fd)})
    assert held is not None
    assert not os.get_inheritable(fd)
    held.drop()


def test_a_worker_in_another_namespace_than_its_controller_notices_its_death(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "lock")
    try:
        died = threading.Event()
        watch = PeerWatch(holder.elsewhere(), died.set, lock_path=str(tmp_path / "lock"))
        (tmp_path / "lock").unlink()  # a sweep was faster than we are
        assert not watch.is_dead
        holder.kill()
        assert died.wait(BOUND_S)
        watch.stop()
    finally:
        holder.end_all()


def test_an_orphan_of_another_namespace_is_waited_for_and_never_killed(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "lock")
    try:
        lock = str(tmp_path / "lock")
        assert not end_orphan(holder.elsewhere(), "a-mark", 0.0, lock)
        assert holder.popen.poll() is None
        holder.kill()
        assert end_orphan(holder.elsewhere(), "a-mark", 0.0, lock)
    finally:
        holder.end_all()


# -- what is just ending ---------------------------------------------------------------------------------------------


def test_a_worker_whose_environment_is_empty_already_is_waited_for(peer: Peer) -> None:
    """An exiting process has none, but is not gone yet."""
    with subprocess.Popen(["sleep", "1000"], env={}) as bare:
        found = Identity.of(bare.pid)
        assert found is not None
        assert not end_orphan(found, "a-mark", 0.0)  # it does not show the mark, so it is not killed
        assert bare.poll() is None
        killer = threading.Timer(0.05, bare.kill)
        killer.start()
        assert end_orphan(found, "a-mark", float("inf"))


def test_a_process_without_the_mark_is_not_even_waited_for(peer: Peer) -> None:
    assert not end_orphan(peer.identity, "a-mark", float("inf"))
    assert not end_orphan(peer.identity, "", float("inf"))
    assert peer.popen.poll() is None


def test_a_lock_whose_number_the_program_uses_anew_leaves_that_file_open(tmp_path: Path) -> None:
    """As after os.closerange() in a handler."""
    lock = LifeLock()
    lock.take(str(tmp_path / "lock"))
    assert lock._file is not None
    number = lock._file.fd
    (tmp_path / "other").write_text("")
    other = os.open(tmp_path / "other", os.O_RDONLY)
    os.dup2(other, number)
    lock.drop()
    assert not lock.is_held
    assert os.path.samestat(os.fstat(number), os.fstat(other))
    os.close(number)
    lock.drop()
    os.close(other)
