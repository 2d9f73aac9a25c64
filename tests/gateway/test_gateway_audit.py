"""What the gateway writes down: its log, its audit log, its figures. None of them stops it, or tells too much."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import RunningGateway, running
from raw_http import ask_raw
from support import wait_until

from tr_mmap.errors import HostilePath
from tr_mmap.gateway import Config, Gateway
from tr_mmap.gateway.errors import BadConfig
from tr_mmap.gateway.logs import AuditLog

ALGORITHMS = "/api/v1/python/algorithms"
EXECUTE = "/api/v1/python/execute"
NO_LIMIT = "requests_per_minute = 0"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    auth = f'{NO_LIMIT}\naudit_log = "audit.jsonl"'
    with running(tmp_path_factory.mktemp("audit"), auth=auth) as started:
        yield started


def audit(gateway: RunningGateway, request_id: str) -> list[dict[str, Any]]:
    """The lines of one request, which are there before its answer's end is."""
    later = gateway.ask("GET", "/healthz").headers["x-request-id"]
    wait_until(lambda: any(each.get("request_id") == later for each in gateway.logged()))
    lines = [json.loads(line) for line in (gateway.folder / "audit.jsonl").read_text().splitlines()]
    return [each for each in lines if each["request_id"] == request_id]


def test_each_change_and_each_refusal_is_one_line(audited: RunningGateway) -> None:
    body = {"name": "audited", "code": "output = 'payload-4711'"}
    for what, method, path, sent, options, status in (
        ("register", "POST", ALGORITHMS, body, {}, 201),
        ("wrong", "POST", ALGORITHMS, {"name": "wrong"}, {}, 400),
        ("forbidden", "POST", ALGORITHMS, body, {"scopes": ("execute",)}, 403),
        ("unauthorized", "GET", ALGORITHMS, None, {"token": "a.b.c"}, 401),
        ("host", "GET", ALGORITHMS, None, {"headers": {"host": "evil.example"}}, 400),
        ("origin", "GET", "/healthz", None, {"headers": {"origin": "https://evil.example"}}, 403),
        ("path", "GET", f"{ALGORITHMS}/%2e%2e%2f", None, {}, 400),
        ("remove", "DELETE", f"{ALGORITHMS}/audited", None, {}, 200),
    ):
        headers = {**options.pop("headers", {}), "x-request-id": what}
        answer = audited.ask(method, path, sent, headers=headers, **options)
        assert answer.status_code == status, answer.text
        (line,) = audit(audited, what)
        assert (line["method"], line["status"], line["client"]) == (method, status, "127.0.0.1")
        assert line["subject"] == ("" if what in ("unauthorized", "host", "origin", "path") else "ada")
        assert line["what"] == {"register": "audited", "wrong": "wrong"}.get(what, "")
    for method, path in (("GET", ALGORITHMS), ("POST", EXECUTE)):  # reads and runs are no changes
        assert audited.ask(method, path, {"code": "output = 1"}, headers={"x-request-id": "none"}).status_code == 200
    assert audit(audited, "none") == []
    text = (audited.folder / "audit.jsonl").read_text()
    assert "payload-4711" not in text
    assert "eyJ" not in text
    assert "a.b.c" not in text


def test_only_this_user_can_read_the_audit_log(audited: RunningGateway, folder: Path) -> None:
    assert stat.S_IMODE((audited.folder / "audit.jsonl").stat().st_mode) == 0o600
    path = folder / "open.jsonl"
    path.touch()
    for mode in (0o644, 0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(HostilePath, match="chmod 600"):
            AuditLog(str(path), lambda: None)


@pytest.mark.parametrize("name", ["missing/audit.jsonl", ".", "pipe"])
def test_an_audit_log_that_cannot_be_opened_is_one_clear_line(folder: Path, name: str) -> None:
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "key").write_text("k" * 48)
    (folder / "key").chmod(0o600)
    config = Config.from_dict({"auth": {"key_file": "key", "audit_log": name}}, base=folder)
    with pytest.raises(BadConfig, match=r"the audit log .* cannot be opened: .*") as caught:
        Gateway(config)
    assert caught.value.key == "auth.audit_log"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway whose audit log is on a disk that is full, and whose figures are for all."""
    auth = f'{NO_LIMIT}\naudit_log = "/dev/full"'
    folder = tmp_path_factory.mktemp("full")
    with running(folder, auth=auth, server="metrics_need_token = false") as started:
        yield started


def test_a_full_disk_does_not_stop_the_gateway(full: RunningGateway) -> None:
    for each in range(5):
        full.register(f"a{each}", "output = 1")
        assert full.ask("GET", ALGORITHMS, token="a.b.c").status_code == 401
    assert full.execute(algorithm="a4") == 1
    wait_until(lambda: "tr_audit_missed_total 10.0" in full.ask("GET", "/metrics").text)
    said = [each for each in full.logged() if each["level"] == "error"]
    assert [each["message"] for each in said] == ["the audit log takes no lines"]
    assert "No space left" in said[0]["why"]


def test_every_line_of_the_log_is_an_object_with_the_request_s_id(audited: RunningGateway) -> None:
    audited.ask("POST", EXECUTE, {"code": "output = 'payload-4712'"}, headers={"x-request-id": "logged"})
    audited.ask("GET", f"/payload-4712?token={audited.token('admin')}")
    for garbage in (b"payload-4712\r\n\r\n", b"GET /payload-4712 HTTP/1.1\r\nX: payload-4712\n\r\n\r\n"):
        answer = ask_raw(audited, garbage)
        assert answer is not None
        request_id = answer.headers["x-request-id"]
        wait_until(lambda each=request_id: any(line.get("request_id") == each for line in audited.logged()))
    wait_until(lambda: any(each.get("request_id") == "logged" for each in audited.logged()))
    lines = [line for line in list(audited.lines) if not line.startswith("serving on ")]
    for line in lines:
        said = json.loads(line)
        assert {"time", "level", "logger", "message"} <= said.keys()
        if said["message"] in ("request", "refused"):
            assert said["request_id"]
    text = "".join(lines)
    assert "payload-4712" not in text
    assert "eyJ" not in text


def test_the_figures_need_a_token_unless_the_configuration_says_otherwise(
    audited: RunningGateway, full: RunningGateway
) -> None:
    assert audited.ask("GET", "/metrics", headers={"authorization": ""}).status_code == 401
    assert audited.ask("GET", "/metrics", scopes=("metrics",)).status_code == 200
    assert full.ask("GET", "/metrics", headers={"authorization": ""}).status_code == 200


def test_refusals_are_counted_by_their_reason_and_methods_are_few(audited: RunningGateway) -> None:
    audited.ask("GET", ALGORITHMS, token="a.b.c")
    audited.ask("GET", ALGORITHMS, scopes=("store",))
    audited.ask("GET", ALGORITHMS, headers={"host": "evil.example"})
    audited.ask("PROPFIND", "/healthz")
    ask_raw(audited, b"garbage\r\n\r\n")
    text = audited.ask("GET", "/metrics").text
    for reason in ("unauthorized", "forbidden", "host_or_path", "framing"):
        assert f'tr_refused_total{{reason="{reason}"}}' in text
    assert 'method="other"' in text
    assert "PROPFIND" not in text
