"""What a worker's tensors are: read-only, or copy-on-write so that a handler may store into them through anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import script

from tr_mmap import BadMessage, PythonSession, Server, TechRenaissanceServer

# The command line: what kind of server, in which framework, with which views, and through what it stores.
WORKER = """
import sys
import numpy as np
from tr_mmap import Server, TechRenaissanceServer

kind, framework, views, through = sys.argv[2:]
views = None if views == "None" else views
if through == "torch":
    import torch  # before the first request, which may not wait for it

kept = []

def stored(x, number=1.0):
    kept.append(x)
    if through == "numpy":
        x += number
    else:
        (torch.from_numpy(x) if isinstance(x, np.ndarray) else x).add_(number)
    return x

def may_store(x):
    return str(x.flags.writeable) if isinstance(x, np.ndarray) else "True"

class Old(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "store":
            self.send_tensors(stored(*self.get_tensors(parameters, 1)))
        elif command == "may_store":
            self.write_response("", may_store(*self.get_tensors(parameters)))
        return True

if kind == "old":
    server = Old(framework=framework, views=views)
else:
    server = Server(framework, views=views)
    server.command("store")(stored)
    server.command("may_store")(may_store)

    @server.command("store_number")  # a word among the tags takes the slow path
    def store_number(x, number: float):
        return stored(x, number)

if __name__ == "__main__":
    server.run()
"""


@pytest.mark.parametrize(
    ("kind", "framework", "through", "options"),
    [
        ("functions", "numpy", "torch", {}),
        ("functions", "torch", "torch", {}),
        ("old", "numpy", "numpy", {}),
        ("functions", "numpy", "numpy", {"channel": "files"}),
        ("old", "torch", "torch", {"channel": "files"}),
        ("functions", "numpy", "numpy", {"checksum": True, "auth": True}),
        pytest.param("old", "numpy", "torch", {}, marks=pytest.mark.full_only),
        pytest.param("functions", "numpy", "torch", {"channel": "files"}, marks=pytest.mark.full_only),
        pytest.param("functions", "numpy", "torch", {"checksum": True, "auth": True}, marks=pytest.mark.full_only),
    ],
)
def test_a_handler_may_store_into_its_own_copy_on_write_views(
    tmp_path: Path, kind: str, framework: str, through: str, options: dict[str, Any]
) -> None:
    with PythonSession(
        script(tmp_path, WORKER), quiet_mode=True, args=[kind, framework, "copy_on_write", through], **options
    ) as session:
        for count in (5, 100_000):  # a slot of a slab, and a segment of its own
            x = np.arange(float(count))
            session.send_tensor(x, "x")
            for _ in range(3):  # nothing of a store is seen by the next request
                assert np.array_equal(session.calculate("store", x), x + 1)
                assert np.array_equal(session.fetch_tensor("store x"), x + 1)
                if kind == "functions":
                    assert np.array_equal(session.fetch_tensor("store_number x 2.5"), x + 2.5)
            assert np.array_equal(x, np.arange(float(count)))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["old", "functions"])
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize(("views", "is_writeable"), [("None", False), ("readonly", False), ("copy_on_write", True)])
def test_a_workers_arrays_are_of_the_kind_that_was_asked_for(
    tmp_path: Path, kind: str, channel: Any, views: str, is_writeable: bool
) -> None:
    with PythonSession(
        script(tmp_path, WORKER), quiet_mode=True, args=[kind, "numpy", views, "numpy"], channel=channel
    ) as session:
        for count in (5, 100_000):
            session.send_tensor(np.arange(count), "x")
            for _ in range(3):
                assert session.fetch_response("may_store x") == str(is_writeable)


def test_a_workers_torch_tensors_may_be_over_the_shared_memory(tmp_path: Path) -> None:
    with PythonSession(
        script(tmp_path, WORKER), quiet_mode=True, args=["functions", "torch", "readonly", "torch"]
    ) as session:
        x = np.arange(100_000.0)
        session.send_tensor(x, "x")
        assert session.fetch_response("may_store x") == "True"  # torch has no read-only tensors


@pytest.mark.parametrize("kind", [Server, TechRenaissanceServer])
@pytest.mark.parametrize("views", ["writable", "", True, 1, ["readonly"], "READONLY"])
def test_views_that_do_not_exist_are_refused_when_they_are_given(kind: Any, views: Any) -> None:
    with pytest.raises(BadMessage, match="'readonly' or 'copy_on_write'") as caught:
        kind(views=views)
    assert caught.value.detail == "views"
