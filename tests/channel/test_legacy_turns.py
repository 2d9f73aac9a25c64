"""Requests on the legacy channel do not wait for a status that a worker has left behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import BOUND_S, never

from tr_mmap.channel import legacy
from tr_mmap.channel.interface import Role
from tr_mmap.channel.legacy import LegacyChannel
from tr_mmap.protocol.messages import Request, Response
from tr_mmap.protocol.status import Status


def ask(controller: LegacyChannel, worker: LegacyChannel, seq: int, last: Status) -> None:
    controller.send(Request(seq, "x"), time.monotonic() + BOUND_S)
    assert worker.receive(0, never) is not None
    worker.write_status(Status.BUSY)
    worker.write_status(last)
    worker.send(Response(seq, "x"))
    assert controller.receive(0, never) is not None


def test_a_worker_whose_last_status_could_not_be_written_gets_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "_GRACE_S", 0.05)
    controller = LegacyChannel.create(str(tmp_path))
    worker = LegacyChannel(str(tmp_path), Role.WORKER)
    began_s = time.monotonic()
    for seq in range(1, 20):
        ask(controller, worker, seq, Status.OK if seq % 3 else Status.BUSY)
    assert time.monotonic() - began_s < legacy._LONG_PATIENCE_S


def test_a_worker_that_says_busy_on_its_own_gets_requests_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "_LONG_PATIENCE_S", 0.1)
    controller = LegacyChannel.create(str(tmp_path))
    worker = LegacyChannel(str(tmp_path), Role.WORKER)
    ask(controller, worker, 1, Status.OK)
    worker.write_status(Status.BUSY, "warming a cache")
    ask(controller, worker, 2, Status.OK)
