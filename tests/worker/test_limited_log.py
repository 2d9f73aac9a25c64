"""A handler prints, and the system does not let the log grow: a limit of a file's size, a full disk."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import script, wait_until

from tr_mmap import PythonSession, RemoteError

WORKER = """
import logging, os, subprocess, sys, warnings
from tr_mmap import Server
server = Server()

@server.command("print")
def chat(count: int):
    for _ in range(count):
        print("x" * 999)
    return "printed"

@server.command("each_way")
def each_way():
    print("text", flush=True)
    sys.stdout.write("y" * 100_000)
    sys.stdout.flush()
    sys.stdout.buffer.write(b"bytes\\n")
    sys.stderr.write("to stderr\\n")
    print("to the first stdout", file=sys.__stdout__)
    logging.error("logged")
    warnings.warn("warned", stacklevel=1)
    server.debug_message("debugged")
    return "all"

@server.command("child")
def child():
    code = "import os; os.write(1, b'of a child' + bytes([10]))"
    return str(subprocess.run([sys.executable, "-c", code]).returncode)

@server.command("own")
def own():
    raise KeyError("mine")

@server.command("other")
def other(path: str):
    kept, fd = os.dup(1), os.open(path, os.O_WRONLY)
    os.dup2(fd, 1)
    try:
        print("to a file of the handler's own")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(fd)
    return "written"

@server.command("close")
def close(way: str):
    if way == "native":
        import ctypes
        ctypes.CDLL(None).close(1), ctypes.CDLL(None).close(2)
    else:
        os.closerange(1, 3)
    print("nobody hears this", flush=True)
    print("nor this", file=sys.stderr)
    return "closed"

server.run()
print("z" * 200_000)
"""


@contextlib.contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """What is started meanwhile may write no larger files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_prints(session: PythonSession[Any]) -> None:
    for _ in range(2):
        assert session.fetch_response("print 2000") == "printed"
        assert session.fetch_response("each_way") == "all"
    with pytest.raises(RemoteError, match="KeyError: 'mine'"):
        session.fetch_response("own")
    assert session.is_alive()


@pytest.mark.parametrize("nbytes", [1 << 20, 512 << 10])
def test_a_log_stays_below_the_limit_of_a_files_size_and_has_the_newest_text(tmp_path: Path, nbytes: int) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session, file_size_limit(nbytes):
        session.terminate()
        session.join()
        session.start()
        check_prints(session)
        log = Path(session.session_dir(), "worker.log")
        assert log.stat().st_size <= nbytes
        assert session.stats().log_dropped_nbytes > 4_000_000 - nbytes
        session.fetch_response("print 1")
        assert log.read_bytes().endswith(b"x" * 999 + b"\n")
        # A child's text is no text of Python's here, and it would end by SIGXFSZ.
        assert session.fetch_response("child") == "0"
        assert session.please_exit()  # what is printed after run() is no error either


@pytest.mark.parametrize("nbytes", [0, 10, 300])
def test_under_a_limit_that_leaves_no_log_what_a_handler_prints_is_dropped(tmp_path: Path, nbytes: int) -> None:
    # Only here, because under such a limit no session starts.
    lowered = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({nbytes}, -1))\nserver.run()"
    program = script(tmp_path, WORKER.replace("server.run()", lowered))
    with PythonSession(program, quiet_mode=True, channel="mapped") as session:
        check_prints(session)
        assert Path(session.session_dir(), "worker.log").stat().st_size <= nbytes


@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("way", ["os", "native"])
def test_what_a_handler_prints_to_a_descriptor_that_it_has_closed_is_dropped(
    tmp_path: Path, channel: Any, way: str
) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True, channel=channel) as session:
        assert session.fetch_response(f"close {way}") == "closed"
        assert session.fetch_response("print 1") == "printed"
        with pytest.raises(RemoteError, match="KeyError: 'mine'"):
            session.fetch_response("own")
        assert session.please_exit()


def test_an_error_of_a_file_of_the_handlers_own_is_the_handlers(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session:
        with pytest.raises(RemoteError, match="No space left on device"):
            session.fetch_response("other /dev/full")
        assert session.fetch_response("print 1") == "printed"


def test_on_a_full_disk_what_a_handler_prints_is_dropped_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tr_mmap-test", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: a full disk for logs, for this user may mount none ({mounted.stderr.strip()})")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(place))  # where the log is, if the session is in memory
        with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session:
            log = Path(session.session_dir(), "worker.log")
            if not log.is_symlink():
                pytest.skip("NOT TESTED: a full disk for logs, for the session's directory is on a disk itself")
            with open(place / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            check_prints(session)
            os.unlink(place / "filler")
            session.fetch_response("print 1")
            wait_until(lambda: log.read_bytes().endswith(b"x" * 999 + b"\n"))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
