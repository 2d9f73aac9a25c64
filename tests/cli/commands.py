"""Calls ``tr-mmap store`` as a shell would."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from tr_mmap.cli import app


def run(*arguments: object, text: str | bytes = "", status: int = 0, said: int = 1, asked: str = "tr-mmap: ") -> Any:
    """Run a command. One that fails says so in a line, or as many as ``said``; before it may be what it has asked."""
    ended = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, ["store", *map(str, arguments)], input=text
    )
    assert ended.exit_code == status, (ended.stdout, ended.stderr, ended.exception)
    if status:
        assert ended.stderr.count("\n") == said, ended.stderr
        assert ended.stderr.startswith(asked)
    return ended


def lines(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments).stdout.splitlines()]
