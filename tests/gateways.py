"""Gateways for tests: ``tr-mmap serve`` in a process of its own, asked by httpx."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from support import BOUND_S, environment, wait_until

from tr_mmap.gateway.tokens import Tokens, make_key_file, read_key_file

_READY = re.compile(r"serving on (?P<url>\S+);")


class RunningGateway:
    """One that listens.

    Attributes:
        url: where.
        folder: of its configuration.
        process: its own.
        lines: of its standard error so far.
        expected_status: with which it must end.
    """

    expected_status = 0

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self._url() or process.poll() is not None)
        assert self._url(), "it did not start:\n" + "".join(self.lines)
        self.url = self._url()
        self._client = httpx.Client(base_url=self.url, timeout=BOUND_S)
        self._tokens = Tokens(read_key_file(folder / "tr_mmap.key"), "tr-mmap")

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)  # an iterator: each line comes as it is written

    def _url(self) -> str:
        found = [match["url"] for match in map(_READY.match, list(self.lines)) if match]
        return found[0] if found else ""

    @property
    def address(self) -> tuple[str, int]:
        """For a client that speaks HTTP itself."""
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def token(self, *scopes: str, subject: str = "ada", valid_s: float = 3600, **claims: Any) -> str:
        """A token of this gateway."""
        return self._tokens.make(subject, scopes, valid_s, **claims)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        scopes: tuple[str, ...] = ("admin",),
        subject: str = "ada",
        **options: Any,
    ) -> httpx.Response:
        """The response to one request; ``body`` is sent as JSON. By default the token grants all."""
        headers = dict(options.pop("headers", {}))
        if "authorization" not in {each.lower() for each in headers}:
            headers["authorization"] = f"Bearer {token or self.token(*scopes, subject=subject)}"
        if body is not None:
            options["content"] = json.dumps(body)
        return self._client.request(method, path, headers=headers, **options)

    def register(self, name: str, code: str, **more: Any) -> dict[str, Any]:
        """Register an algorithm of Python."""
        response = self.ask("POST", "/api/v1/python/algorithms", {"name": name, "code": code, **more})
        assert response.status_code == 201, response.text
        found: dict[str, Any] = response.json()
        return found

    def execute(self, **body: Any) -> Any:
        """The result of a run that ends well."""
        response = self.ask("POST", "/api/v1/python/execute", body)
        assert response.status_code == 200, response.text
        return response.json()["result"]

    def logged(self) -> list[dict[str, Any]]:
        """The objects of its log so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def end(self) -> int:
        """End it as a service manager does; its exit status."""
        self._client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(BOUND_S)
        self._reader.join(BOUND_S)
        return status


def configure(folder: Path, more: str = "", *, auth: str = "requests_per_minute = 0", server: str = "") -> Path:
    """A configuration in a folder; ``more`` has other sections."""
    path = folder / "tr_mmap.toml"
    path.write_text(f'[server]\nport = 0\n{server}\n[auth]\nkey_file = "tr_mmap.key"\n{auth}\n{more}\n')
    return path


def configure_with_key(folder: Path, more: str = "", **sections: str) -> Path:
    """The same, with a key, as the first ``tr-mmap token`` makes one."""
    path = configure(folder, more, **sections)
    make_key_file(folder / "tr_mmap.key")
    return path


@contextmanager
def running(folder: Path, more: str = "", **sections: str) -> Iterator[RunningGateway]:
    """A gateway, for as long as the block takes. It must end well."""
    path = configure_with_key(folder, more, **sections)
    with subprocess.Popen(
        [sys.executable, "-m", "tr_mmap", "serve", "--config", str(path)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            gateway = RunningGateway(folder, process)
            try:
                yield gateway
            finally:
                status = gateway.end()
            assert status == gateway.expected_status, "".join(gateway.lines[-20:])
        finally:
            if process.poll() is None:
                process.kill()


def tr_mmap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One command of ``tr-mmap``."""
    return subprocess.run(
        [sys.executable, "-m", "tr_mmap", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
