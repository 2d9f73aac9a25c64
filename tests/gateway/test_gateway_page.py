"""docs/gateway.md is true: its commands and programs run as they stand, and its tables have all that there is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from gateways import RunningGateway, configure, running, tr_mmap
from model_folders import put, safetensors_of
from support import BOUND_S, ROOT, environment, has_ended
from wheels import make_wheel

from tr_mmap.errors import TRException
from tr_mmap.gateway import Client, Config, errors
from tr_mmap.gateway.api import ExecuteBody, RegisterBody
from tr_mmap.gateway.problems import _STATUS
from tr_mmap.gateway.routes import ROUTES
from tr_mmap.gateway.scopes import SCOPES

PAGE = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
MARK = "@@@"
NOT_RUN = ("pip install", "tr-mmap serve")  # the gateway is there already
WORKER = """
from tr_mmap import Server
server = Server(framework="numpy")
@server.command("scale")
def scale(values, factor: float):
    return (values * factor).astype(values.dtype)
server.run()
"""
DOUBLE = "def double(inputs):\n    return inputs['x'] * 2\n"


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


PROGRAMS = [each for each in blocks("python") if not each.startswith("# fragment")]
MORE = """
[python.models]
model_dir = "models"
[python.dependencies]
auto_install = true
allow = ["humanize"]
wheel_dir = "wheels"
[store]
dir = "stores"
[sandbox]
memory_mb = 1024
wall_ms = 30000
cpu_ms = 30000
[workers.linear]
script = "worker.py"
count = 1
commands = ["scale"]
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway as the page starts one, but at a free port, without a limit of requests, and with its two models."""
    folder = tmp_path_factory.mktemp("page")
    weights = {"layer.weight": np.ones((2, 4), np.float32), "layer.bias": np.zeros(2, np.float32)}
    source = fragment("models/weighted/1/model.py")
    put(folder / "models" / "weighted" / "1", model__safetensors=safetensors_of(**weights), model__py=source)
    if importlib.util.find_spec("torch") is None:  # then the other one stands for the one that is exported
        put(folder / "models" / "scorer" / "1", model__safetensors=safetensors_of(**weights), model__py=source)
    else:
        (folder / "export.py").write_text(fragment("export.py"), encoding="utf-8")
        subprocess.run([sys.executable, "export.py"], cwd=folder, env=environment(), timeout=BOUND_S, check=True)
    module = {"humanize/__init__.py": "def naturaldelta(seconds):\n    return 'an hour'\n"}
    make_wheel(folder / "wheels", "humanize", "4.17.0", module)
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    with running(folder, MORE) as gateway:
        yield gateway


def with_command(folder: Path) -> dict[str, str]:
    """An environment in which a shell finds tr-mmap."""
    command = folder / "bin" / "tr-mmap"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tr_mmap "$@"\n')
    command.chmod(0o755)
    found = environment()
    return {**found, "PATH": f"{command.parent}{os.pathsep}{found['PATH']}"}


def commands() -> list[tuple[str, list[str]]]:
    """Each command of the page's shell, with the lines that it is said to print."""
    found: list[tuple[str, list[str]]] = []
    is_open = False
    page = PAGE.partition("\n## Stores\n")[0]  # whose commands test_stores.py runs
    for line in "".join(blocks("sh", page)).splitlines():
        if line.startswith("# ") and not is_open:
            found[-1][1].append(line[2:])
            continue
        if line.startswith(NOT_RUN) and not is_open:
            continue
        if is_open:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        else:
            found.append((line, []))
        text = found[-1][0]
        is_open = text.count("'") % 2 == 1 or text.endswith("\\")
    return found


def test_every_command_of_the_page_prints_what_it_says(started: RunningGateway) -> None:
    listed = commands()
    assert sum("curl" in command for command, _ in listed) > 15
    script = "set -e\n" + "".join(f"{command}\nprintf '\\n{MARK}\\n'\n" for command, _ in listed)
    ended = subprocess.run(
        ["bash", "-c", script.replace("http://127.0.0.1:3000", started.url)],
        cwd=started.folder,
        env=with_command(started.folder),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    printed = ended.stdout.split(f"\n{MARK}\n")
    for (command, said), text in zip(listed, printed, strict=False):
        pattern = "\n".join(".*".join(map(re.escape, line.split("…"))) for line in said)
        assert re.fullmatch(rf"\s*{pattern}\s*", text, re.DOTALL), f"{command}\nprints: {text}\nand not: {said}"


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_every_program_of_the_page_prints_what_it_says(started: RunningGateway, tmp_path: Path, number: int) -> None:
    program = PROGRAMS[number]
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    token = started.token("admin")
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**environment(), "TR_MMAP_URL": started.url, "TR_MMAP_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for said in re.findall(r"print\(.*\)  # (.*)$", program, re.MULTILINE):
        assert said in ended.stdout.splitlines()


def test_errors_are_imported_from_where_the_page_says() -> None:
    rows = re.findall(r"^  \| `(tr_mmap[\w.]*)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for module, text in rows:
        for name in re.findall(r"`([A-Z]\w+)`", text):
            assert issubclass(getattr(importlib.import_module(module), name), TRException), name


def fragment(name: str) -> str:
    """A block of Python that is a part of something."""
    (found,) = (each for each in blocks("python") if each.startswith(f"# fragment: {name}"))
    return found


def test_the_model_that_the_page_exports_is_served_with_any_number_of_rows(started: RunningGateway) -> None:
    pytest.importorskip("torch")
    assert started.ask("GET", "/api/v1/python/models/scorer").json()["format"] == "pt2"
    for rows in (1, 2, 5):
        x = {"dtype": "float32", "shape": [rows, 4], "data": [[1, 2, 3, 4]] * rows}
        assert started.execute(algorithm="scorer", inputs={"x": x})["shape"] == [rows, 2]


def test_what_the_page_keeps_between_runs_stays_and_globals_do_not(started: RunningGateway) -> None:
    started.register("cached", fragment("of an algorithm with"), reuse=True)
    found = [started.execute(algorithm="cached", inputs={"n": n}) for n in (2, 3, 4)]
    assert found == [[4, 1], [9, 2], [16, 3]]
    code = "n = 0\ndef counted(inputs):\n    global n\n    n += 1\n    return n\n"
    started.register("counted", code, reuse=True)
    assert [started.execute(algorithm="counted") for _ in range(2)] == [1, 1]


def test_a_program_mounts_a_gateway_as_the_page_says(tmp_path: Path) -> None:
    configure(tmp_path)
    token = tr_mmap("token", "--config", tmp_path / "tr_mmap.toml", "--scope", "admin").stdout.splitlines()[-1]
    (tmp_path / "webapp.py").write_text(fragment("webapp.py"), encoding="utf-8")
    with socket.socket() as listener:  # which the server inherits, so that nobody else has its port
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/ai"
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "webapp:app", "--fd", str(listener.fileno())],
            cwd=tmp_path,
            env=environment(),
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        with Client(url, token) as client:
            assert client.health().status == "ok"
            assert client.run(client.register("double", DOUBLE), {"x": np.arange(3)}).value.tolist() == [0, 2, 4]
            assert client.submit("double", {"x": 4}).result(timeout_s=BOUND_S).value == 8
        assert "/ai/openapi.json" in httpx.get(f"{url}/docs").text
        assert httpx.get(f"{url}/nope").json()["error"].endswith("see /ai/docs")
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=BOUND_S)
        assert server.returncode in (0, -signal.SIGTERM), said
        assert all(has_ended(each.pid) for each in children)
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()


def test_each_configuration_of_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "worker.py").touch()
    for block in blocks("toml"):
        path = tmp_path / "tr_mmap.toml"
        path.write_text(block)
        assert Config.from_toml(path).auth.key_file in (None, str(tmp_path / "tr_mmap.key"))


def test_the_page_lists_the_options_that_there_are() -> None:
    listed = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "list_options.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize("method", ["__init__", *(name for name in vars(Client) if not name.startswith("_"))])
def test_the_page_has_every_argument_of_the_client(method: str) -> None:
    if method in ("url", "close"):
        return
    called = "Client" if method == "__init__" else method
    rows = [line for line in PAGE.splitlines() if re.match(rf"\| [^|]*`{called}\(", line)]
    assert len(rows) == 1, rows
    (said,) = re.findall(rf"`{called}\(([^)]*)\)`", rows[0])
    listed = [(each.partition("=")[0], "=" in each) for each in said.replace(" ", "").split(",") if each]
    parameters = list(inspect.signature(getattr(Client, method)).parameters.values())[1:]
    assert listed == [(each.name, each.kind is each.KEYWORD_ONLY) for each in parameters]


def cells() -> set[str]:
    """What the tables have in code in their rows' first two cells."""
    rows = [line.split(" | ")[:2] for line in PAGE.splitlines() if line.startswith("| ")]
    return {each for row in rows for cell in row for each in re.findall(r"`([^`]+)`", cell)}


def test_the_page_has_every_route_field_scope_and_error() -> None:
    wanted = {f"{route.method} {route.path}" for route in ROUTES if "/store/" not in route.path}
    wanted |= {*RegisterBody.__struct_fields__, *ExecuteBody.__struct_fields__} - {"inputs", "tensors"}
    wanted |= set(SCOPES)
    wanted |= {kind.__name__ for kind, _ in _STATUS if kind.__module__.startswith("tr_mmap")} - {"Busy"}
    wanted -= {kind for kind in wanted if f"`{kind}`" in PAGE.partition("\n## Stores\n")[2]}
    wanted |= set(errors.__all__) - {"BadConfig", "Busy", "StoreFull"}
    assert wanted <= cells(), sorted(wanted - cells())


def test_the_page_gives_each_error_its_status() -> None:
    listed = {name: int(status) for status, name in re.findall(r"^\| (\d+) \| `(\w+)`", PAGE, re.MULTILINE)}
    for kind, status in _STATUS:
        if kind.__name__ in listed:
            assert listed[kind.__name__] == status, kind
