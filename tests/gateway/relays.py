"""What stands between a client and a gateway, and loses responses."""

from __future__ import annotations

import socket
import threading


class Relay:
    """Passes connections on to a gateway, and cuts some off before their response.

    Attributes:
        url: where it listens.
        cut: how many responses are to be lost still.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._pass_on, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._address) as server:
            back = threading.Thread(target=self._pass_back, args=(server, client))
            back.start()
            while data := _received(client):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        while data := _received(server):
            if self.cut:
                self.cut -= 1
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(data)
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has gone already
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except ConnectionError:
        return b""
