"""Control texts that a peer of ours would never write: a typed error each, at once, at no cost, and life goes on."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import empty_place, never

from tr_mmap import BadMessage, HostilePath, PythonSession
from tr_mmap.base.strict_json import refuse_duplicates
from tr_mmap.channel.files import FileChannel
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.processes.identity import Identity
from tr_mmap.protocol.commands import parse_command
from tr_mmap.protocol.messages import Request, Response, TensorRef, decode_request, decode_response, encode
from tr_mmap.protocol.status import Status, parse_status
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.wire.messages import HEARTBEAT_OFFSET

GIBIBYTE = 1 << 30
LEVELS = 10_000
REQUEST = b'{"seq":7,"command":"echo","parameters":"a","timestamp":5}'
RESPONSE = b'{"seq":7,"command":"echo","result":"ok","timestamp":5,"tensors":[["","result_0.tsr",3]]}'


def _read_manifest(raw: bytes) -> Any:
    with empty_place() as path:
        file = path / manifests.MANIFEST_FILE
        file.write_bytes(raw)
        file.chmod(0o600)
        try:
            return manifests.read(str(path))
        finally:
            file.unlink()


def _manifest() -> bytes:
    import msgspec

    return msgspec.json.encode(Manifest(session_id="s", controller=Identity.current()))


READERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "request": (decode_request, REQUEST),
    "response": (decode_response, RESPONSE),
    "manifest": (_read_manifest, _manifest()),
    "message": (lambda raw: parse_command(raw.decode("utf-8", "surrogateescape")), b'{"cmd":"echo","params":"a"}'),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> tuple[Callable[[bytes], Any], bytes]:
    return READERS[request.param]


def variants_with_a_key_twice(raw: bytes) -> list[bytes]:
    fields = json.loads(raw)
    texts = []
    for key, value in fields.items():
        again = json.dumps({key: value})[1:-1]
        other = json.dumps({key: "evil" if isinstance(value, str) else value})[1:-1]
        escaped = "".join(f"\\u{ord(each):04x}" for each in key)
        body = raw.decode()[1:-1]
        texts += [f"{{{body},{again}}}", f"{{{again},{body}}}", f"{{{body},{other}}}", f"{{ {body} , {again} }}"]
        texts.append(f'{{{body},"{escaped}":{json.dumps(value)}}}')
    return [text.encode() for text in texts]


def test_the_texts_that_are_spoiled_here_are_fine_before(reader: tuple[Callable[[bytes], Any], bytes]) -> None:
    read, raw = reader
    assert read(raw) is not None
    assert read(json.dumps(json.loads(raw), indent=2).encode()) == read(raw)  # nobody need write as we do


def test_a_key_that_is_there_twice_is_refused(reader: tuple[Callable[[bytes], Any], bytes]) -> None:
    read, raw = reader
    for text in variants_with_a_key_twice(raw):
        with pytest.raises(BadMessage, match="twice"):
            read(text)


def test_a_key_that_is_there_twice_further_down_or_unknown_is_refused(
    reader: tuple[Callable[[bytes], Any], bytes],
) -> None:
    read, raw = reader
    for more in (b'"x":1,"x":1', b'"x":[{"y":1,"y":2}]', b'"x":{"y":{"z":1,"z":1}}'):
        with pytest.raises(BadMessage, match="twice"):
            read(raw[:-1] + b"," + more + b"}")


@pytest.mark.parametrize("raw", [REQUEST, RESPONSE])
def test_a_key_that_is_there_twice_on_a_page_is_refused(raw: bytes) -> None:
    read = decode_request if raw is REQUEST else decode_response
    page = b'{"seq": ' + b"%8d" % 7 + raw[raw.index(b",") :]
    assert read(page).seq == 7
    for text in variants_with_a_key_twice(raw):
        if text.startswith(b'{"seq":7,'):
            with pytest.raises(BadMessage, match="twice"):
                read(b'{"seq": ' + b"%8d" % 7 + text[8:])


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "nan", "[" * LEVELS, "[" * LEVELS + "]" * LEVELS,
              '{"a":' * LEVELS + "1" + "}" * LEVELS, "'a'", "01", "+1", "0x1", "tru", "", "1,", '"\x00"', '"\\ud800"',
              '"\udcff"', "9" * 5000 + "e"],
    ids=lambda each: ascii(each[:12]),
)  # fmt: skip
@pytest.mark.parametrize("key", ["timestamp", "zzz"])
def test_a_value_that_is_no_json_or_too_deep_is_refused(
    reader: tuple[Callable[[bytes], Any], bytes], key: str, value: str
) -> None:
    read, raw = reader
    fields = [f"{json.dumps(name)}:{json.dumps(old)}" for name, old in json.loads(raw).items() if name != key]
    text = "{" + ",".join([*fields, f'"{key}":{value}']) + "}"
    with pytest.raises(BadMessage):
        read(text.encode("utf-8", "surrogateescape"))


@given(
    st.sampled_from([REQUEST, RESPONSE, _manifest()]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4)), max_size=4),
)
@settings(deadline=None, max_examples=300)
def test_any_text_at_all_is_read_or_refused_and_nothing_else(raw: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    for at, gone, new in changes:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + gone :]
    for read in (decode_request, decode_response, refuse_duplicates):
        try:
            read(raw)
        except BadMessage:
            pass
    try:
        parse_status(raw.decode("utf-8", "replace"))
    except BadMessage:
        pass


@given(
    st.builds(
        Request,
        seq=st.integers(1, 99_999_999),
        command=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        parameters=st.text(st.characters(exclude_categories=["Cs"])),
        timestamp=st.integers(0, 2**53),
        tensors=st.lists(st.builds(TensorRef, st.text("ab$0"), st.text("ab$0"), st.integers(0, 2**64 - 1))),
        drops=st.lists(st.text("ab")),
    )
)
@settings(deadline=None)
def test_what_we_write_ourselves_is_never_refused_nor_read_twice_unless_there_are_colons_in_it(
    request: Request,
) -> None:
    texts = [request.command, request.parameters, *request.drops]
    raw = encode(request)
    with pytest.MonkeyPatch.context() as patch:
        if not any(":" in text for text in texts):
            patch.setattr(
                "tr_mmap.protocol.messages.refuse_duplicates", lambda _: pytest.fail("the slow check was made")
            )
        request.command = decode_request(raw).command
        assert decode_request(raw) == request
        assert decode_request(b'{"seq": ' + b"%8d" % request.seq + raw[raw.index(b",") :]) == request


# -- a gibibyte -----------------------------------------------------------------------------------------------------


def _grow(path: Path, head: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(GIBIBYTE)
    path.chmod(0o600)


@pytest.fixture
def cheap() -> Iterator[None]:
    """Fails if a test took memory or time in proportion to a gibibyte."""
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB
    assert time.process_time() - started < 5


def test_a_manifest_of_a_gibibyte_is_refused(workspace: Path, cheap: None) -> None:
    _grow(workspace / "session.json", b"{")
    with pytest.raises(BadMessage):
        manifests.read(str(workspace))
    (workspace / "session.json").unlink()


@pytest.mark.parametrize("name", ["request.json", "status.txt"])
def test_a_message_file_of_a_gibibyte_is_refused(workspace: Path, name: str, cheap: None) -> None:
    controller = FileChannel.create(str(workspace))
    worker = FileChannel.attach(str(workspace), [])
    _grow(workspace / name, b"ok" if name == "status.txt" else REQUEST)
    if name == "request.json":
        with pytest.raises(BadMessage):
            worker.receive(0, never)
    else:
        assert controller.read_status().status is Status.STARTING  # the last that could be read
    for left in workspace.iterdir():
        left.unlink()


def test_a_ring_or_page_of_a_gibibyte_is_refused(workspace: Path, cheap: None) -> None:
    controller = MappedChannel.create(str(workspace))
    for name in ("requests.ring", "responses.ring", "status.page"):
        with open(workspace / name, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.stat(file.fileno()).st_size)
            file.truncate(GIBIBYTE)
    with pytest.raises(HostilePath, match="holes"):  # on tmpfs, where looking there would take memory
        MappedChannel.attach(str(workspace), controller.doorbells)
    controller.close()
    for left in workspace.iterdir():
        left.unlink()


@pytest.mark.parametrize("nbytes", [GIBIBYTE, (16 << 20) + 1])
def test_a_long_message_of_a_gibibyte_is_refused(workspace: Path, nbytes: int, cheap: None) -> None:
    controller = MappedChannel.create(str(workspace))
    worker = MappedChannel.attach(str(workspace), controller.doorbells)
    _grow(workspace / "request.x_1.spill", REQUEST)
    os.truncate(workspace / "request.x_1.spill", nbytes)
    controller._out.store(7, b',"spill":"request.x_1.spill"}')
    with pytest.raises(BadMessage):
        worker.receive(0, never)
    controller.send(Request(8, "x"))
    assert worker.receive(0, never) is not None
    worker.close()
    controller.close()
    for left in workspace.iterdir():
        left.unlink()


SPILLS = ["../x.spill", "/etc/passwd", "request.\0.spill", "request." + "1" * 4000 + ".spill", "response.1.spill",
          "request.1.spill/../../x.spill", "", ".spill", "request.1", "request.ä.spill", "status.txt"]  # fmt: skip


@pytest.mark.parametrize("name", SPILLS)
def test_the_name_of_a_long_message_cannot_escape(workspace: Path, name: str) -> None:
    directory = workspace / "inner"
    directory.mkdir(0o700)
    (workspace / "x.spill").write_bytes(REQUEST)
    controller = MappedChannel.create(str(directory))
    worker = MappedChannel.attach(str(directory), controller.doorbells)
    controller._out.store(7, b',"spill":%b}' % json.dumps(name).encode())
    with pytest.raises(BadMessage):
        worker.receive(0, never)
    assert (workspace / "x.spill").exists()
    assert Path("/etc/passwd").exists()
    worker.close()
    controller.close()
    for left in (*directory.iterdir(), workspace / "x.spill"):
        left.unlink()
    directory.rmdir()


# -- in a session ---------------------------------------------------------------------------------------------------

FORGED = [
    b'{"seq":%d,"command":"a","command":"b","result":"evil","timestamp":1}',
    b'{"seq":%d,"command":"a","result":NaN}',
    b'{"seq":%d,"command":' + b"[" * LEVELS,
    b'{"seq":%d,"result":1}',
    b"[%d]",
    b"%d",
    b"\xff%d",
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda each: ascii(each[:24]))
def test_a_session_survives_a_response_that_cannot_be_read(
    shared_files: PythonSession, forged: bytes, gate: Any
) -> None:
    shared_files.send_request(gate.message)
    gate.wait_for_worker()
    seq = shared_files._dispatcher._counters.seq  # type: ignore[union-attr]
    path = Path(shared_files.session_dir()) / "response.json"
    path.with_suffix(".new").write_bytes(forged % seq)
    path.with_suffix(".new").chmod(0o600)
    path.with_suffix(".new").rename(path)
    with pytest.raises(BadMessage):
        shared_files.wait_for_response()
    gate.let_go("real")
    assert shared_files.wait_until_ready()
    assert shared_files.fetch_response("hello again") == "Hello Again"


@pytest.mark.parametrize("forged", FORGED, ids=lambda each: ascii(each[:24]))
def test_a_worker_survives_a_request_that_cannot_be_read(shared_files: PythonSession, forged: bytes) -> None:
    path = Path(shared_files.session_dir()) / "request.json"
    path.with_suffix(".new").write_bytes(forged % 1)
    path.with_suffix(".new").chmod(0o600)
    path.with_suffix(".new").rename(path)
    assert shared_files.fetch_response("hello again") == "Hello Again"


@pytest.mark.parametrize("text", [b"evil\n", b"\xff\xfe\n", b"", b"ok" * 2000, b'{"status":"ok"}\n', b"\0" * 4096])
def test_a_status_that_is_none_is_no_error_and_passes(shared_mapped: PythonSession, text: bytes) -> None:
    with open(Path(shared_mapped.session_dir()) / "status.page", "r+b") as status:
        before = status.read(HEARTBEAT_OFFSET)
        status.seek(0)
        status.write(text[:HEARTBEAT_OFFSET].ljust(HEARTBEAT_OFFSET, b" "))
        status.flush()
        assert shared_mapped.is_ready() is not shared_mapped.is_busy()
        status.seek(0)
        status.write(before)
    assert shared_mapped.fetch_response("hello again") == "Hello Again"
    assert parse_status("ok").status is Status.OK


def test_a_response_with_every_member_wrong_is_refused_each_time() -> None:
    wrong = [("seq", "1"), ("seq", -1.5), ("tensors", {}), ("tensors", [["a", "b"]]), ("tensors", [[1, 2, 3]])]
    wrong += [("error", {"kind": "evil"}), ("error", 1), ("result", None), ("mac", 5)]
    for member, value in wrong:
        with pytest.raises(BadMessage):
            decode_response(json.dumps({**json.loads(RESPONSE), member: value}).encode())
    assert isinstance(decode_response(RESPONSE), Response)
