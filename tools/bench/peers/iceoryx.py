"""iceoryx2: request-response over byte slices that it lends, blocking on its events. One client, one server.

Both variants write into memory that iceoryx2 lent, as its examples do; the copied one fills it from ``x`` and computes
all of the answer, the loaned one touches the ends.
"""

from __future__ import annotations

import ctypes
import os
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from .base import Array, LoanedPeer, Peer, answer_ends, end, missing, spawn

__all__ = ["Iceoryx", "IceoryxLoaned"]

_STOP = 1  # event id


def _as_array(slice_: Any) -> Array:
    return np.frombuffer((ctypes.c_uint8 * slice_.len()).from_address(slice_.as_ptr()), np.float32)


class _Ports:
    """The services that both sides open: the requests, and an event for each direction."""

    def __init__(self, name: str) -> None:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Fatal)
        self.iox2 = iox2
        self.node = (
            iox2.NodeBuilder.new().signal_handling_mode(iox2.SignalHandlingMode.Disabled).create(iox2.ServiceType.Ipc)
        )
        payload = iox2.Slice[ctypes.c_uint8]
        builder = (
            self._builder(name)
            .request_response(payload, payload)
            .request_payload_alignment(iox2.Alignment.new(64))
            .response_payload_alignment(iox2.Alignment.new(64))
        )
        # One request at a time: without these limits it would set aside many payloads of the largest size.
        self.requests = (
            builder.max_clients(1)
            .max_servers(1)
            .max_nodes(2)
            .max_active_requests_per_client(1)
            .max_loaned_requests(1)
            .max_response_buffer_size(1)
            .max_borrowed_responses_per_pending_response(1)
            .open_or_create()
        )
        self.to_server = self._builder(name + "/to_server").event().open_or_create()
        self.to_client = self._builder(name + "/to_client").event().open_or_create()

    def _builder(self, name: str) -> Any:
        return self.node.service_builder(self.iox2.ServiceName.new(name))


def _serve(name: str, max_nbytes: int, is_loaned: bool) -> None:
    ports = _Ports(name)
    server = ports.requests.server_builder().initial_max_slice_len(max_nbytes).create()
    listener = ports.to_server.listener_builder().create()
    notifier = ports.to_client.notifier_builder().create()
    notifier.notify()
    while True:
        for event in listener.blocking_wait():
            if event.id.as_value == _STOP:
                return
        request = server.receive()
        if request is None:
            continue
        x = _as_array(request.payload())
        response = request.loan_slice_uninit(x.nbytes)
        out = _as_array(response.payload())
        if is_loaned:
            answer_ends(x, out)
        else:
            np.add(x, 1, out=out)
        response.assume_init().send()
        notifier.notify()
        request.delete()


class _Client:
    """The client's ports, and one request under way."""

    def __init__(self, name: str, max_nbytes: int, is_loaned: bool) -> None:
        self._ports = ports = _Ports(name)
        self._listener = ports.to_client.listener_builder().create()
        self._stop_id = ports.iox2.EventId.new(_STOP)
        self.process: BaseProcess = spawn(_serve, name, max_nbytes, is_loaned)
        self._wait()
        self._notifier = ports.to_server.notifier_builder().create()
        self._client = ports.requests.client_builder().initial_max_slice_len(max_nbytes).create()
        self._response: Any = None
        self._pending: Any = None
        self.request: Any = None

    def _wait(self) -> None:
        while not self._listener.blocking_wait():
            pass

    def loan(self, nbytes: int) -> Array:
        self.request = self._client.loan_slice_uninit(nbytes)
        return _as_array(self.request.payload())

    def send(self) -> Array:
        self._pending = self.request.assume_init().send()
        self.request = None
        self._notifier.notify()
        while True:
            self._wait()
            self._response = self._pending.receive()
            if self._response is not None:
                return _as_array(self._response.payload())

    def release(self) -> None:
        self._response.delete()
        self._pending.delete()

    def close(self) -> None:
        self._notifier.notify_with_custom_event_id(self._stop_id)
        end(self.process)


class Iceoryx(Peer):
    key = "iceoryx2"
    label = "iceoryx2"

    def __init__(self) -> None:
        self._client: _Client | None = None

    def unavailable(self) -> str | None:
        return missing("iceoryx2")

    def start(self, max_nbytes: int) -> None:
        self._client = _Client(f"tr_bench/{os.getpid()}/{self.key}", max_nbytes, self.is_loaned)

    def roundtrip(self, x: Array) -> Array:
        client = self._client
        np.copyto(client.loan(x.nbytes), x)
        return client.send()

    def release(self) -> None:
        self._client.release()

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class IceoryxLoaned(Iceoryx, LoanedPeer):
    key = "iceoryx2-loaned"
    label = "iceoryx2, loaned"
    is_loaned = True

    def loan(self, count: int) -> Array:
        return self._client.loan(count * 4)

    def roundtrip(self, x: Array) -> Array:  # noqa: ARG002 - it lies in the loan
        return self._client.send()
