"""A worker whose tensors are torch's has imported torch when it says that it is ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import FOREVER_MS, script

from tr_mmap import PythonSession

FUNCTIONS = """
import sys
from tr_mmap import Server
server = Server(framework="FRAMEWORK")

@server.command("same")
def same(x):
    return x

BEFORE
server.run()
"""
CLASS = """
import gc, sys
from tr_mmap import TechRenaissanceServer

class Worker(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "loaded":
            self.write_response("", str("torch" in sys.modules))
        elif command == "collected":
            self.write_response("", f"{gc.isenabled()} {gc.get_freeze_count() > 100_000}")
        else:
            self.send_tensors(*self.get_tensors(parameters))
        return True

    def run(self, session_id=None):
        RUN

BEFORE
Worker(FRAMEWORK).run(sys.argv[1])
"""
RUNS = {
    "the library's": "super().run(session_id)",
    "its own": """
        self.setup_session_dir(session_id)
        print("torch is loaded when attached:", "torch" in sys.modules, flush=True)
        self.write_status("ready")
        while self.process_request():
            pass
        self.cleanup_session_dir()
""",
}


def has_loaded_torch(session: PythonSession) -> bool:
    return "libtorch" in Path(f"/proc/{session.pid}/maps").read_text()


@pytest.mark.parametrize("channel", ["mapped", pytest.param("files", marks=pytest.mark.full_only)])
def test_torch_is_loaded_when_a_worker_of_functions_says_that_it_is_ready(tmp_path: Path, channel: str) -> None:
    program = FUNCTIONS.replace("FRAMEWORK", "torch").replace("BEFORE", "assert 'torch' not in sys.modules")
    with PythonSession(script(tmp_path, program), quiet_mode=True, channel=channel) as session:  # type: ignore[arg-type]
        assert session.wait_until_ready(FOREVER_MS)
        assert has_loaded_torch(session)
        assert session.calculate("same", np.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("run", RUNS)
def test_torch_is_loaded_when_a_subclass_says_that_it_is_ready_and_not_before(tmp_path: Path, run: str) -> None:
    program = CLASS.replace("FRAMEWORK", "").replace("BEFORE", "").replace("RUN", RUNS[run])
    with PythonSession(script(tmp_path, program), quiet_mode=True) as session:
        assert session.wait_until_ready(FOREVER_MS)
        assert has_loaded_torch(session)
        assert session.fetch_response("loaded") == "True"
        assert session.fetch_response("collected") == "True True"  # they go on, and look at none of torch's objects
        log = Path(session.session_dir(), "worker.log").read_text()
        assert run != "its own" or "loaded when attached: False" in log


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_worker_of_numpy_imports_no_torch_and_one_without_torch_serves_texts(tmp_path: Path, framework: str) -> None:
    hidden = "sys.modules['torch'] = None" if framework == "torch" else ""
    program = CLASS.replace("FRAMEWORK", f"framework={framework!r}").replace("RUN", RUNS["the library's"])
    with PythonSession(script(tmp_path, program.replace("BEFORE", hidden)), quiet_mode=True) as session:
        assert session.wait_until_ready(FOREVER_MS)
        assert not has_loaded_torch(session)
        assert session.fetch_response("loaded") == str(framework == "torch")  # the name is taken, by None


def test_a_torch_that_cannot_be_imported_is_the_error_of_whoever_needs_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')\n")
    program = CLASS.replace("FRAMEWORK", "").replace("RUN", RUNS["the library's"]).replace("BEFORE", "")
    with PythonSession(script(tmp_path, program), quiet_mode=True) as session:
        assert session.fetch_response("loaded") == "False"
        with pytest.raises(Exception, match="this torch is broken"):
            session.calculate("same", np.ones(2))
        assert "this torch is broken" in Path(session.session_dir(), "worker.log").read_text()
        assert session.fetch_response("loaded") == "False"
