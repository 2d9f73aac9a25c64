"""Command words that somebody writes into ``request.json`` are served on every channel, and torn JSON is an error."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TOOLS, at_rest

import tr_mmap
from tr_mmap import PythonSession


@pytest.fixture(scope="module", params=["mapped", "files", "legacy"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(tmp_path_factory.mktemp("words")))
        with PythonSession(TOOLS, "words", quiet_mode=True, channel=request.param) as session:
            patch.undo()
            yield session


@pytest.fixture
def session(shared: PythonSession) -> Iterator[PythonSession]:
    """A session that serves its controller before and after what a test does to it."""
    assert shared.fetch_response("hello before") == "Hello Before"
    yield shared
    assert shared.fetch_response("hello after") == "Hello After"


def answer(session: PythonSession) -> dict[str, Any]:
    """The answer to a request by hand, which is removed."""
    path = Path(session.session_dir()) / "response.json"
    found = at_rest(path, lambda fields: "params" in fields)
    path.unlink()
    return found


def shell(session: PythonSession, command: str) -> str:
    """The params of the answer to what a shell does in the session's directory."""
    subprocess.run(["/bin/sh", "-c", command], cwd=session.session_dir(), check=True, timeout=30)
    params: str = answer(session)["params"]
    return params


@pytest.mark.parametrize(
    "command",
    [
        "echo 'hello you' > request.json",
        "printf 'hello you' > request.json",
        "printf '  hello\\tyou\\r\\n' > request.json",
        "echo '\"hello you\"' > request.json",
        "echo 'hello you' > new; mv new request.json",
        "printf 'hello you' > new; mv new request.json",
        """echo '"{\\"cmd\\": \\"hello\\", \\"params\\": \\"you\\"}"' > request.json""",
        """echo '{"command": "hello", "parameters": "you"}' > request.json""",
        """echo '{"cmd": "hello", "params": ["you"]}' > request.json""",
        """printf '{"cmd": "hello", "params": "you"}' > request.json""",
        """(printf '{"cmd": "hel'; sleep 0.1; printf 'lo", "params": "you"}') > request.json""",
    ],
)
def test_words_and_every_spelling_that_a_shell_writes_are_served(session: PythonSession, command: str) -> None:
    assert shell(session, command) == "Hello You"


def test_one_word_is_a_command_without_parameters(session: PythonSession) -> None:
    assert shell(session, "echo hello > request.json") == "Hello World"


def test_words_name_tensors_as_a_request_of_the_controller_does(session: PythonSession) -> None:
    import numpy as np

    session.send_tensor(np.float32([1, 2]), "x")
    tag = shell(session, "echo 'scale x 3' > request.json")
    directory = Path(session.session_dir())
    assert tr_mmap.load(directory / f"{tag}.tsr").tolist() == [3, 6]


def test_a_text_that_its_writer_has_not_escaped_is_read_up_to_its_quote(session: PythonSession) -> None:
    assert shell(session, """echo '{"cmd": "say", "params": "C:\\dir "x""}' > request.json""") == "C:\\dir "


@pytest.mark.parametrize(
    "text", ['{"cmd": "hello"', '{"params": "you"}', '{"cmd": ""}', '["hello"]', '"hello', "{hello}", "unheard_of word"]
)
def test_torn_or_headless_json_and_unknown_words_are_answered_with_an_error(session: PythonSession, text: str) -> None:
    Path(session.session_dir(), "request.json").write_text(text)
    found = answer(session)
    assert found["params"].startswith("error: ")
    assert found["error"]["message"]
    json.dumps(found)
