"""What the tests of stores over HTTP share: a gateway that offers stores, and how they are asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateways import RunningGateway, running

from tr_mmap.store import Store

WITHOUT_PYTHON = "[python]\nenabled = false\n"
BINARY = "application/octet-stream"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that offers stores; tests of this module share it, each with a store of its own."""
    folder, more = tmp_path_factory.mktemp("gateway"), f'{WITHOUT_PYTHON}[store]\ndir = "stores"\n'
    with running(folder, more, server="max_body_mb = 1") as started:
        yield started


@pytest.fixture
def path(gateway: RunningGateway, request: pytest.FixtureRequest) -> str:
    """Of a store that was just made."""
    name = re.sub(r"\W", "_", request.node.name)[:100]
    made = gateway.ask("PUT", f"/api/v1/store/{name}", {"indexed": ["kind"]})
    assert made.status_code == 201, made.text
    return f"/api/v1/store/{name}"


def opened(gateway: RunningGateway, path: str) -> Store:
    """The same store, by a handle of this process."""
    return Store(path.rpartition("/")[2], gateway.folder / "stores")


def asked(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def add(gateway: RunningGateway, path: str, **fields: Any) -> str:
    (found,) = asked(gateway.ask("POST", f"{path}/records", fields), 201)["ids"]
    return str(found)


def shown(record: Any) -> Found:
    """What a response says of a record that a handle has, without tensors and times."""
    names = ("id", "version", "content", "user_id", "agent_id", "run_id", "metadata", "importance")
    return {name: getattr(record, name) for name in names}


def plain(info: Found) -> Found:
    return {name: value for name, value in info.items() if not name.endswith("_at") and name not in ARRAYS}


ARRAYS = ("vector", "tensors")
