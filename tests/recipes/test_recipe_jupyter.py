"""The notebook of the Jupyter recipe, run cell by cell in a real kernel, with the Stop button."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import EXAMPLES
from support import environment, processes_of, wait_until

manager = pytest.importorskip("jupyter_client.manager", reason="NOT TESTED: the notebook, for there is no Jupyter here")
pytest.importorskip("ipykernel", reason="NOT TESTED: the notebook, for there is no ipykernel")


class Notebook:
    """A copy of the recipe's folder, and a kernel that runs the cells of its notebook."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jupyter"
        shutil.copytree(EXAMPLES / "jupyter", self.folder)
        cells = json.loads((self.folder / "notebook.ipynb").read_text())["cells"]
        self.cells = ["".join(each["source"]) for each in cells if each["cell_type"] == "code"]
        self.kernel = manager.KernelManager(kernel_name="python3")
        self.kernel.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.kernel.start_kernel(cwd=str(self.folder), env=environment())
        self.client = self.kernel.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=100)

    def run(self, text: str) -> str:
        """The value of a cell's last line; or the name of what it raised."""
        shown: list[str] = []

        def show(message: Any) -> None:
            content = message["content"]
            shown.extend([content["data"]["text/plain"]] if message["msg_type"] == "execute_result" else [])
            shown.extend([content["ename"]] if message["msg_type"] == "error" else [])

        self.client.execute_interactive(text, output_hook=show, timeout=100)
        return shown[0] if shown else ""

    def cell(self, number: int) -> str:
        return self.run(self.cells[number - 1])

    def end(self) -> None:
        self.client.stop_channels()
        if self.kernel.has_kernel:
            self.kernel.shutdown_kernel(now=True)
        self.kernel.context.destroy(linger=0)


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    opened = Notebook(tmp_path)
    try:
        yield opened
    finally:
        opened.end()


def test_a_notebook_runs_stops_follows_its_worker_and_may_be_run_again(notebook: Notebook, workspace: Path) -> None:
    assert notebook.cell(1) == "True"
    assert notebook.cell(2) == ""
    assert notebook.cell(3) == "array([0., 2., 4.])"

    # The worker's script is saved: the next cell has the new function, and the tag of before.
    script = notebook.folder / "worker.py"
    script.write_text(script.read_text().replace("return values * factor", "return values * factor + 1"))
    assert notebook.run('session.fetch_tensor("scale x 2").tolist()') == "[1.0, 3.0, 5.0]"

    # Stop, in the middle of a request. The worker is not hit by it.
    log = workspace / "python_session" / "tr_session_notebook" / "worker.log"
    stopped = notebook.client.execute(notebook.cells[3], stop_on_error=False)  # else the kernel may skip the next cell
    wait_until(lambda: "training for 600 s" in log.read_text())
    notebook.kernel.interrupt_kernel()
    reply = notebook.client.get_shell_msg(timeout=100)
    assert reply["parent_header"]["msg_id"] == stopped
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert notebook.run("session.is_alive(), session.is_busy()") == "(True, True)"
    assert notebook.cell(5) == "array([1., 3., 5.])"

    assert notebook.cell(1) == "True"  # again, without an end before it
    assert notebook.cell(3) == "array([1., 3., 5.])"
    assert notebook.cell(6) == ""
    assert processes_of(workspace) != []  # the kernel, whose environment names this workspace too
    assert list(workspace.rglob("*")) == []
    notebook.cell(1)
    notebook.kernel.shutdown_kernel()  # no end at all: nothing is left either, see conftest.py
    wait_until(lambda: not processes_of(workspace))
