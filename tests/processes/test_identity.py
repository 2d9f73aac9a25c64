"""Who is alive: a process is known by its number, its start and its boot, never by its number alone."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from other_process import Peer, wait_until_zombie
from support import BOUND_S

from tr_mmap.processes import identity as identities
from tr_mmap.processes.identity import Identity, open_pidfd, wait_for_ends


def test_this_process_is_alive() -> None:
    assert Identity.current().is_alive()
    assert Identity.of(os.getpid()) == Identity.current()


def test_an_ended_process_is_dead(peer: Peer) -> None:
    assert peer.identity.is_alive()
    peer.kill()
    assert not peer.identity.is_alive()
    assert Identity.of(peer.popen.pid) is None


def test_a_zombie_is_dead_and_still_has_an_identity(peer: Peer) -> None:
    os.kill(peer.popen.pid, signal.SIGKILL)
    wait_until_zombie(peer.popen.pid)
    assert not peer.identity.is_alive()
    assert Identity.of(peer.popen.pid) == peer.identity


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOENT, errno.EMFILE])
def test_a_process_that_no_descriptor_can_be_had_of_is_known_to_have_ended(
    peer: Peer, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux says ENOENT of a process that ends at this moment."""

    def fail(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", fail)
    assert open_pidfd(peer.identity) is None
    peer.kill()
    with pytest.raises(ProcessLookupError):
        open_pidfd(peer.identity)
    assert wait_for_ends([peer.identity], time.monotonic())


def test_a_reused_pid_is_not_the_same_process(peer: Peer) -> None:
    earlier = Identity.local(peer.identity.pid, peer.identity.start_ticks - 1)
    assert not earlier.is_alive()


def test_a_process_of_another_boot_is_dead() -> None:
    own = Identity.current()
    assert not Identity(own.pid, own.start_ticks, "00000000-0000-0000-0000-000000000000").is_alive()


def test_a_pid_of_another_container_counts_as_alive(peer: Peer) -> None:
    foreign = Identity(peer.identity.pid, 1, peer.identity.boot_id, peer.identity.pid_namespace + 1)
    assert foreign.is_alive()
    identities.send_signal(foreign, signal.SIGKILL)
    assert peer.identity.is_alive()


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**80])
def test_a_pid_that_is_none_is_never_signalled_and_counts_as_alive(pid: int) -> None:
    nobody = Identity.local(pid, 1)
    assert nobody.is_alive()
    identities.send_signal(nobody, signal.SIGKILL)
    assert Identity.of(pid) is None


def test_a_process_hidden_from_us_counts_as_alive(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_stat", lambda _: None)
    assert peer.identity.is_alive()
    peer.kill()
    assert not peer.identity.is_alive()


@pytest.mark.parametrize("name", [b"a b c", b"x) S 1 1 (1 2", b")))) 9 9", b"("])
def test_a_name_with_spaces_and_parentheses_does_not_move_the_fields(peer: Peer, name: bytes) -> None:
    peer.rename(name)
    assert name in Path(f"/proc/{peer.popen.pid}/stat").read_bytes()
    assert Identity.of(peer.popen.pid) == peer.identity
    assert peer.identity.is_alive()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls exit(2) by its number")
def test_a_process_whose_main_thread_has_ended_is_alive() -> None:
    script = """if True:
        import ctypes, os, sys, threading, time
        def run():
            while open(f'/proc/{os.getpid()}/stat').read().split()[2] != 'Z':
                time.sleep(0.001)
            os.write(1, b'Z')
            os.read(0, 1)
            os._exit(0)
        threading.Thread(target=run).start()
        ctypes.CDLL(None).syscall(60, 0)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        assert popen.stdin is not None
        assert popen.stdout.read(1) == b"Z"
        identity = Identity.of(popen.pid)
        assert identity is not None
        assert identity.is_alive()
        popen.stdin.close()
        popen.wait(BOUND_S)
        assert not identity.is_alive()


def test_without_proc_psutil_judges(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "ON_LINUX", False)
    identity = Identity.of(peer.popen.pid)
    assert identity is not None
    assert identity.is_alive()
    assert peer.popen.pid in identities.all_stats()
    os.kill(peer.popen.pid, signal.SIGKILL)
    wait_until_zombie(peer.popen.pid)
    assert not identity.is_alive()
    peer.kill()
    assert not identity.is_alive()
