"""What the short way of a request must not lose: checks, deadlines, metrics, the log."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

from gateways import RunningGateway, running
from prometheus_client.parser import text_string_to_metric_families
from support import wait_until

EXECUTE = "/api/v1/python/execute"
ENDLESS = "while True: pass"


def test_hosts_are_told_apart_also_when_they_were_seen_before(gateway: RunningGateway) -> None:
    body = {"code": "output = 1"}
    for _ in range(2):
        for host, status in (("localhost", 200), ("evil.example", 400), ("127.0.0.1:1", 200), ("localhost.evil", 400)):
            assert gateway.ask("POST", EXECUTE, body, headers={"host": host}).status_code == status


def test_two_tokens_are_none_and_so_are_two_hosts(gateway: RunningGateway) -> None:
    body = json.dumps({"code": "output = 1"}).encode()

    def status(*lines: str) -> int:
        head = ["POST /api/v1/python/execute HTTP/1.1", f"Content-Length: {len(body)}", *lines]
        with socket.create_connection(gateway.address) as client:
            client.sendall("\r\n".join(head).encode() + b"\r\nConnection: close\r\n\r\n" + body)
            answer = b""
            while part := client.recv(4096):
                answer += part
        return int(answer.split()[1])

    right, wrong = f"Authorization: Bearer {gateway.token('execute')}", "Authorization: Bearer nothing"
    assert status("Host: localhost", right) == 200
    assert status("Host: localhost", right, wrong) == 401
    assert status("Host: localhost", wrong, right) == 401
    assert status("Host: localhost", "Host: localhost", right) == 400


def test_a_run_whose_turn_does_not_come_before_its_deadline_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path, "[scheduler]\nmax_workers = 1") as gateway:
        path = gateway.ask("POST", "/api/v1/compute", {"code": ENDLESS, "timeout_ms": 60_000}).headers["location"]
        wait_until(lambda: gateway.ask("GET", path).json()["status"] == "running")
        for ms in (20, 150):  # shorter and longer than the time in which nobody looks at a deadline
            answer = gateway.ask("POST", EXECUTE, {"code": "output = 1", "timeout_ms": ms})
            assert (answer.status_code, answer.json()["type"]) == (504, "DeadlineExceeded")
            assert "before the run's turn" in answer.json()["error"]
        assert gateway.ask("PUT", path + "/cancel").status_code == 202
        assert gateway.execute(code="output = 1") == 1


def test_the_figures_of_times_are_whole_histograms(gateway: RunningGateway) -> None:
    for _ in range(3):
        gateway.execute(code="output = 1")
    text = gateway.ask("GET", "/metrics", scopes=("metrics",)).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("tr_http_request_duration_seconds", "tr_queue_seconds", "tr_compute_seconds"):
        assert families[name].type == "histogram"
        by_labels: dict[tuple[tuple[str, str], ...], list[tuple[str, float]]] = {}
        counts, sums = {}, {}
        for sample in families[name].samples:
            labels = dict(sample.labels)
            bound = labels.pop("le", "")
            key = tuple(sorted(labels.items()))
            if sample.name.endswith("_bucket"):
                by_labels.setdefault(key, []).append((bound, sample.value))
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
            else:
                sums[key] = sample.value
        assert by_labels
        for key, buckets in by_labels.items():
            values = [value for _, value in buckets]
            assert values == sorted(values)
            assert buckets[-1] == ("+Inf", counts[key])
            assert sums[key] >= 0


def test_each_request_has_a_line_in_the_log_and_none_if_that_is_not_wanted(tmp_path: Path) -> None:
    for name, wanted in (("with", True), ("without", False)):
        folder = tmp_path / name
        folder.mkdir()
        with running(folder, server=f"access_log = {str(wanted).lower()}") as gateway:
            for number in range(20):
                gateway.ask("POST", EXECUTE, {"code": "output = 1"}, headers={"x-request-id": f"r{number}"})
            if wanted:
                wait_until(lambda gateway=gateway: len(_requests(gateway)) == 20)
                for line in _requests(gateway):
                    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
                    assert (line["level"], line["status"], line["subject"]) == ("info", 200, "ada")
        if not wanted:  # all that it had to say is there
            assert not _requests(gateway)


def _requests(gateway: RunningGateway) -> list[dict[str, str]]:
    return [each for each in gateway.logged() if each["message"] == "request"]
