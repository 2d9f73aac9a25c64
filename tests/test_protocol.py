"""Messages and statuses: every spelling is read, nothing but BadMessage comes of garbage, and the table is kept."""

from __future__ import annotations

import json
import math
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tr_mmap import PythonSession
from tr_mmap.errors import BadMessage, RemoteError, UnknownCommand
from tr_mmap.protocol import (
    MAX_DETAIL_CHARS,
    MAX_SEQ,
    TRANSITIONS,
    Failure,
    FailureKind,
    Request,
    Response,
    Status,
    StatusLine,
    TensorRef,
    decode_request,
    decode_response,
    encode,
    now_ms,
    parse_command,
    parse_status,
    split_words,
)


def outcome(action: Callable[[], Any]) -> Any:
    """What it returns, or the BadMessage that it raises; anything else fails the test."""
    try:
        return action()
    except BadMessage as error:
        return error


DEPTHS = (50, 500, 900, 990, 1000, 10_000, 100_000)

# --- commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "command", "parameters"),
    [
        ("matmul a b", "matmul", "a b"),
        ("matmul", "matmul", ""),
        ("  matmul  a,b  ", "matmul", "a,b"),
        ("matmul\ta\nb", "matmul", "a\nb"),
        ("matmul\n", "matmul", ""),
        ("hello  two  spaces", "hello", "two  spaces"),
        ("größe 漢字 🙂", "größe", "漢字 🙂"),
        ('say {"cmd": "x"}', "say", '{"cmd": "x"}'),
        ("[a] b", "[a]", "b"),
        ('{"cmd": "matmul", "params": "a,b"}', "matmul", "a,b"),
        ('{"command": "matmul", "parameters": "a,b"}', "matmul", "a,b"),
        ('{"cmd": "matmul", "parameters": "a,b"}', "matmul", "a,b"),
        ('{"command": "matmul", "params": "a,b"}', "matmul", "a,b"),
        (' \n{"cmd": "matmul"}\n', "matmul", ""),
        ('{"cmd": " matmul ", "params": null}', "matmul", ""),
        ('{"cmd": "matmul", "params": ""}', "matmul", ""),
        ('{"cmd": "matmul", "params": []}', "matmul", ""),
        ('{"cmd": "matmul", "params": ["a", "b c", 3, 0.5, true]}', "matmul", "a b c 3 0.5 True"),
        ('{"cmd": "matmul", "params": 3}', "matmul", "3"),
        ('{"cmd": "matmul", "params": -0.5}', "matmul", "-0.5"),
        ('{"cmd": "a", "command": "a", "params": "b", "parameters": "b"}', "a", "b"),
        ('{"cmd": "a", "more": {"x": [1, 2]}, "seq": 5}', "a", ""),
    ],
)
def test_every_spelling_of_a_command_is_read(message: str, command: str, parameters: str) -> None:
    assert parse_command(message) == (command, parameters)
    if message.strip().startswith("{"):
        assert parse_command(json.loads(message)) == (command, parameters)
        asked = decode_request(message.encode())
        assert (asked.command, asked.parameters) == (command, parameters)


def test_a_mapping_may_hold_a_tuple_of_words() -> None:
    assert parse_command({"cmd": "matmul", "params": ("a", "b")}) == ("matmul", "a b")


@pytest.mark.parametrize(
    "message",
    [
        '{"cmd": "a", "command": "b"}',
        '{"cmd": null, "command": "b"}',
        '{"cmd": "a", "params": "b", "parameters": "c"}',
        '{"cmd": "a", "params": null, "parameters": "c"}',
        '{"cmd": "a", "params": ["b"], "parameters": "b"}',
        '{"params": "a"}',
        "{}",
        '{"cmd": ""}',
        '{"cmd": " "}',
        '{"cmd": null}',
        '{"cmd": 3}',
        '{"cmd": ["a"]}',
        '{"cmd": "a", "params": {"b": 1}}',
        '{"cmd": "a", "params": [["b"]]}',
        '{"cmd": "a", "params": [null]}',
        '{"cmd": "a", "params": [{"b": 1}]}',
        '{"Command": "a"}',
    ],
)
def test_an_object_without_one_clear_command_is_refused(message: str) -> None:
    for action in (
        lambda: parse_command(message),
        lambda: parse_command(json.loads(message)),
        lambda: decode_request(message.encode()),
    ):
        with pytest.raises(BadMessage):
            action()


@pytest.mark.parametrize(
    "message",
    [
        "",
        " \t\n",
        "{",
        "{]",
        '{"cmd": "a"',
        '{"cmd": "a"} {"cmd": "b"}',
        '{"cmd": "a", "params": NaN}',
        '{"cmd": "a", "params": Infinity}',
        '{"cmd": "a", "params": 1e999}',
        "{'cmd': 'a'}",
        '{"cmd": "\\ud800"}',
        '{"cmd": "\ud800"}',
        '{"cmd": "a", "params": %s}' % ("9" * 5000),
        '{"cmd": "a", "params": [%s]}' % ("9" * 5000),
        '{"cmd": "a\nb"}',
    ],
    ids=range(15),
)
def test_text_that_is_no_message_is_refused(message: str) -> None:
    with pytest.raises(BadMessage):
        parse_command(message)
    with pytest.raises(BadMessage):
        decode_request(message.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "value", [10**5000, [10**5000], [b"a"], b"a", object(), {"a": 1}, [None], math.nan, 1j], ids=range(9)
)
def test_a_mapping_of_other_things_is_refused_or_written(value: Any) -> None:
    try:
        command, parameters = parse_command({"cmd": "a", "params": value})
    except BadMessage:
        return
    assert (command, parameters) == ("a", "nan")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "form", ['{"cmd":"a","params":%s%s}', '{"command":"a","x":%s%s}', "%s%s", '{"seq":1,"tensors":%s%s}']
)
def test_deep_nesting_is_never_more_than_a_bad_message(form: str, depth: int) -> None:
    for opening, closing in ("[]", ('{"x":', "}")):
        inner = "" if opening == "[" else "1"
        text = form % (opening * depth + inner, closing * depth)
        for action in (
            lambda text=text: decode_request(text.encode()),
            lambda text=text: decode_response(text.encode()),
            lambda text=text: parse_command(text),
        ):
            found = outcome(action)
            assert not isinstance(found, BadMessage) or len(str(found)) < 1000


def test_a_deep_mapping_is_a_bad_message() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadMessage):
        parse_command({"cmd": "a", "params": deep})
    while deep:  # freeing it all at once would recurse
        deep = deep.pop()


@given(st.text() | st.from_regex(r"\{.*\}"))
@settings(deadline=None, max_examples=300)
@example("{")
def test_any_text_is_a_command_or_a_bad_message(text: str) -> None:
    try:
        command, parameters = parse_command(text)
    except BadMessage:
        return
    assert command
    assert command == command.strip()
    assert command in text or text.lstrip().startswith("{")
    assert parameters.strip() == parameters or text.lstrip().startswith("{")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["seq", "command", "cmd", "parameters", "params", "timestamp", "tensors", "drops", "result", "message", "error"]
)
OBJECTS = st.dictionaries(FIELDS, JSON | st.sampled_from(["a", "a b", ["a"], [["a", "s", 1]], {"kind": "handler"}]))


@given(st.binary() | st.binary().map(lambda raw: b'{"cmd":"' + raw + b'"}') | OBJECTS.map(json.dumps).map(str.encode))
@settings(deadline=None, max_examples=500)
@example(b'{"command":"\xff"}')
@example(b'{"x":"\xff","cmd":"a"}')
@example(b"\xef\xbb\xbf{}")
@example(b"")
def test_any_bytes_are_a_message_or_a_bad_message(raw: bytes) -> None:
    for decode in (decode_request, decode_response):
        found = outcome(lambda decode=decode: decode(raw))
        if isinstance(found, BadMessage):
            assert len(str(found)) < 1000
        else:
            assert decode(encode(found)) == found


@given(OBJECTS)
@settings(deadline=None, max_examples=300)
def test_any_mapping_is_a_command_or_a_bad_message(fields: dict[str, Any]) -> None:
    try:
        command, parameters = parse_command(fields)
    except BadMessage:
        return
    assert command.strip() == command != ""
    assert isinstance(parameters, str)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("", []),
        (" , ,, ", []),
        ("a b", ["a", "b"]),
        ("a,b", ["a", "b"]),
        (" a ,\tb\n, c ", ["a", "b", "c"]),
        ("a\tb  c", ["a", "b", "c"]),
    ],
)
def test_words_are_separated_by_spaces_or_commas(parameters: str, words: list[str]) -> None:
    assert split_words(parameters) == words


@given(st.lists(st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters=","), min_size=1)))
@settings(deadline=None)
def test_words_come_back_from_either_separator(words: list[str]) -> None:
    for separator in (" ", ",", ", ", " , "):
        assert split_words(separator.join(words)) == words


# --- round trips ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WORD = TEXT.filter(lambda text: text.strip() == text != "")
REFS = st.lists(st.builds(TensorRef, TEXT, TEXT, st.integers(0, 2**64 - 1)), max_size=4)
SEQ = st.integers(0, MAX_SEQ)
WHEN = st.integers(0, 2**62)


@given(st.builds(Request, SEQ, WORD, TEXT, WHEN, REFS, st.lists(TEXT, max_size=4)))
@settings(deadline=None, max_examples=200)
def test_requests_come_back_as_they_were(request: Request) -> None:
    raw = encode(request)
    assert decode_request(raw) == request
    fields = json.loads(raw)
    assert fields.get("command") == request.command
    assert fields.get("parameters", "") == request.parameters
    if request.seq:
        assert raw.startswith(b'{"seq":%d' % request.seq)  # where the mapped channel looks for it


FAILURES = st.builds(Failure, st.sampled_from(FailureKind), TEXT, TEXT, TEXT)


@given(st.builds(Response, SEQ, TEXT, TEXT, TEXT, WHEN, REFS, st.none() | FAILURES))
@settings(deadline=None, max_examples=200)
def test_responses_come_back_as_they_were(response: Response) -> None:
    raw = encode(response)
    assert decode_response(raw) == response
    assert json.loads(raw).get("result", "") == response.result


@given(st.builds(Request, st.just(1), WORD, TEXT, WHEN, REFS))
@settings(deadline=None)
def test_a_request_in_the_other_spelling_is_the_same_request(request: Request) -> None:
    fields = json.loads(encode(request))
    other = {{"command": "cmd", "parameters": "params"}.get(key, key): value for key, value in fields.items()}
    assert decode_request(json.dumps(other).encode()) == request


def test_unknown_members_are_passed_over() -> None:
    assert decode_request(b'{"command":"a","later":[1]}') == Request(command="a")
    assert decode_response(b'{"result":"a","later":[1]}') == Response(result="a")


@pytest.mark.parametrize("field", ["command", "parameters"])
def test_what_is_no_text_cannot_be_sent(field: str) -> None:
    with pytest.raises(BadMessage):
        encode(Request(1, **{field: os.fsdecode(b"\xff")}))


def test_messages_do_not_share_their_lists() -> None:
    decode_request(b'{"command":"a"}').tensors.append(TensorRef("a", "b", 1))
    Request().drops.append("a")
    assert decode_request(b'{"command":"a"}') == Request(command="a")
    assert Request().drops == []


def test_timestamps_are_milliseconds_since_1970() -> None:
    before = time.time()
    assert int(before * 1000) <= now_ms() <= time.time() * 1000


# --- status -----------------------------------------------------------------------------------------------------


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
from tr_mmap import BadMessage, Server, channel

LOG = os.environ["STATUS_LOG"]

def recording(kind):
    class Recording(kind):
        def enter(self, status, detail=""):
            try:
                before = self.read_status().status.value
            except BadMessage:
                before = "spoilt"
            stands = super().enter(status, detail)
            if stands:
                with open(LOG, "a") as log:
                    log.write(f"{before} {status.value}\\n")
            return stands
    return Recording

for name, kind in list(channel.CHANNELS.items()):
    channel.CHANNELS[name] = recording(kind)

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
