"""The peer is who it says: with ``auth=True`` nothing that another process writes is taken for the peer's.

Here the attacker is of the same user, has the session's directory, and knows the protocol; only the secret it lacks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rings import slot_at
from support import FOREVER_MS, Gate, at_rest, empty_place, open_files

from tr_mmap import HostilePath, PythonSession, ResponseTimeout, SessionNotStarted, WorkerDied
from tr_mmap.protocol.messages import decode_request, encode
from tr_mmap.sessions import secret as session_secret
from tr_mmap.wire.messages import RING_SLOT_NBYTES
from tr_mmap.wire.names import SECRET_FD_VARIABLE

LIAR = Path(__file__).with_name("liar.py")

# The attacker: a program that knows which slot of the ring is taken next and where in it the number is, and nothing of
# our code.
FORGER = r"""
import mmap, os, sys
path, seq, rest, slot, nbytes = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode("latin-1"), *map(int, sys.argv[4:])
if slot == 0:  # a channel of files
    new = path + ".forged"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(b'{"seq":%d' % seq + rest)
    os.rename(new, path)
else:
    with open(path, "r+b") as file:
        ring = mmap.mmap(file.fileno(), 0)
        ring[slot + 8:slot + 16] = b"       0"
        ring[slot + 16:slot + nbytes] = (rest + b"\n").ljust(nbytes - 16)[:nbytes - 16]
        ring[slot + 8:slot + 16] = b"%8d" % seq
"""


def forge(session: PythonSession, name: str, seq: int, rest: bytes) -> None:
    """Write a message from a third process, where the worker or the controller looks for the next one."""
    slot = 0
    if channel_of(session) == "mapped":
        inner = session._dispatcher.resources.worker.channel._inner
        slot = slot_at(inner._out.stored if name == "request" else inner._in.taken)
    path = os.path.join(session.session_dir(), f"{name}s.ring" if slot else f"{name}.json")
    arguments = [path, str(seq), rest.decode("latin-1"), str(slot), str(RING_SLOT_NBYTES)]
    subprocess.run([sys.executable, "-c", FORGER, *arguments], check=True)


@pytest.fixture(scope="module", params=["mapped", "files"])
def shared(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with empty_place() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(path))
        with PythonSession(LIAR, quiet_mode=True, auth=True, channel=request.param) as session:
            patch.undo()
            yield session


@pytest.fixture
def session(shared: PythonSession) -> Iterator[PythonSession]:
    """An authenticated session over each channel, which must be usable after the test."""
    yield shared
    assert shared.calculate("echo", np.arange(3.0)).tolist() == [0, 1, 2]


def channel_of(session: PythonSession) -> str:
    return session._options.channel


def seq_of(session: PythonSession) -> int:
    return session._dispatcher._counters.seq


def hold(session: PythonSession, gate: Gate) -> None:
    """Ask, and keep the worker from answering."""
    session.send_request(f"wait {gate.path}")
    gate.wait_for_worker()


# -- it works -------------------------------------------------------------------------------------------------------


def test_an_authenticated_session_does_what_any_other_does(session: PythonSession) -> None:
    x = np.arange(6.0).reshape(2, 3)
    session.send_tensor(x, "a")
    assert np.array_equal(session.fetch_tensor("echo a"), x)
    assert len(session.fetch_response("environment")) > 0
    with pytest.raises(Exception, match="knows no command"):
        session.fetch_response("x" * 200_000)  # too long for a slot
    session.drop_tensor("a")
    assert session.rejected == 0
    assert session.fetch_response("rejected") == "0"


def test_every_message_bears_a_mac_and_no_two_the_same(workspace: Path) -> None:
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        seen = set()
        for _ in range(5):
            session.fetch_response("rejected")
            for name in ("request.json", "response.json"):
                path = Path(session.session_dir()) / name
                text = at_rest(path, lambda fields: fields["seq"] == seq_of(session))
                assert re.fullmatch("[0-9a-f]{32}", text["mac"])
                assert list(text)[-1] == "mac"
                seen.add(text["mac"])
        assert len(seen) == 10


def test_without_auth_no_message_has_a_mac(mapped: PythonSession) -> None:
    mapped.fetch_response("hello you")
    for name in ("request.json", "response.json"):
        assert b"mac" not in (Path(mapped.session_dir()) / name).read_bytes()
    assert mapped.rejected == 0


# -- the secret -----------------------------------------------------------------------------------------------------


def test_the_secret_is_in_no_argument_environment_or_file_and_its_pipe_is_closed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = []
    made = session_secret.new_secret

    def spy() -> bytes:
        secrets.append(made())
        return secrets[-1]

    monkeypatch.setattr("tr_mmap.controller.resources.new_secret", spy)
    before = open_files()
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        text, fds = session.fetch_response("environment").split()
        (secret,) = secrets
        assert len(secret) == 32
        seen = bytes.fromhex(text) + b"".join(each.read_bytes() for each in workspace.rglob("*") if each.is_file())
        for form in (secret[:8], secret[-8:], secret.hex().encode(), secret.hex().upper().encode()):
            assert form not in seen
        number = re.search(rb"TR_MMAP_AUTH_FD=([0-9]+)", bytes.fromhex(text))
        assert number is not None
        assert number[1].decode() not in fds.split(",") or _is_no_pipe(session, number[1].decode())
    assert open_files() <= before


def _is_no_pipe(session: PythonSession, number: str) -> bool:
    pid = session._dispatcher.resources.worker.process.pid
    return not os.readlink(f"/proc/{pid}/fd/{number}").startswith("pipe:")


def test_each_worker_gets_a_secret_of_its_own(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = []
    made = session_secret.new_secret
    monkeypatch.setattr("tr_mmap.controller.resources.new_secret", lambda: secrets.append(made()) or secrets[-1])
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        for _ in range(2):
            session.terminate()
            session.join()
            session.start()
            assert session.fetch_response("rejected") == "0"
    assert len(set(secrets)) == 3


def test_the_secret_can_be_taken_once_and_is_not_passed_on() -> None:
    secret = session_secret.new_secret()
    with session_secret.handed_over(secret) as (variables, (fd,)):
        environ = dict(variables)
        assert session_secret.inherited_secret({**environ, SECRET_FD_VARIABLE: str(os.dup(fd))}) == secret
        assert session_secret.inherited_secret({}) is None


@pytest.mark.parametrize("number", ["", "x", "-1", "999999", "9" * 30, "0x3", "\u0663"])
def test_a_secret_that_cannot_be_read_is_a_typed_error(number: str) -> None:
    environ = {SECRET_FD_VARIABLE: number}
    with pytest.raises(SessionNotStarted, match="secret"):
        session_secret.inherited_secret(environ)
    assert environ == {}


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 1000])
def test_a_secret_of_the_wrong_length_is_a_typed_error_and_its_descriptor_is_closed(content: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with pytest.raises(SessionNotStarted, match="secret"):
        session_secret.inherited_secret({SECRET_FD_VARIABLE: str(reading)})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_a_worker_whose_secret_was_stolen_does_not_serve_without(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tr_mmap.base import system

    real = system.write_pipe
    monkeypatch.setattr(system, "write_pipe", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(WorkerDied, match="secret"):
        PythonSession(LIAR, quiet_mode=True, auth=True).__enter__()


def test_editing_the_manifest_does_not_turn_authentication_off(workspace: Path) -> None:
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        text = (Path(session.session_dir()) / "session.json").read_text()
        assert "auth" not in text  # nothing there to edit


# -- forged requests ------------------------------------------------------------------------------------------------


def forge_request(session: PythonSession, rest: bytes, seq: int | None = None) -> int:
    """Forge until the worker has looked before our own next request came over it; how many it has refused then."""
    before = int(session.fetch_response("rejected"))
    for _ in range(200):
        forge(session, "request", seq or seq_of(session) + 1, rest)
        session._dispatcher.resources.worker.channel.ring()
        refused = int(session.fetch_response("rejected")) - before
        if refused:
            return refused
    raise AssertionError("the worker never saw a forged request")


EVIL = b',"command":"rejected","parameters":"","timestamp":1'


@pytest.mark.parametrize(
    "rest",
    [
        EVIL + b"}",
        EVIL + b',"mac":""}',
        EVIL + b',"mac":"' + b"0" * 32 + b'"}',
        EVIL + b',"mac":"' + b"f" * 32 + b'","mac":"' + b"0" * 32 + b'"}',
        EVIL + b',"mac":null}',
        b"}",
        b"",
        b',"command":"exit"}',
        b',"spill":"request.1_1.spill"}',
        b',"spill":"../../x.spill"}',
        b"\xff" * 100,
    ],
    ids=lambda rest: ascii(rest[-24:]),
)
def test_a_forged_request_is_not_obeyed_and_counted(session: PythonSession, rest: bytes) -> None:
    assert forge_request(session, rest) == 1


def test_a_request_without_an_end_is_not_obeyed(session: PythonSession) -> None:
    if channel_of(session) != "mapped":
        pytest.skip("only a slot has an end of its own")
    assert forge_request(session, EVIL.ljust(RING_SLOT_NBYTES - 16, b"x")) == 1


def test_a_replayed_request_is_not_obeyed_and_counted(session: PythonSession) -> None:
    recorded = []
    channel = session._dispatcher.resources.worker.channel
    inner_send = channel._inner.send
    channel._inner.send = lambda message, *more: (recorded.append(encode(message)), inner_send(message, *more))
    before = int(session.fetch_response("rejected"))
    channel._inner.send = inner_send
    (raw,) = recorded
    rest = raw[raw.index(b",") :]
    assert int(session.fetch_response("rejected")) == before
    assert forge_request(session, rest) == 1  # under the number that comes next
    assert forge_request(session, rest, seq=decode_request(raw).seq) == 1  # as it was


def test_a_forged_exit_in_the_status_does_not_end_the_worker(session: PythonSession) -> None:
    path = Path(session.session_dir()) / "status.txt"
    with open(path, "r+b") as status:
        status.write(b"exit\n".ljust(16))
    session._dispatcher.resources.worker.channel.ring()
    assert session.calculate("echo", np.ones(1)).tolist() == [1]
    assert session.is_alive()


# -- forged responses -----------------------------------------------------------------------------------------------

LIE = b',"command":"wait","result":"evil","timestamp":1'


@pytest.mark.parametrize(
    "rest",
    [
        LIE + b"}",
        LIE + b',"mac":"' + b"0" * 32 + b'"}',
        LIE + b',"mac":7}',
        b"}",
        b"garbage",
        b',"spill":"response.1_1.spill"}',
    ],
    ids=lambda rest: ascii(rest[-24:]),
)
def test_a_forged_response_is_refused_counted_and_the_wait_goes_on(
    session: PythonSession, gate: Gate, rest: bytes
) -> None:
    hold(session, gate)
    before = session.rejected
    forge(session, "response", seq_of(session), rest)
    assert not session.new_response()
    assert session.rejected == before + 1
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(50)
    gate.let_go("real")
    assert session.wait_for_response(FOREVER_MS) == "real"
    assert session.rejected == before + 1


def test_a_forged_response_while_somebody_waits_is_refused_and_the_wait_goes_on(
    session: PythonSession, gate: Gate
) -> None:
    hold(session, gate)
    before = session.rejected
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.append(session.wait_for_response(FOREVER_MS)))
    waiter.start()
    forge(session, "response", seq_of(session), LIE + b"}")
    session._dispatcher.resources.worker.channel.wake()
    gate.let_go("real")
    waiter.join()
    assert answers == ["real"]
    assert session.rejected in (before, before + 1)  # the real one may have been written over it unseen


def test_an_old_response_is_not_taken_for_the_next(session: PythonSession, gate: Gate) -> None:
    path = Path(session.session_dir()) / "response.json"
    inner = session._dispatcher.resources.worker.channel._inner
    recorded: list[bytes | None] = []
    peek = inner.peek
    inner.peek = lambda: (recorded.append(peek()), recorded[-1])[1]
    session.calculate("echo", np.zeros(1))
    inner.peek = peek
    (raw,) = {each for each in recorded if each is not None}
    hold(session, gate)
    before = session.rejected
    rest = raw[raw.index(b",") :]
    for count, seq in enumerate((seq_of(session), seq_of(session) - 1), 1):  # as the next one, and as it was
        forge(session, "response", seq, rest)
        assert not session.new_response()
        assert session.rejected == before + count
    assert path.exists() == (channel_of(session) == "mapped")
    gate.let_go("real")
    assert session.wait_for_response(FOREVER_MS) == "real"


def test_ones_own_message_sent_back_is_refused(session: PythonSession, gate: Gate) -> None:
    recorded = []
    channel = session._dispatcher.resources.worker.channel
    inner_send = channel._inner.send
    channel._inner.send = lambda message, *more: (recorded.append(encode(message)), inner_send(message, *more))
    hold(session, gate)
    channel._inner.send = inner_send
    before = session.rejected
    raw = recorded[-1]
    forge(session, "response", seq_of(session), raw[raw.index(b",") :])
    assert not session.new_response()
    assert session.rejected == before + 1
    gate.let_go("real")
    assert session.wait_for_response(FOREVER_MS) == "real"


@pytest.mark.parametrize("is_directory", [False, True])
def test_what_is_no_file_in_a_responses_place(shared: PythonSession, gate: Gate, is_directory: bool) -> None:
    if channel_of(shared) != "files":
        pytest.skip("a ring is mapped already")
    hold(shared, gate)
    path = Path(shared.session_dir()) / "response.json"
    before = shared.rejected
    if is_directory:
        path.mkdir()
        with pytest.raises(HostilePath):
            shared.wait_for_response(FOREVER_MS)
        path.rmdir()
    else:
        path.symlink_to("/dev/zero")
        assert not shared.new_response()
        assert not path.is_symlink()
        assert shared.rejected == before + 1
    gate.let_go("real")
    assert shared.wait_for_response(FOREVER_MS) == "real"


def test_the_count_survives_the_worker(workspace: Path) -> None:
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        session.send_request("rejected")
        session.wait_for_response()
        session._dispatcher.resources.rejections.rejected = 3
        session.terminate()
        session.join()
        session.start()
        session.fetch_response("rejected")
        assert session.rejected == 3
