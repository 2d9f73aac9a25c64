"""A gateway that cannot start says why in one line, which names the option and says what to do."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateways import configure, configure_with_key, running, tr_mmap
from model_folders import put, safetensors_of
from support import wait_until

from tr_mmap.gateway import Config, Gateway
from tr_mmap.gateway.errors import BadConfig
from tr_mmap.gateway.tokens import make_key_file

INSTALLS = {"auto_install": True, "allow": ["humanize"]}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            '[python.models]\nmodel_dir = "modles"',
            "python.models.model_dir: {folder}/modles cannot be read: No such file",
        ),
        ('[sandbox]\npreload = ["nunpy"]', "sandbox.preload: preload names 'nunpy', which is not installed here"),
        ('[sandbox]\nrequired_layers = ["moat"]', "sandbox.required_layers: there is no layer moat; known are"),
        (
            '[python.dependencies]\nauto_install = true\nallow = ["x"]\ncache_dir = "a_file/cache"',
            "python.dependencies.cache_dir: {folder}/a_file/cache cannot be made: Not a directory",
        ),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line_with_its_name_and_status_2(
    folder: Path, section: str, said: str
) -> None:
    (folder / "a_file").touch()
    path = configure_with_key(folder, section)
    ended = tr_mmap("serve", "--config", path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"tr-mmap: {path}: {said.format(folder=folder)}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a directory", "auth.key_file: {key} is no file"),
        ("others may read it", "auth.key_file: other users can read or write {key}; chmod 600 {key} keeps them out"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_one_line_and_status_2(folder: Path, kind: str, said: str) -> None:
    path = configure(folder)
    key = Config.from_toml(path).auth.key_file
    assert key is not None
    if kind == "a directory":
        Path(key).mkdir()
    else:
        make_key_file(key)
        Path(key).chmod(0o644)
    ended = tr_mmap("serve", "--config", path)
    assert (ended.returncode, ended.stderr) == (2, f"tr-mmap: {path}: {said.format(key=key)}\n")


def test_an_address_that_another_program_has_is_one_line_with_its_options_and_status_5(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        path = configure_with_key(folder)
        path.write_text(path.read_text().replace("port = 0", f"port = {port}"))
        ended = tr_mmap("serve", "--config", path)
    text = f"tr-mmap: server.host, server.port: 127.0.0.1:{port} cannot be had: Address already in use\n"
    assert (ended.returncode, ended.stderr) == (5, text)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"python": {"models": {"model_dir": "missing"}}}, "python.models.model_dir"),
        ({"python": {"models": {"model_dir": "a_file"}, "enabled": False}}, "python.models.model_dir"),
        ({"python": {"dependencies": {"wheel_dir": "missing"}}}, "python.dependencies.wheel_dir"),
        ({"python": {"dependencies": {"wheel_dir": "a_file", **INSTALLS}}}, "python.dependencies.wheel_dir"),
        ({"store": {"dir": "a_file"}}, "store.dir"),
        ({"store": {"dir": "to_nothing"}}, "store.dir"),
    ],
)
def test_a_directory_that_is_not_there_is_named_before_anything_starts(
    folder: Path, options: dict[str, object], key: str
) -> None:
    (folder / "a_file").touch()
    (folder / "to_nothing").symlink_to("nothing")
    make_key_file(folder / "tr_mmap.key")
    config = Config.from_dict({"auth": {"key_file": "tr_mmap.key"}, **options}, base=folder)
    with pytest.raises(BadConfig) as caught:
        Gateway(config)
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: {folder}/")


def test_directories_that_the_gateway_makes_need_not_be_there(folder: Path) -> None:
    with running(folder, '[store]\ndir = "stores"\n') as gateway:
        assert gateway.ask("PUT", "/api/v1/store/notes", {}).status_code == 201


def test_a_directory_of_models_that_vanishes_is_one_line_and_its_models_stay(folder: Path) -> None:
    models = folder / "models"
    source = "def forward(inputs):\n    return inputs['x'] + 1\n"
    put(models / "next" / "1", model__safetensors=safetensors_of(w=np.zeros(1, np.float32)), model__py=source)
    section = '[python.models]\nmodel_dir = "models"\nscan_interval_seconds = 0.02\n'
    with running(folder, section) as gateway:

        def told() -> list[dict[str, Any]]:
            return [each for each in gateway.logged() if "model_dir" in each["message"]]

        def serves(version: int) -> bool:
            return gateway.ask("GET", "/api/v1/python/models/next").json()["served"] == version

        def has_told(times: int) -> bool:
            return len(told()) >= times

        for times in (1, 2):
            models.rename(folder / "elsewhere")
            wait_until(partial(has_told, times))
            # Two more looks: a load that is asked for looks too, and waits for the one that goes on.
            for _ in range(2):
                answer = gateway.ask("POST", "/api/v1/python/models/next")
                assert answer.status_code == 404
                assert "model_dir cannot be read" in answer.json()["error"]
            assert gateway.execute(algorithm="next", inputs={"x": 1}) == 2
            (folder / "elsewhere").rename(models)
            assert gateway.ask("POST", "/api/v1/python/models/next").status_code == 200
            line = told()[-1]
            assert (line["level"], line["reason"], "exception" in line) == ("error", "No such file or directory", False)
            put(
                models / "next" / str(times + 1),
                model__safetensors=safetensors_of(w=np.zeros(1, np.float32)),
                model__py=source,
            )
            wait_until(partial(serves, times + 1))
        assert len(told()) == 2
