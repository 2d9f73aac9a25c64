"""The legacy dialect's promises to a controller that speaks nothing else: our worker answers it.

The controller is a program of its own in ``tests/peers``, written from the dialect's description alone.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_peers import OldController, ends, environment, old_controller
from strategies import bits
from support import TOOLS, TORCH_TOOLS

from tr_mmap import PythonSession

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 18, dtype=np.float32).reshape(3, 4)


def refusal(*arguments: object, **more: Any) -> str:
    """What our worker says when it cannot serve."""
    more.setdefault("env", environment())
    ended = subprocess.run(
        [sys.executable, str(TOOLS), *map(str, arguments)], capture_output=True, text=True, timeout=30, **more
    )
    assert ended.returncode == 1
    return ended.stderr


@pytest.fixture(scope="module")
def shared_old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldController]:
    with old_controller(tmp_path_factory.mktemp("session")) as running:
        yield running
        assert running.do(exit=True)["exit_code"] == 0


@pytest.fixture
def old(shared_old: OldController) -> OldController:
    """An older controller with our worker, which must answer after the test as before."""
    return shared_old


def test_an_old_controller_gets_its_product_its_text_and_its_end(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        old.write("a", A)
        old.write("b", B)
        (echoed,) = old.tensors("echo", "a")
        assert bits(echoed) == bits(A)
        assert [bits(each) for each in old.tensors("echo", "a,b")] == [bits(A), bits(B)]
        assert old.text("hello", "old friend") == "Hello Old Friend"
        end = old.do(exit=True)
        assert end["exit_code"] == 0
        assert "request.json" not in end["left"]
        assert "response.json" not in end["left"]
        assert tmp_path.is_dir()  # never ours to remove
        assert not [name for name in end["left"] if name.endswith((".tmp", ".own"))]


def test_the_default_worker_multiplies_for_an_old_controller(workspace: Path) -> None:
    """By session id and TR_WORKSPACE."""
    directory = workspace / "python_session" / "tr_session_old"
    directory.mkdir(parents=True)
    with old_controller(directory, sys.executable, "-m", "tr_mmap.worker", "old") as old:
        old.write("a", A)
        old.write("b", B)
        (product,) = old.tensors("matmul", "a,b")
        assert np.array_equal(product, A @ B)
        (total,) = old.tensors("sum", "a")
        assert total.shape == ()
        assert old.do(exit=True)["exit_code"] == 0
    assert directory.is_dir()
    for name in os.listdir(directory):
        (directory / name).unlink()
    directory.rmdir()
    directory.parent.rmdir()


def test_an_existing_torch_worker_serves_an_old_controller(tmp_path: Path) -> None:
    with old_controller(tmp_path, sys.executable, TORCH_TOOLS, tmp_path) as old:
        old.write("a", A)
        assert bits(old.tensors("echo", "a")[0]) == bits(A)
        assert old.text("scribble", "a") == "54.0"
        assert bits(old.tensors("echo", "a")[0]) == bits(A)  # what the handler wrote was a copy
        assert old.text("two", "a") == "None"
        assert old.do(exit=True)["exit_code"] == 0


@pytest.mark.parametrize("dtype", ["float32", "int8", "int32"])
def test_every_dtype_that_the_original_reads_goes_there_and_back(old: OldController, dtype: str) -> None:
    array = np.array([[0, 1, 2], [100, 101, 127]], dtype)
    old.write("x", array)
    (back,) = old.tensors("echo", "x")
    assert back.dtype == array.dtype
    assert bits(back) == bits(array)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16", "uint8"])
def test_a_result_of_another_dtype_is_an_error_with_advice_and_no_file(old: OldController, dtype: str) -> None:
    old.write("x", np.array([[0, 1, 2], [100, 101, 127]], dtype))
    assert len(old.text("digest", "x")) == 64  # it is read all the same
    answer = old.do(cmd="echo", params="x", want="text")
    assert answer["params"].startswith("error: ")
    assert f"no {dtype}: convert the tensor to float32" in answer["params"]
    assert answer["status"].startswith("error: ")
    assert not (old.directory / "result_0.tsr").exists()
    assert old.text("hello") == "Hello World"


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4), (1, 2, 3), (2, 1, 3, 2)], ids=str)
def test_every_rank_that_v1_has_goes_there_and_back(old: OldController, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    old.write("x", array)
    (back,) = old.tensors("echo", "x")
    assert back.shape == shape
    assert bits(back) == bits(array)


def test_a_result_is_an_exact_v1_file(old: OldController) -> None:
    old.write("x", A)
    answer = old.do(cmd="echo", params="x", want="tensors")
    assert answer["params"] == "result_0"
    raw = (old.directory / "result_0.tsr").read_bytes()
    header = struct.pack("<4s3i2i4i3q", b"TSR!", 1, 64, 0, 1, 2, 1, 1, 2, 3, 6, 0, 0)
    assert raw == header + A.tobytes()


def test_several_results_are_named_in_order_and_replaced_by_the_next_answer(old: OldController) -> None:
    old.write("x", np.arange(5, dtype=np.int32))
    answer = old.do(cmd="halves", params="x", want="tensors")
    assert answer["params"] == "result_0,result_1"
    assert [each["values"] for each in answer["tensors"]] == [[0, 1], [2, 3, 4]]
    assert old.do(cmd="echo", params="x", want="tensors")["params"] == "result_0"
    assert not (old.directory / "result_1.tsr").exists()


def test_a_tag_asked_for_twice_is_read_twice_and_seen_as_it_then_is(old: OldController) -> None:
    old.write("x", np.float32([1]))
    assert old.tensors("echo", "x")[0] == 1
    assert [float(each[0]) for each in old.tensors("echo", "x,x")] == [1, 1]
    old.write("x", np.float32([2]))  # in place, over the same file
    assert old.tensors("echo", "x")[0] == 2


def test_what_a_handler_keeps_is_a_copy_that_the_controller_cannot_overwrite(old: OldController) -> None:
    old.write("x", np.float32([1, 2]))
    assert old.text("keep", "x mine") == "kept"
    old.write("x", np.float32([8, 9]))
    assert old.tensors("kept", "mine")[0].tolist() == [1, 2]
    assert old.text("forget", "mine") == "forgotten"


def test_a_result_may_be_the_next_requests_input(old: OldController) -> None:
    old.write("x", np.float32([1, 2]))
    assert old.tensors("scale", "x,3")[0].tolist() == [3, 6]
    assert old.tensors("scale", "result_0,3")[0].tolist() == [9, 18]


def test_the_response_has_params_first_and_our_own_members_after_them(old: OldController) -> None:
    raw = old.do(cmd="say", params="params", want="text")["raw"]
    assert raw.startswith('{"params": "params"')
    fields = json.loads(raw)
    assert fields["result"] == "params"
    assert fields["command"] == "say"
    assert fields["timestamp"] > 1_600_000_000_000
    assert "seq" not in fields


def test_the_status_says_how_it_went(old: OldController) -> None:
    assert old.do(cmd="say", params="x", want="text")["status"] == "ok"
    answer = old.do(cmd="unheard_of", params="", want="text")
    assert answer["status"].startswith("error: the worker knows no command 'unheard_of'")
    assert old.do(cmd="say", params="x", want="text")["status"] == "ok"


@pytest.mark.parametrize(
    ("command", "params", "why"),
    [
        ("unheard_of", "", "no command 'unheard_of'"),
        ("fail", "badly", "badly"),
        ("echo", "not_there", "not_there"),
        ("echo", "../status", "../status"),
    ],
)
def test_a_request_that_fails_is_answered_with_the_reason(
    old: OldController, command: str, params: str, why: str
) -> None:
    answer = old.do(cmd=command, params=params, want="tensors")
    assert answer["params"].startswith("error: ")
    assert why in json.loads(answer["raw"])["error"]["message"]
    assert old.text("hello") == "Hello World"


def test_a_result_that_v1_cannot_hold_is_an_error_that_says_so(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import numpy as np\nfrom tr_mmap import Server\nserver = Server(framework='numpy')\n"
        "server.command('wide')(lambda: np.arange(3))\n"
        "server.command('deep')(lambda: np.zeros((1,) * 5, np.float32))\n"
        "server.command('half')(lambda: [np.zeros(1, np.float32), np.zeros(1, bool)])\n"
        "server.command('fine')(lambda: server.empty((2, 2), 'int8') * 0)\n"
        "server.run()\n"
    )
    directory = tmp_path / "session"
    directory.mkdir()
    with old_controller(directory, sys.executable, script, directory) as old:
        assert "no int64: convert the tensor to float32" in old.text("wide")
        assert "5 dims, v1 holds at most 4" in old.text("deep")
        assert "no bool: convert the tensor to float32" in old.text("half")
        assert not list(directory.glob("result_*"))
        assert old.tensors("fine", "")[0].tolist() == [[0, 0], [0, 0]]
        assert old.do(exit=True)["exit_code"] == 0


def test_an_input_that_is_no_v1_file_is_an_error_and_the_next_request_is_answered(old: OldController) -> None:
    (old.directory / "bad.tsr").write_bytes(b"TSR!" + b"\x01" * 70)
    assert old.text("digest", "bad").startswith("error: ")
    (old.directory / "bad.tsr").write_bytes(struct.pack("<4s3i2i4i3q", b"TSR!", 1, 64, 0, 1, 1, 1, 1, 1, 9, 9, 0, 0))
    assert "100 of payload" not in old.text("digest", "bad")
    assert old.text("digest", "bad").startswith("error: ")
    (old.directory / "bad.tsr").unlink()
    assert old.text("hello") == "Hello World"


def test_a_request_that_cannot_be_read_is_answered_too(old: OldController) -> None:
    assert old.do(cmd='"', params="", want="text")["params"].startswith("error: ")
    assert old.text("hello") == "Hello World"


def test_files_that_the_group_may_write_are_taken_from_an_old_controller(tmp_path: Path) -> None:
    """What a program of its time makes under the umask 002."""
    directory = tmp_path / "session"
    directory.mkdir()
    directory.chmod(0o775)
    before = os.umask(0o002)
    try:
        with old_controller(directory) as old:
            old.write("x", A)
            assert bits(old.tensors("echo", "x")[0]) == bits(A)
            assert old.do(exit=True)["exit_code"] == 0
    finally:
        os.umask(before)


def test_a_directory_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "session"
    directory.mkdir()
    directory.chmod(0o777)
    assert "HostilePath" in refusal(directory)
    assert os.listdir(directory) == []


def test_a_worker_without_a_session_says_what_is_missing(tmp_path: Path) -> None:
    for argument in ("not_there", str(tmp_path / "not_there")):
        assert "SessionNotStarted: there is no session" in refusal(argument)


def test_a_worker_that_should_have_a_secret_does_not_serve_the_legacy_dialect(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, bytes(32))
    os.close(writing)
    try:
        said = refusal(tmp_path, env=environment(TR_MMAP_AUTH_FD=str(reading)), pass_fds=[reading])
        assert "started for a session with auth=True" in said
    finally:
        os.close(reading)
    assert os.listdir(tmp_path) == []


def test_an_old_controller_that_is_killed_takes_its_worker_with_it_and_the_directory_stays(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        old.write("x", A)
        old.tensors("echo", "x")
        old.process.kill()
        assert ends(old.worker_pid)
    assert tmp_path.is_dir()
    assert (tmp_path / "x.tsr").exists()
    assert not (tmp_path / "result_0.tsr").exists()


def test_a_worker_started_through_a_shell_follows_the_program_not_the_shell(tmp_path: Path) -> None:
    command = f"{sys.executable} {TOOLS} {tmp_path}; exit $?"
    with old_controller(tmp_path, "/bin/sh", "-c", command) as old:
        pid = int(old.text("pid"))
        assert pid != old.worker_pid  # that is the shell
        old.process.kill()
        assert ends(pid)


def test_a_worker_of_an_old_controller_ends_when_its_directory_goes(tmp_path: Path) -> None:
    directory = tmp_path / "session"
    directory.mkdir()
    with old_controller(directory) as old:
        assert old.text("hello") == "Hello World"
        directory.rename(tmp_path / "elsewhere")
        assert old.do(wait=True)["exit_code"] == 0
        assert sorted(os.listdir(tmp_path)) == ["elsewhere"]


def test_an_old_controller_sees_the_end_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        assert old.do(cmd="die", params="7 words", want="text") == {"died": 7}


def test_an_answer_waits_until_the_last_one_was_taken(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        assert old.text("hello") == "Hello World"
        (tmp_path / "response.json").write_text('{"params": "the last one"}')
        assert old.text("hello") == "the last one"  # and removes it
        while not (tmp_path / "response.json").exists():
            assert old.process.poll() is None
        assert json.loads((tmp_path / "response.json").read_text())["params"] == "Hello World"
        (tmp_path / "response.json").unlink()
        assert old.do(exit=True)["exit_code"] == 0


def test_the_wish_to_exit_survives_a_status_written_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tr_mmap.base import system
    from tr_mmap.channel.legacy import LegacyChannel
    from tr_mmap.protocol.status import Status

    channel = LegacyChannel.attach(str(tmp_path), [])
    channel.write_status(Status.READY)
    assert channel.read_status().status is Status.READY
    exchange = system.exchange

    def late(first: str, second: str) -> bool:
        (tmp_path / "status.txt").write_text("exit")
        return exchange(first, second)

    monkeypatch.setattr(system, "exchange", late)
    channel.write_status(Status.BUSY)
    assert channel.is_exit_requested()
    assert os.listdir(tmp_path) == ["status.txt"]


def test_a_request_of_the_legacy_dialect_in_a_session_of_ours_is_answered_in_that_dialect() -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        session.send_tensor(A, "a")
        assert bits(session.fetch_tensor("echo a")) == bits(A)
        directory = Path(session.session_dir())
        (directory / "x.tsr").write_bytes(
            struct.pack("<4s3i2i4i3q", b"TSR!", 1, 64, 0, 8, 1, 1, 1, 1, 3, 3, 0, 0) + b"abc"
        )
        (directory / "new").write_text('{"cmd": "echo", "params": "x"}')
        (directory / "new").rename(directory / "request.json")
        while not (directory / "response.json").exists():
            assert session.is_alive()
        assert (directory / "response.json").read_text().startswith('{"params": "by_hand_0"')
        (directory / "response.json").unlink()
        assert (directory / "by_hand_0.tsr").read_bytes()[64:] == b"abc"
        assert bits(session.fetch_tensor("echo a")) == bits(A)


def test_a_worker_of_ours_finds_a_session_with_a_manifest_by_its_directory_too(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\nfrom tr_mmap.worker.default import server\n"
        "server.run(os.path.join(os.environ['TR_WORKSPACE'], 'python_session', 'tr_session_' + sys.argv[1]))\n"
    )
    with PythonSession(script, quiet_mode=True) as session:
        assert bits(session.calculate("echo", A)) == bits(A)
