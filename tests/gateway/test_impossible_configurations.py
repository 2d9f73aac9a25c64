"""Configurations that cannot work are refused as they are read, with the option and why."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gateways import configure, running, tr_mmap
from support import WORKERS

from tr_mmap.errors import HostilePath
from tr_mmap.gateway import Gateway
from tr_mmap.gateway.app import Front
from tr_mmap.gateway.config import Config
from tr_mmap.gateway.config_checks import host_in_requests
from tr_mmap.gateway.errors import BadConfig
from tr_mmap.gateway.tokens import make_key_file, read_key_file

WRONG = {
    "sandbox.memory_mb": "[sandbox]\nmemory_mb = 4096",
    "sandbox.cpu_cores": "[sandbox]\ncpu_cores = 8",
    "sandbox.wall_ms": "[sandbox]\nwall_ms = inf",
    "server.drain_s": "[server]\ndrain_s = inf",
    "server.host": '[server]\nhost = "[::1]"',
    "server.allowed_hosts": '[server]\nallowed_hosts = ["ai.example.org", "ai.example.org:8443"]',
    "server.allowed_origins": '[server]\nallowed_origins = ["page.example.org"]',
    "server.trusted_proxies": '[server]\ntrusted_proxies = ["10.0.0.0/8", "fd00::1", "proxy.example.org"]',
    "auth.audience": '[auth]\naudience = ""',
    "python.dependencies.allow": '[python.dependencies]\nallow = ["humanize==4.17.0"]',
    "workers.w.commands": '[workers.w]\nscript = "default"\ncommands = ["add", "exit"]',
}


@pytest.mark.parametrize("key", WRONG)
def test_what_cannot_work_is_refused_as_it_is_read(key: str) -> None:
    with pytest.raises(BadConfig) as found:
        Config.from_dict(tomllib.loads(WRONG[key]))
    assert found.value.key == key
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("hosts", [["https://ai.example.org"], ["a b"], [""], ["[fd00::1]:3000"]])
def test_what_no_request_has_as_its_host_is_refused(hosts: list[str]) -> None:
    with pytest.raises(BadConfig, match="without a port"):
        Config.from_dict({"server": {"allowed_hosts": hosts}})


@pytest.mark.parametrize("proxy", ["*", "", "foo", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80", "/run/proxy.sock"])
def test_a_proxy_that_no_request_can_come_from_is_refused(proxy: str) -> None:
    with pytest.raises(BadConfig, match=r"is no address or network; give one as") as found:
        Config.from_dict({"server": {"trusted_proxies": ["192.0.2.1", proxy]}})
    assert found.value.key == "server.trusted_proxies"


def test_proxies_are_addresses_and_networks() -> None:
    proxies = ("127.0.0.1", "10.0.0.0/8", "::1", "fd00::/8")
    assert Config.from_dict({"server": {"trusted_proxies": list(proxies)}}).server.trusted_proxies == proxies


def test_limits_that_fit_together_are_taken() -> None:
    options = {"sandbox": {"memory_mb": 4096, "most_memory_mb": 4096, "cpu_cores": 8, "most_cpu_cores": 8}}
    assert Config.from_dict(options).sandbox.memory_mb == 4096


def test_a_gateway_that_cannot_work_ends_with_the_status_of_a_wrong_configuration(folder: Path) -> None:
    ended = tr_mmap("serve", "--config", configure(folder, "[sandbox]\nmemory_mb = 4096"))
    assert ended.returncode == 2
    assert "sandbox.memory_mb" in ended.stderr


def front(folder: Path, **server: Any) -> Front:
    make_key_file(folder / "key")
    return Gateway(Config.from_dict({"server": server, "auth": {"key_file": str(folder / "key")}})).asgi_app


@pytest.mark.parametrize("host", ["fd00::1", "FD00:0::0001"])
def test_an_address_of_ipv6_is_known_as_requests_have_it(folder: Path, host: str) -> None:
    known = front(folder, host=host, allow_plain_http=True).is_known_host
    for each in ("[fd00::1]:3000", "[fd00::1]", "[FD00::1]", "[fd00:0:0::1]:1", "localhost", "[::1]:3000"):
        assert known(each), each
    for each in ("[fd00::2]:3000", "fd00::1", "evil.example", "[fd00::1", "[nonsense]"):
        assert not known(each), each


def test_allowed_hosts_have_addresses_with_brackets_or_without(folder: Path) -> None:
    known = front(folder, allowed_hosts=["fd00::1", "[fd00::2]", "192.0.2.1", "AI.example.org"]).is_known_host
    for each in ("[fd00::1]:8443", "[fd00::2]:1", "192.0.2.1:80", "ai.example.org:8443", "AI.Example.org"):
        assert known(each), each
    assert not known("[fd00::3]")
    assert host_in_requests("fe80::1%eth0") == "[fe80::1]"


def test_a_key_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "key"
    make_key_file(path)
    assert read_key_file(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(HostilePath, match="another user's"):
        read_key_file(path)


def test_what_is_asked_for_and_not_there_is_told_at_the_start(folder: Path) -> None:
    config = f'[workers.w]\nscript = "{WORKERS / "gateway_worker.py"}"\n[python]\nenabled = false\n'
    with running(folder, config + "[sharedmemory]\nenabled = true\n") as gateway:
        (said,) = [each for each in gateway.lines if "sharedmemory" in each]
    assert "warning" in said.lower()
