"""The status: every spelling is read, the table of transitions is closed, and a worker keeps to it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import outcome

from tr_mmap import PythonSession
from tr_mmap.errors import BadMessage, RemoteError, UnknownCommand
from tr_mmap.protocol.messages import Failure, FailureKind, Request, Response, TensorRef, encode
from tr_mmap.protocol.status import TRANSITIONS, Status, StatusLine, parse_status
from tr_mmap.wire.messages import MAX_DETAIL_CHARS


@pytest.mark.parametrize(
    ("text", "line"),
    [
        *[(status.value, StatusLine(status)) for status in Status],
        ("running", StatusLine(Status.BUSY)),
        ("done", StatusLine(Status.OK)),
        ("Running: 3 of 5", StatusLine(Status.BUSY, "3 of 5")),
        (" DONE\n", StatusLine(Status.OK)),
        ("ok:", StatusLine(Status.OK)),
        ("error: a: b", StatusLine(Status.ERROR, "a: b")),
        ("error : x", StatusLine(Status.ERROR, "x")),
    ],
)
def test_every_spelling_of_a_status_is_read(text: str, line: StatusLine) -> None:
    assert parse_status(text) == line


@given(st.text() | st.sampled_from(["", ":", ": busy", "busyy", "ok ay", "oks", "exit!"]))
@settings(deadline=None)
def test_any_text_is_a_status_or_a_bad_message(text: str) -> None:
    found = outcome(lambda: parse_status(text))
    if isinstance(found, BadMessage):
        assert len(str(found)) < 500
    else:
        assert text.strip().lower().startswith((found.status.value, "running", "done"))


@given(st.sampled_from(Status), st.text())
@settings(deadline=None)
def test_a_status_comes_back_in_one_line(status: Status, detail: str) -> None:
    text = StatusLine(status, detail).to_text()
    assert len(text.splitlines()) == 1
    assert len(text) <= len(status.value) + 2 + MAX_DETAIL_CHARS
    assert parse_status(text) == StatusLine(status, " ".join(detail.split())[:MAX_DETAIL_CHARS].strip())


def test_waiting_and_over_are_told_from_the_rest() -> None:
    assert {status for status in Status if status.is_waiting} == {Status.READY, Status.OK, Status.ERROR}
    assert {status for status in Status if status.is_over} == {Status.EXITING, Status.TERMINATED}


# --- transitions ------------------------------------------------------------------------------------------------


def test_the_table_of_transitions_is_closed() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {each for targets in TRANSITIONS.values() for each in targets} <= set(Status)


def test_terminated_is_final_and_reached_from_everywhere() -> None:
    assert TRANSITIONS[Status.TERMINATED] == {Status.TERMINATED}
    for status in Status:
        assert Status.TERMINATED in TRANSITIONS[status]


def test_nobody_starts_again_or_comes_back_from_the_end() -> None:
    ends = {Status.EXIT, Status.EXITING, Status.TERMINATED}
    for status, targets in TRANSITIONS.items():
        assert Status.STARTING not in targets
        if status in ends:
            assert targets <= ends
        if status.is_over:
            assert Status.EXIT not in targets


def test_work_begins_where_the_worker_waits() -> None:
    for status, targets in TRANSITIONS.items():
        assert (Status.BUSY in targets) == (status.is_waiting or status is Status.BUSY)


WORKER = """
import os
from tr_mmap import BadMessage, Server
from tr_mmap.worker import attach

LOG = os.environ["STATUS_LOG"]

def recording(kind):
    class Recording(kind):
        def advance_status(self, status, detail=""):
            try:
                before = self.read_status().status.value
            except BadMessage:
                before = "spoilt"
            stands = super().advance_status(status, detail)
            if stands:
                with open(LOG, "a") as log:
                    log.write(f"{before} {status.value}\\n")
            return stands
    return Recording

channel_kind = attach.channel_kind
attach.channel_kind = lambda name: recording(channel_kind(name))

server = Server()

@server.command("say")
def say(text: str):
    server.write_status(text)
    return text

@server.command("fail")
def fail(text: str):
    raise ValueError(os.fsdecode(b"no \\xff text"))

@server.command("bytes")
def bytes_(text: str):
    return os.fsdecode(b"no \\xff text")

@server.command("wish")
def wish(text: str):
    with open(os.path.join(server.session_dir, "status.txt"), "r+") as file:  # what a controller of any kind may do
        file.write(text + "\\n")
    return text

server.run()
"""


class Recorded:
    """A session whose worker tells which statuses it wrote, and over which."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = tmp_path / "log"
        monkeypatch.setenv("STATUS_LOG", str(self.log))
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(WORKER))
        self.session = PythonSession(str(script), quiet_mode=True)

    def steps(self) -> list[tuple[Status, Status]]:
        return [(Status(before), Status(after)) for before, after in map(str.split, self.log.read_text().splitlines())]

    def assert_all_are_of_the_table(self) -> None:
        steps = self.steps()
        assert [step for step in steps if step[1] not in TRANSITIONS[step[0]]] == []
        assert steps[0] == (Status.STARTING, Status.READY)
        assert steps[-1] == (Status.EXITING, Status.TERMINATED)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(tmp_path, monkeypatch)


def test_a_worker_makes_only_transitions_of_the_table(recorded: Recorded) -> None:
    with recorded.session as session:
        assert session.fetch_response("say busy: epoch 3") == "busy: epoch 3"
        assert session.fetch_response("say ok") == "ok"
        assert session.fetch_response("say error: not yet") == "error: not yet"
        assert session.is_ready()
        for wrong in ("say starting", "say what"):
            with pytest.raises(RemoteError):
                session.fetch_response(wrong)
        with pytest.raises(RemoteError, match=r"no \? text"):
            session.fetch_response("fail x")
        with pytest.raises(RemoteError, match="BadMessage"):
            session.fetch_response("bytes x")
        with pytest.raises(UnknownCommand):
            session.fetch_response("nothing")
        assert session.fetch_response("say ready") == "ready"
        assert session.wait_until_ok()
    recorded.assert_all_are_of_the_table()
    assert {after for _, after in recorded.steps()} >= set(Status) - {Status.STARTING, Status.EXIT}


def test_an_exit_wished_for_while_the_worker_is_busy_is_not_forgotten(recorded: Recorded) -> None:
    with recorded.session as session:
        assert session.fetch_response("wish exit") == "exit"  # the answer still comes
        assert session.join(60_000)
    recorded.assert_all_are_of_the_table()
    assert (Status.EXIT, Status.EXITING) in recorded.steps()


@pytest.mark.parametrize("word", ["exiting", "terminated", "exit"])
def test_a_handler_that_says_it_ends_is_believed(recorded: Recorded, word: str) -> None:
    with recorded.session as session:
        assert session.fetch_response(f"say {word}") == word
        assert session.join(60_000)
    steps = recorded.steps()
    assert [step for step in steps if step[1] not in TRANSITIONS[step[0]]] == []
    assert steps[-1][1] is Status.TERMINATED


def test_a_status_that_somebody_has_spoilt_does_not_end_the_worker(recorded: Recorded) -> None:
    with recorded.session as session:
        assert session.fetch_response("wish exitus") == "exitus"
        assert session.fetch_response("say ok") == "ok"


def test_the_structures_are_what_other_languages_expect() -> None:
    assert encode(Request(7, "matmul", "a b", 5, [TensorRef("a", "segment_0.tsr", 3)], ["x"])) == (
        b'{"seq":7,"command":"matmul","parameters":"a b","timestamp":5,'
        b'"tensors":[["a","segment_0.tsr",3]],"drops":["x"]}'
    )
    assert encode(Response(7, "matmul", "ok", "fine", 5, [TensorRef("", "result_0.tsr", 3)])) == (
        b'{"seq":7,"command":"matmul","result":"ok","message":"fine","timestamp":5,"tensors":[["","result_0.tsr",3]]}'
    )
    failed = encode(Response(7, error=Failure(FailureKind.HANDLER, "ValueError", "no", "tb")))
    assert msgspec.json.decode(failed)["error"] == {
        "kind": "handler",
        "type": "ValueError",
        "message": "no",
        "traceback": "tb",
    }
