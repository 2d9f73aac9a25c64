"""Words that do not fit a command raise what ``main_logic`` has always raised; a subclass may deal with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tr_mmap import PythonSession, RemoteError

WORKER = """
from tr_mmap import MissingTag, Server

class Patient(Server):
    def main_logic(self, command, parameters):
        try:
            return super().main_logic(command, parameters)
        except MissingTag as error:
            if command != "patient":
                raise
            self.write_response("", f"send {error.tag} first")
            return True

server = Patient()

@server.command("patient")
def patient(x):
    return x + 1

@server.command("strict")
def strict(x):
    return x + 1

server.run()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_subclass_may_answer_words_that_name_no_tensor(script: Path, channel: str) -> None:
    with PythonSession(script, quiet_mode=True, channel=channel) as session:
        assert session.fetch_response("patient nosuch") == "send nosuch first"
        with pytest.raises(RemoteError) as caught:
            session.fetch_response("strict nosuch")
        assert caught.value.error_type == "MissingTag"
        assert caught.value.remote_traceback == ""  # the handler was not to blame
        assert np.array_equal(session.calculate("patient", np.ones(3)), np.full(3, 2.0))
