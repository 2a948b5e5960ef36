"""A line to a server that delays every piece of bytes by a fixed time, each way."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress


class DelayedLine:
    """Listens on `port` of the loopback interface and passes bytes on to a server there."""

    def __init__(self, server: int, seconds: float) -> None:
        self.server, self.seconds = server, seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
                for source, destination in ((client, server), (server, client)):
                    pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                    threading.Thread(target=self.receive, args=(source, pieces), daemon=True).start()
                    threading.Thread(target=send, args=(destination, pieces), daemon=True).start()

    def receive(self, source: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        piece = b"-"
        while piece:
            try:
                piece = source.recv(1 << 18)
            except OSError:
                piece = b""
            pieces.put((time.monotonic() + self.seconds, piece))

    def __enter__(self) -> DelayedLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def send(destination: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    """Sends pieces when they are due. An empty one ends the direction."""
    with suppress(OSError):
        while True:
            due, piece = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not piece:
                destination.shutdown(socket.SHUT_WR)
                return
            destination.sendall(piece)
