"""A session's promises: messages in every spelling, tensors bit for bit, answers in order, errors that lose nothing."""

from __future__ import annotations

import json
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import bits, shape_of
from support import FOREVER_MS, TOOLS, Gate

from tr_mmap import (
    BadMessage,
    BadTag,
    MissingTag,
    PythonSession,
    RemoteError,
    ResponseTimeout,
    SessionInUse,
    SessionNotStarted,
    TRException,
    UnexpectedResponse,
    UnknownCommand,
    UnsupportedTensor,
)
from tr_mmap.dtypes import TABLE, DType

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)
EXAMPLES = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# -- messages --------------------------------------------------------------------------------------------------------


SPELLINGS: list[tuple[str, Any]] = [
    ("words", "echo a b"),
    ("commas", "echo a,b"),
    ("commas and spaces", "echo  a , b "),
    ("json cmd params", '{"cmd": "echo", "params": "a,b"}'),
    ("json command parameters", '{"command": "echo", "parameters": "a b"}'),
    ("json mixed", ' {"cmd": "echo", "parameters": "a b"}'),
    ("json list", '{"cmd": "echo", "params": ["a", "b"]}'),
    ("dict", {"cmd": "echo", "params": "a,b"}),
    ("dict, long", {"command": "echo", "parameters": "a b"}),
]


@pytest.mark.parametrize("message", [each[1] for each in SPELLINGS], ids=[each[0] for each in SPELLINGS])
def test_a_message_means_the_same_in_every_spelling(mapped: PythonSession, message: Any) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "b")
    first, second = mapped.fetch_tensor(message)
    assert bits(first) == bits(A)
    assert bits(second) == bits(B)


def test_words_json_and_tensors_cross_either_channel(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    assert session.fetch_response("hello my world") == "Hello My World"
    assert session.fetch_response('{"cmd": "hello", "params": "json"}') == "Hello Json"
    assert bits(session.fetch_tensor("echo a")) == bits(A)
    assert bits(session.calculate("scale 2.5", A)) == bits(A * np.float32(2.5))


def test_parameters_may_be_left_out(mapped: PythonSession) -> None:
    assert mapped.fetch_response("hello") == "Hello World"
    assert mapped.fetch_response({"cmd": "hello"}) == "Hello World"
    assert mapped.fetch_response({"cmd": "hello", "params": None}) == "Hello World"


@pytest.mark.parametrize("message", ["", "   ", "{}", '{"params": "a"}', '{"cmd": ""}', '{"cmd": 3}', '{"cmd": "echo"'])
def test_a_message_without_a_command_is_refused_before_it_is_sent(mapped: PythonSession, message: str) -> None:
    with pytest.raises(BadMessage):
        mapped.send_request(message)
    with pytest.raises(BadMessage):
        mapped.fetch_tensor(message)
    with pytest.raises(BadMessage):
        mapped.calculate(message, A)


def test_a_megabyte_of_text_goes_both_ways(session: PythonSession) -> None:
    text = "".join(f"{number:07d} " for number in range(131072))[:-1]
    assert session.fetch_response({"cmd": "say", "params": text}) == text
    assert session.fetch_response("hello small") == "Hello Small"
    assert session.fetch_response("repeat ab 500000") == "ab" * 500_000


def test_text_of_any_characters_arrives_as_it_was(mapped: PythonSession) -> None:
    odd = ['"quotes" \\ and {"braces": 1}', "zażółć 日本 😀 \u2028 \u0085", "a\nb\tc\rd", "nul \0 inside", "e\u0301"]
    for text in odd:
        assert mapped.fetch_response({"cmd": "say", "params": text}) == text


@given(text=st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_text_arrives_as_it_was(shared_mapped: PythonSession, text: str) -> None:
    assert shared_mapped.fetch_response({"cmd": "say", "params": text}) == text


@pytest.mark.parametrize("message", ["fail_surrogate", "say_surrogate"])
def test_text_that_no_file_can_hold_is_an_error_not_the_workers_end(session: PythonSession, message: str) -> None:
    with pytest.raises(RemoteError):
        session.fetch_response(message)


def test_lone_surrogates_are_refused_not_lost(mapped: PythonSession) -> None:
    with pytest.raises(BadMessage):
        mapped.fetch_response({"cmd": "say", "params": "\ud800"})


@pytest.mark.parametrize("nbytes", [900, 1000, 1024, 1100, 65_400, 65_504, 65_536, 65_600])
def test_text_around_the_size_of_a_page_arrives_whole(mapped: PythonSession, nbytes: int) -> None:
    for count in range(nbytes - 40, nbytes + 40, 3):
        text = "x" * count
        assert mapped.fetch_response({"cmd": "say", "params": text}) == text


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_response_is_taken_once_and_asking_again_waits_for_the_next(session: PythonSession) -> None:
    session.send_request("hello one")
    assert session.wait_for_response() == "Hello One"
    assert not session.new_response()
    assert session.read_response() is None
    with pytest.raises(ResponseTimeout) as caught:
        session.wait_for_response(20)
    assert caught.value.timeout_ms == 20
    session.send_request("hello two")
    assert session.wait_for_response() == "Hello Two"


def test_looking_for_a_response_neither_waits_nor_takes(mapped: PythonSession, gate: Gate) -> None:
    assert mapped.read_response() is None
    mapped.send_request(gate.message)
    gate.wait_for_worker()
    assert not mapped.new_response()
    assert mapped.read_response() is None
    assert mapped.is_busy()
    assert not mapped.is_ready()
    gate.let_go("done")
    assert mapped.wait_until_ok()
    assert mapped.new_response()
    assert mapped.new_response()
    assert mapped.read_response() == "done"
    assert mapped.read_response() is None
    assert mapped.is_ready()
    assert not mapped.is_busy()


def test_requests_without_waiting_are_answered_in_order(session: PythonSession) -> None:
    count = 5
    for number in range(count):
        session.send_request(f"hello {number}")
    assert [session.wait_for_response() for _ in range(count)] == [f"Hello {number}" for number in range(count)]
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(1)


def test_results_of_requests_without_waiting_are_kept_until_they_are_taken(mapped: PythonSession) -> None:
    for number in range(20):
        mapped.send_tensor(np.full(1000, number), "number")
        mapped.send_request("echo number")
    for number in range(20):
        assert np.array_equal(mapped.wait_for_tensor(), np.full(1000, number))


def test_texts_tensors_and_errors_keep_their_order_in_the_queue(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_request("hello first")
    mapped.send_request("fail second")
    mapped.send_request("echo a")
    mapped.send_request("unheard_of")
    mapped.send_request("hello last")
    assert mapped.wait_for_response() == "Hello First"
    with pytest.raises(RemoteError, match="second"):
        mapped.wait_for_response()
    assert bits(mapped.wait_for_tensor()) == bits(A)
    with pytest.raises(UnknownCommand):
        mapped.wait_for_tensor()
    assert mapped.wait_for_response() == "Hello Last"


def test_an_answer_that_is_not_there_in_time_can_be_waited_for_again(session: PythonSession, gate: Gate) -> None:
    session.send_request(gate.message)
    gate.wait_for_worker()
    for _ in range(3):
        with pytest.raises(ResponseTimeout) as caught:
            session.wait_for_response(5)
        assert caught.value.command == "gate"
    gate.let_go("late, and still wanted")
    assert session.wait_for_response() == "late, and still wanted"


def test_a_late_answer_is_never_taken_for_the_next_one(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        session.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    with pytest.raises(ResponseTimeout):  # the worker is still at it
        session.fetch_response("hello too early", 5)
    gate.let_go("late")
    assert session.fetch_response("hello next") == "Hello Next"
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(1)


def test_a_late_answer_is_never_taken_for_that_of_a_later_send_request(mapped: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        mapped.calculate(gate.message, timeout_ms=5)
    gate.wait_for_worker()
    gate.let_go("late")
    mapped.send_request("hello next")
    assert mapped.wait_for_response() == "Hello Next"
    with pytest.raises(ResponseTimeout):
        mapped.wait_for_response(1)


def test_a_late_answer_to_a_call_that_gave_up_is_never_taken(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        session.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    gate.let_go("late")
    assert session.wait_until_ready()
    assert session.read_response() is None
    with pytest.raises(ResponseTimeout):
        session.wait_for_response(100)  # long enough for the answer to be there
    assert not session.new_response()
    assert session.read_response() is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_a_signal_handler_raises_ends_the_wait_and_leaves_no_answer_for_the_next(
    mapped: PythonSession, gate: Gate, kind: type[BaseException]
) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise kind

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        main = threading.get_ident()
        thread = threading.Thread(target=lambda: (gate.wait_for_worker(), signal.pthread_kill(main, signal.SIGUSR1)))
        thread.start()
        with pytest.raises(kind):
            mapped.fetch_response(gate.message, 3000)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
        gate.let_go("late")
    assert mapped.fetch_response("hello next") == "Hello Next"


def test_a_tensor_lent_to_a_call_that_timed_out_is_not_overwritten_under_the_worker(
    mapped: PythonSession, gate: Gate
) -> None:
    mapped.send_tensor(np.full(100_000, 1), "lent")
    mapped.send_request("keep lent mine")
    assert mapped.wait_for_response() == "kept"
    with pytest.raises(ResponseTimeout):
        mapped.fetch_response(gate.message, 5)
    gate.wait_for_worker()
    for number in range(10):
        mapped.send_tensor(np.full(100_000, number), "lent")
    gate.let_go("")
    assert np.array_equal(mapped.fetch_tensor("kept mine"), np.full(100_000, 1))
    mapped.fetch_response("forget mine")


def test_waiting_until_ok_says_how_the_request_went(mapped: PythonSession, gate: Gate) -> None:
    mapped.send_request("hello well")
    assert mapped.wait_until_ok()
    assert mapped.wait_for_response() == "Hello Well"
    mapped.send_request("fail badly")
    assert not mapped.wait_until_ok()
    with pytest.raises(RemoteError):
        mapped.wait_for_response()
    mapped.send_request(gate.message)
    gate.wait_for_worker()
    try:
        assert not mapped.wait_until_ok(5)
        assert not mapped.wait_until_ready(5)
    finally:
        gate.let_go("now")
    assert mapped.wait_for_response() == "now"


def test_several_tensors_arrive_in_order(session: PythonSession) -> None:
    parts = [np.full(number + 1, number) for number in range(5)]
    answers = session.calculate("echo", *parts)
    assert isinstance(answers, list)
    assert [bits(each) for each in answers] == [bits(each) for each in parts]


def test_tensors_and_text_of_one_request_make_one_response(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    first, second = session.fetch_tensor("both a")
    assert bits(first) == bits(A)
    assert bits(second) == bits(A + 1)
    assert session.fetch_response("both a") == "two tensors"
    with pytest.raises(ResponseTimeout):
        session.wait_for_tensor(1)


def test_an_answer_without_a_tensor_says_its_text(mapped: PythonSession) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        mapped.fetch_tensor("hello you")
    assert caught.value.result == "Hello You"
    assert "Hello You" in str(caught.value)


def test_a_tensor_answer_read_as_text_is_taken_all_the_same(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    assert isinstance(mapped.fetch_response("echo a"), str)
    with pytest.raises(ResponseTimeout):
        mapped.wait_for_tensor(1)


# -- calculate -------------------------------------------------------------------------------------------------------


def test_calculate_answers_in_the_framework_of_its_first_tensor(mapped: PythonSession) -> None:
    one = mapped.calculate("echo", A)
    assert isinstance(one, np.ndarray)
    assert bits(one) == bits(A)
    other = mapped.calculate("echo", torch.from_numpy(A.copy()))
    assert isinstance(other, torch.Tensor)
    assert bits(other) == bits(A)
    mixed = mapped.calculate("echo", torch.from_numpy(A.copy()), B)
    assert all(isinstance(each, torch.Tensor) for each in mixed)
    mixed = mapped.calculate("echo", A, torch.from_numpy(B.copy()))
    assert all(isinstance(each, np.ndarray) for each in mixed)


def test_calculate_without_tensors_gives_text_or_what_the_tags_say(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    assert mapped.calculate("hello there") == "Hello There"
    assert isinstance(mapped.calculate("echo a"), np.ndarray)


def test_calculate_puts_its_tensors_behind_the_words_and_tags(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    first, second = mapped.calculate("echo a", B)
    assert bits(first) == bits(A)
    assert bits(second) == bits(B)
    assert bits(mapped.calculate({"cmd": "scale", "params": "2"}, A)) == bits(A * 2)


def test_calculate_leaves_no_tags(mapped: PythonSession) -> None:
    files = set(Path(mapped.session_dir()).glob("*.tsr"))
    for _ in range(20):
        mapped.calculate("echo", A, B)
    tags = {each.name for each in set(Path(mapped.session_dir()).glob("*.tsr")) - files}
    assert all(name.startswith(("segment_", "result_")) for name in tags)
    with pytest.raises(RemoteError):
        mapped.fetch_tensor("echo $0")


def test_memory_goes_round_in_the_steady_state(mapped: PythonSession) -> None:
    x = np.ones(100_000)
    for _ in range(5):
        mapped.calculate("echo", x)
    created = mapped.stats().created
    files = len(list(Path(mapped.session_dir()).glob("*.tsr")))
    for _ in range(200):
        mapped.calculate("echo", x)
        mapped.send_tensor(x, "steady")
    assert mapped.stats().created <= created + 3
    assert len(list(Path(mapped.session_dir()).glob("*.tsr"))) <= files + 6


# -- every tensor, bit for bit ---------------------------------------------------------------------------------------


def _ids(kind: DType) -> str:
    return kind.name


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
@given(data=st.data())
@EXAMPLES
def test_every_tensor_comes_back_bit_for_bit_through_a_numpy_worker(
    shared_mapped: PythonSession, kind: DType, data: st.DataObject
) -> None:
    _round_trip(shared_mapped, data.draw(own.tensors(st.just(kind))))


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
@given(data=st.data())
@EXAMPLES
def test_every_tensor_comes_back_bit_for_bit_through_a_torch_worker(
    torch_session: PythonSession, kind: DType, data: st.DataObject
) -> None:
    _round_trip(torch_session, data.draw(own.tensors(st.just(kind))))


def _round_trip(session: PythonSession, tensor: Any) -> None:
    """By calculate, in the tensor's framework; by tag, in the session's. And twice: results must not be mixed up."""
    wanted, shape = bits(tensor), shape_of(tensor)
    answer = session.calculate("echo", tensor)
    assert isinstance(answer, torch.Tensor if isinstance(tensor, torch.Tensor) else np.ndarray)
    session.send_tensor(tensor, "x")
    other = session.fetch_tensor("echo x")
    assert isinstance(other, np.ndarray)
    for each in (answer, other):
        assert bits(each) == wanted
        assert shape_of(each) == shape
    if isinstance(answer, torch.Tensor):
        assert answer.dtype == tensor.dtype
    else:
        assert answer.dtype == other.dtype == tensor.dtype.newbyteorder("<")


@given(tensor=own.tensors())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_tensors_come_back_bit_for_bit_over_the_portable_channel(shared_files: PythonSession, tensor: Any) -> None:
    answer = shared_files.calculate("echo", tensor)
    assert bits(answer) == bits(tensor)
    assert shape_of(answer) == shape_of(tensor)


def _special(kind: DType) -> np.ndarray[Any, Any]:
    """Every bit pattern of a small type; NaNs of both kinds and signs, -0.0, infinities, subnormals of a large one."""
    if kind.itemsize <= 2 and kind.name != "bool":
        return np.arange(1 << (8 * kind.itemsize), dtype=f"<u{kind.itemsize}").view(kind.numpy)
    if kind.name == "float32" or kind.name == "complex64":
        words = [0x7FC00000, 0x7F800001, 0xFFC12345, 0xFF800001, 0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000]
        return np.array(words, "<u4").view(kind.numpy)
    if kind.name in ("float64", "complex128"):
        words = [0x7FF8 << 48, (0x7FF0 << 48) + 1, (0xFFF8 << 48) + 0x123456789A, 1 << 63, 0, 1, (0x800F << 48) + 7]
        return np.array([*words, 0x7FF0 << 48], "<u8").view(kind.numpy)
    if kind.name == "bool":
        return np.array([True, False])
    info = np.iinfo(kind.numpy)
    return np.array([info.min, info.max, 0, 1], kind.numpy)


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
def test_nan_payloads_negative_zeros_and_subnormals_survive(
    shared_mapped: PythonSession, torch_session: PythonSession, kind: DType
) -> None:
    array = _special(kind)
    tensor = torch.from_numpy(array.view(np.uint8).copy()).view(kind.torch)
    for session in (shared_mapped, torch_session):
        assert bits(session.calculate("echo", array)) == bits(array)
        assert bits(session.calculate("echo", tensor)) == bits(array)
        assert bits(session.calculate("echo", array[::-1])) == bits(array[::-1])
        big = array.astype(array.dtype.newbyteorder(">")) if kind.itemsize > 1 and array.dtype.kind in "iuf" else array
        assert bits(session.calculate("echo", big)) == bits(big)


def test_sixteen_dimensions_scalars_and_empty_tensors_cross(session: PythonSession) -> None:
    for array in (
        np.zeros((1,) * 15 + (3,), np.int16),
        np.float64(2.5),
        np.array(7, np.uint8),
        np.empty((0,), np.float32),
        np.empty((3, 0, 2), np.complex64),
    ):
        answer = session.calculate("echo", array)
        assert answer.shape == array.shape
        assert answer.dtype == array.dtype
        assert bits(answer) == bits(array)


def test_seventeen_dimensions_are_refused(mapped: PythonSession) -> None:
    with pytest.raises(UnsupportedTensor, match="17"):
        mapped.send_tensor(np.zeros((1,) * 17), "x")


# -- tags ------------------------------------------------------------------------------------------------------------


def test_a_tag_keeps_its_tensor_until_it_is_sent_again(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    assert bits(session.fetch_tensor("echo a")) == bits(A)
    assert bits(session.fetch_tensor("echo a a")[1]) == bits(A)
    session.send_tensor(B, "a")
    assert bits(session.fetch_tensor("echo a")) == bits(B)


def test_a_tensor_sent_twice_before_anybody_asks_is_the_second(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "a")
    assert bits(mapped.fetch_tensor("echo a")) == bits(B)


def test_changing_an_array_after_it_was_sent_changes_nothing(mapped: PythonSession) -> None:
    array = A.copy()
    mapped.send_tensor(array, "a")
    array[...] = 0
    assert bits(mapped.fetch_tensor("echo a")) == bits(A)


def test_a_dropped_tag_is_gone_and_can_be_sent_again(session: PythonSession) -> None:
    session.send_tensor(A, "gone")
    session.fetch_tensor("echo gone")
    assert (Path(session.session_dir()) / "gone.tsr").exists()
    session.drop_tensor("gone")
    assert not (Path(session.session_dir()) / "gone.tsr").exists()
    with pytest.raises(RemoteError) as caught:
        session.fetch_tensor("echo gone")
    assert caught.value.error_type == "MissingTag"
    with pytest.raises(MissingTag):
        session.drop_tensor("gone")
    session.send_tensor(B, "gone")
    assert bits(session.fetch_tensor("echo gone")) == bits(B)


def test_a_tag_dropped_before_anybody_asked_is_missing(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "fleeting")
    mapped.drop_tensor("fleeting")
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_tensor("echo fleeting")
    assert caught.value.error_type == "MissingTag"


def test_dropping_gives_the_memory_back(mapped: PythonSession) -> None:
    before = mapped.stats()
    mapped.send_tensor(np.zeros(1 << 20, np.uint8), "large")
    mapped.drop_tensor("large")
    after = mapped.stats()
    assert after.nbytes - after.free_nbytes == before.nbytes - before.free_nbytes


def test_a_missing_tag_is_an_error_that_names_it(session: PythonSession) -> None:
    with pytest.raises(RemoteError, match="nowhere") as caught:
        session.fetch_tensor("echo nowhere")
    assert caught.value.error_type == "MissingTag"
    assert caught.value.command == "echo"


BAD_TAGS = ["../x", "", "a b", "x" * 129, ".hidden", "..", ".", "a/b", "/etc/passwd", "a\0b", "ä", "a,b", "a\n", "$0"]


@pytest.mark.parametrize("tag", BAD_TAGS, ids=repr)
def test_a_bad_tag_is_refused(mapped: PythonSession, tag: str) -> None:
    before = sorted(Path(mapped.session_dir()).iterdir())
    with pytest.raises(BadTag) as caught:
        mapped.send_tensor(A, tag)
    assert caught.value.tag in tag or caught.value.tag == tag
    assert sorted(Path(mapped.session_dir()).iterdir()) == before
    with pytest.raises((BadTag, MissingTag)):
        mapped.drop_tensor(tag)


@pytest.mark.parametrize("tag", [None, 3, b"a", ["a"]], ids=repr)
def test_a_tag_that_is_no_text_is_refused(mapped: PythonSession, tag: Any) -> None:
    with pytest.raises(BadTag):
        mapped.send_tensor(A, tag)


@pytest.mark.parametrize("tag", ["x" * 128, "a.b", "A-1_z", "-", "_", "request", "0"])
def test_every_good_tag_works(mapped: PythonSession, tag: str) -> None:
    mapped.send_tensor(A, tag)
    assert bits(mapped.fetch_tensor(f"echo {tag}")) == bits(A)
    mapped.drop_tensor(tag)


@pytest.mark.parametrize("tag", ["result_0", "segment_0", "request.json", "session"])
def test_no_tag_can_replace_a_file_of_the_session(mapped: PythonSession, tag: str) -> None:
    mapped.send_tensor(B, "b")
    held = mapped.fetch_tensor("echo b")
    try:
        mapped.send_tensor(A, tag)
    except BadTag:
        pass
    else:
        assert bits(mapped.fetch_tensor(f"echo {tag}")) == bits(A)
        mapped.drop_tensor(tag)
    assert bits(held) == bits(B)
    assert bits(mapped.fetch_tensor("echo b")) == bits(B)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_an_unknown_command_is_an_error_and_the_session_goes_on(session: PythonSession) -> None:
    with pytest.raises(UnknownCommand, match="transmogrify") as caught:
        session.fetch_response("transmogrify a")
    assert caught.value.command == "transmogrify"
    with pytest.raises(UnknownCommand):
        session.calculate("transmogrify", A)


@pytest.mark.parametrize("message", ["total", "total a b", "scale a", "scale 2", "scale a two", "digest a a"])
def test_a_wrong_count_is_an_error_and_the_session_goes_on(mapped: PythonSession, message: str) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "b")
    with pytest.raises(RemoteError):
        mapped.fetch_response(message)


def unsupported() -> dict[str, Any]:
    return {
        "objects": np.array([object(), None]),
        "text": np.array(["a", "b"]),
        "bytes": np.array([b"a"]),
        "dates": np.array(["2020-01-01"], "datetime64[D]"),
        "records": np.zeros(3, [("x", "f4"), ("y", "i4")]),
        "longdouble": np.zeros(3, np.longdouble),
        "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
        "list": [1.0, 2.0],
        "float": 1.5,
        "None": None,
        "bytes object": b"abc",
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "dtype": np.float32,
    }


@pytest.mark.parametrize("name", unsupported())
def test_what_is_no_tensor_is_refused_and_the_tag_keeps_what_it_had(mapped: PythonSession, name: str) -> None:
    value = unsupported()[name]
    mapped.send_tensor(A, "safe")
    in_use = mapped.stats().nbytes - mapped.stats().free_nbytes
    with pytest.raises(UnsupportedTensor):
        mapped.send_tensor(value, "safe")
    with pytest.raises(UnsupportedTensor):
        mapped.calculate("echo", A, value)
    assert bits(mapped.fetch_tensor("echo safe")) == bits(A)
    assert mapped.stats().nbytes - mapped.stats().free_nbytes == in_use


def test_a_request_before_start_is_refused() -> None:
    session = PythonSession(TOOLS, "unstarted")
    calls: list[Callable[[], Any]] = [
        lambda: session.send_request("hello"),
        lambda: session.fetch_response("hello"),
        lambda: session.fetch_tensor("hello"),
        lambda: session.calculate("echo", A),
        lambda: session.wait_for_response(1),
        lambda: session.wait_for_tensor(1),
        lambda: session.read_response(),
        lambda: session.wait_until_ready(1),
        lambda: session.wait_until_ok(1),
    ]
    for call in calls:
        with pytest.raises(SessionNotStarted, match="start"):
            call()
    assert not session.is_alive()
    assert not session.is_ready()
    assert not session.is_busy()
    assert not session.new_response()
    assert session.session_id() == "unstarted"
    assert session.session_dir().endswith("/python_session/tr_session_unstarted")
    assert session.join(0)
    session.terminate()
    session.close()
    assert session.please_exit(0)


@pytest.mark.parametrize("session_id", ["", "../x", "a/b", ".x", "x" * 65, "a b", None])
def test_a_bad_session_id_is_refused(session_id: Any) -> None:
    with pytest.raises(BadMessage):
        PythonSession(TOOLS, session_id)


def test_a_bad_framework_or_channel_is_refused() -> None:
    with pytest.raises(BadMessage, match="numpy"):
        PythonSession(framework="tensorflow")
    with pytest.raises(BadMessage, match="mapped"):
        PythonSession(channel="telepathy")


def test_a_second_session_of_the_same_id_is_refused_and_the_first_goes_on(mapped: PythonSession) -> None:
    # The shared session has a workspace of its own, so this one is made there too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(Path(mapped.session_dir()).parents[1]))
        other = PythonSession(TOOLS, mapped.session_id())
        with pytest.raises(SessionInUse) as caught:
            other.start()
    assert caught.value.session_id == mapped.session_id()
    assert mapped.fetch_response("hello still") == "Hello Still"
    other.close()
    assert mapped.fetch_response("hello still") == "Hello Still"


def test_starting_twice_is_refused_and_the_worker_goes_on(mapped: PythonSession) -> None:
    with pytest.raises(SessionInUse):
        mapped.start()


# -- failing handlers ------------------------------------------------------------------------------------------------


def test_a_failing_handler_gives_its_traceback_and_the_worker_goes_on(session: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        session.fetch_response("fail on purpose")
    error = caught.value
    assert not isinstance(error, UnknownCommand)
    assert error.command == "fail"
    assert error.error_type == "ZeroDivisionError"
    assert "on purpose" in str(error)
    assert "Traceback" in error.remote_traceback
    assert "tools.py" in error.remote_traceback
    assert "raise ZeroDivisionError(text)" in error.remote_traceback


def test_an_exception_without_a_text_is_reported_all_the_same(mapped: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_response("fail_strangely")
    assert caught.value.error_type == "StrangeError"
    assert "tools.py" in caught.value.remote_traceback


def test_a_result_that_is_no_tensor_is_the_handlers_error(mapped: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_tensor("bad_result")
    assert caught.value.error_type == "UnsupportedTensor"


def test_what_a_handler_sent_before_it_failed_is_not_an_answer(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    with pytest.raises(RemoteError, match="after all"):
        mapped.fetch_response("late_failure a")
    with pytest.raises(RemoteError, match="after all"):
        mapped.fetch_tensor("late_failure a")


def test_a_handler_that_says_nothing_is_done(mapped: PythonSession) -> None:
    assert isinstance(mapped.fetch_response("nothing"), str)


def test_errors_that_a_session_raises_survive_pickling(mapped: PythonSession) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mapped.fetch_response("fail on purpose"),
        lambda: mapped.fetch_response("no_such_command"),
        lambda: mapped.fetch_tensor("echo nowhere"),
        lambda: mapped.fetch_tensor("hello you"),
        lambda: mapped.wait_for_response(1),
        lambda: mapped.send_tensor(A, "../x"),
        lambda: mapped.send_tensor(None, "x"),
        lambda: mapped.drop_tensor("nowhere"),
        lambda: mapped.send_request(""),
        lambda: mapped.start(),
        lambda: PythonSession("/nowhere/worker.py").start(),
        lambda: PythonSession().fetch_response("hello"),
    ]
    for call in calls:
        with pytest.raises(TRException) as caught:
            call()
        error = caught.value
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


# -- several threads, several sessions -------------------------------------------------------------------------------


def test_threads_sharing_a_session_get_their_own_answers(mapped: PythonSession) -> None:
    def work(thread: int) -> None:
        for number in range(40):
            value = thread * 1000 + number
            array = np.full(500 + thread, value)
            assert np.array_equal(mapped.calculate("echo", array), array)
            assert mapped.fetch_response(f"hello {value}") == f"Hello {value}"
            mapped.send_tensor(array, f"thread{thread}")
            assert np.array_equal(mapped.fetch_tensor(f"echo thread{thread}"), array)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, thread) for thread in range(6)]:
            done.result()


def test_a_thread_may_wait_for_the_answer_to_anothers_request(mapped: PythonSession) -> None:
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.extend(mapped.wait_for_response(FOREVER_MS) for _ in range(50)))
    waiter.start()
    for number in range(50):
        mapped.send_request(f"hello {number}")
    waiter.join()
    assert answers == [f"Hello {number}" for number in range(50)]


def test_sessions_run_side_by_side(workspace: Path) -> None:
    with (
        PythonSession(TOOLS, "one", quiet_mode=True) as one,
        PythonSession(TOOLS, "two", quiet_mode=True) as two,
        PythonSession("default", "three", quiet_mode=True, channel="files") as three,
    ):
        sessions = (one, two, three)
        for number, session in enumerate(sessions):
            session.send_tensor(np.full(10, number), "same")
        for session in sessions:
            session.send_request("echo same")
        for number, session in reversed(list(enumerate(sessions))):
            assert np.array_equal(session.wait_for_tensor(), np.full(10, number))
        assert len({one.fetch_response("pid"), two.fetch_response("pid")}) == 2
        assert len({each.session_dir() for each in sessions}) == 3
        two.please_exit()
        assert one.fetch_response("hello one") == "Hello One"
        assert three.fetch_response("hello three") == "Hello Three"


# -- a session whose answers are torch tensors -----------------------------------------------------------------------


def test_a_torch_session_gives_torch_tensors_also_from_its_queue() -> None:
    with PythonSession(TOOLS, quiet_mode=True, framework="torch") as session:
        for number in range(20):
            session.send_tensor(np.full(1000, number), "number")
            session.send_request("echo number")
        for number in range(20):
            tensor = session.wait_for_tensor()
            assert isinstance(tensor, torch.Tensor)
            assert torch.equal(tensor, torch.full((1000,), number))
        session.send_tensor(torch.ones(3, dtype=torch.bfloat16), "x")
        assert session.fetch_tensor("echo x").dtype == torch.bfloat16
        assert isinstance(session.calculate("echo x"), torch.Tensor)
        assert isinstance(session.calculate("echo", np.ones(3)), np.ndarray)
        assert isinstance(session.empty(3), torch.Tensor)
        assert isinstance(session.empty(3, framework="numpy"), np.ndarray)


def test_a_view_of_a_result_may_be_sent_on(mapped: PythonSession) -> None:
    x = np.arange(10_000)
    for _ in range(30):
        x = mapped.calculate("echo", x)
    assert np.array_equal(x, np.arange(10_000))
    mapped.send_tensor(x[10:20], "part")
    assert np.array_equal(mapped.fetch_tensor("echo part"), np.arange(10, 20))


def test_status_and_messages_can_be_read_by_anybody(session: PythonSession) -> None:
    """The session's files are JSON and words, as the older protocol has them."""
    directory = Path(session.session_dir())
    session.fetch_response("hello reader")
    assert (directory / "status.txt").read_text().split("\n")[0].split(":")[0] in ("ok", "ready", "done")
    manifest = json.loads((directory / "session.json").read_text())
    assert manifest["session_id"] == session.session_id()
    if manifest["channel"] == "mapped":
        request = json.loads((directory / "request.json").read_text())
        assert (request["command"], request["parameters"]) == ("hello", "reader")
        response = json.loads((directory / "response.json").read_text())
        assert response["result"] == "Hello Reader"
        assert response["timestamp"] >= request["timestamp"] > 1_600_000_000_000


def test_the_files_of_tags_and_results_are_tsr_files(mapped: PythonSession) -> None:
    import tr_mmap

    mapped.send_tensor(A, "filed")
    view = mapped.fetch_tensor("echo filed")
    path = Path(mapped.session_dir()) / "filed.tsr"
    assert tr_mmap.read_header(path).shape == A.shape
    assert bits(tr_mmap.load(path)) == bits(A)
    assert bits(view) == bits(A)
