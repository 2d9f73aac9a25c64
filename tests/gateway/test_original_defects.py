"""Defects of the original framework's server, each as a test; those of its tokens are in ``test_gateway_tokens.py``."""

from __future__ import annotations

import json
import threading
from typing import Any

import psutil
import pytest
from gateways import RunningGateway
from support import wait_until

EXECUTE = "/api/v1/python/execute"
LOOP = "def f(inputs):\n    while True:\n        pass\n"


def busy(gateway: RunningGateway) -> set[int]:
    """The gateway's processes that compute, in contrast to those that wait."""
    found = set()
    for process in psutil.Process(gateway.process.pid).children(recursive=True):
        try:
            if process.cpu_times().user > _USER_S.get(process.pid, 0.0) + 0.2:
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


_USER_S: dict[int, float] = {}  # of processes that were there before


def note_times(gateway: RunningGateway) -> None:
    for process in psutil.Process(gateway.process.pid).children(recursive=True):
        try:
            _USER_S[process.pid] = process.cpu_times().user
        except psutil.NoSuchProcess:
            continue


def test_a_timeout_ends_the_process_of_the_run(gateway: RunningGateway) -> None:
    """The original left the thread that computed, and answered."""
    note_times(gateway)
    answers: list[Any] = []
    body = {"code": LOOP, "timeout_ms": 3000}
    thread = threading.Thread(target=lambda: answers.append(gateway.ask("POST", EXECUTE, body)))
    thread.start()
    wait_until(lambda: busy(gateway))
    computing = busy(gateway)
    thread.join()
    assert (answers[0].status_code, answers[0].json()["type"]) == (504, "DeadlineExceeded")
    wait_until(lambda: not any(psutil.pid_exists(each) for each in computing))


def test_a_cancelled_task_s_process_ends(gateway: RunningGateway) -> None:
    note_times(gateway)
    path = gateway.ask("POST", "/api/v1/compute", {"code": LOOP, "timeout_ms": 60_000}).headers["location"]
    wait_until(lambda: busy(gateway))
    computing = busy(gateway)
    gateway.ask("PUT", f"{path}/cancel")
    wait_until(lambda: not any(psutil.pid_exists(each) for each in computing))


@pytest.mark.parametrize(
    "value",
    [
        "'",
        '"',
        "'''",
        '"""',
        "\\",
        "\\'",
        "'); import os; os._exit(1) #",
        '"); raise SystemExit #',
        "{inputs}",
        "{{7*7}}",
        "${7*7}",
        "%s",
        "\n",
        "\r\n",
        "\0",
        "\u2028",
        "\x1b[2J",
        "__import__('os').system('true')",
        "null",
        "None",
        "true",
        "</script>",
    ],
)
def test_what_is_sent_never_becomes_code(gateway: RunningGateway, value: str) -> None:
    """The original put the JSON of inputs between quotes of a source."""
    sent = {value: [value, {value: value}], "x": value}
    assert gateway.execute(code="output = inputs", inputs=sent) == sent
    assert gateway.execute(code="def f(inputs):\n    return {'output': inputs['x']}\n", inputs={"x": value}) == value


@pytest.mark.parametrize(
    "function",
    ["f); import os; os._exit(1", "f\nimport os", "__import__", "f()", "inputs['f']", "", "f" * 100_000, "ƒ", "\0"],
)
def test_a_function_s_name_never_becomes_code(gateway: RunningGateway, function: str) -> None:
    code = "def f(inputs):\n    return 1\n"
    body = {"code": code, "function": function}
    answer = gateway.ask("POST", EXECUTE, body)
    assert answer.status_code in (400, 422), answer.text
    registered = gateway.ask("POST", "/api/v1/python/algorithms", {"name": "named", **body})
    assert registered.status_code in (400, 422), registered.text


def test_two_requests_of_one_id_are_two_runs(gateway: RunningGateway) -> None:
    """A client that takes another one's request id can neither stop its run nor get its result."""
    headers = {"x-request-id": "the-same"}
    body = {"code": "import time\ntime.sleep(1)\noutput = inputs['x']", "timeout_ms": 30_000}
    answers: dict[str, Any] = {}

    def ask(subject: str) -> None:
        answers[subject] = gateway.ask(
            "POST", EXECUTE, {**body, "inputs": {"x": subject}}, subject=subject, scopes=("execute",), headers=headers
        )

    threads = [threading.Thread(target=ask, args=(each,)) for each in ("ada", "eve")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for subject, answer in answers.items():
        assert answer.status_code == 200, answer.text
        assert (answer.json()["result"], answer.headers["x-request-id"]) == (subject, "the-same")


def test_a_task_tells_the_id_of_its_own_request(gateway: RunningGateway) -> None:
    headers = {"x-request-id": "my-task"}
    path = gateway.ask("POST", "/api/v1/compute", {"code": "1 / 0"}, headers=headers).headers["location"]
    wait_until(lambda: gateway.ask("GET", path).json()["status"] == "failed")
    assert gateway.ask("GET", path).json()["error"]["request_id"] == "my-task"


def test_code_that_no_parser_can_take_is_refused_at_registration(gateway: RunningGateway) -> None:
    for code in (
        "(" * 1000,
        "-" * 100_000 + "1",
        "x" + ".x" * 100_000,
        "a" + "()" * 100_000,
        "lambda:" * 10_000 + "1",
        "x = " + "9" * 100_000,
        "\0",
        "\ufeff\ufeff",
        "if 1:\n\tx\n        y",
    ):
        answer = gateway.ask("POST", "/api/v1/python/algorithms", {"name": "deep", "code": code})
        assert answer.status_code == 422, (code[:20], answer.text[:300])
    assert not [each for each in gateway.logged() if each["level"] == "error"]


def test_the_errors_of_the_gateway_name_nothing_inside_of_it(gateway: RunningGateway) -> None:
    for body in ({"code": "1 / 0"}, {"code": "raise RuntimeError('x')"}, {"algorithm": "nope"}, {"code": "f(:"}, {}):
        text = json.dumps(gateway.ask("POST", EXECUTE, body).json())
        assert str(gateway.folder) not in text
        assert "site-packages" not in text
        assert "/tr_mmap/" not in text
