"""The wire between a service and its PostgreSQL: it counts statements, and can be cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import sqlalchemy as sa


class Wire:
    """A proxy in front of a PostgreSQL server that writes down each statement as it is sent.

    BEGIN, COMMIT and ROLLBACK are statements like any other: what counts is what the server gets.
    """

    def __init__(self, url: str) -> None:
        target = sa.make_url(url)
        folder = target.query.get("host")
        self._port = int(str(target.query.get("port", target.port or 5432)))
        self._folder = str(folder) if folder is not None and "/" in folder else None
        self._host = target.host or "127.0.0.1"
        self.statements: list[str] = []
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        # In the open, or there would be nothing to count.
        query = {"sslmode": "disable", "gssencmode": "disable"}
        port = self._listener.getsockname()[1]
        through = target.set(host="127.0.0.1", port=port, query=query)
        self.url = through.render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and take no new ones."""
        self._is_cut = True
        for end in tuple(self._open):
            _close(end)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._is_cut:
                client.close()
                continue
            server = self._connect()
            self._open |= {client, server}
            for source, target, reads in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._forward, args=(source, target, reads), daemon=True
                ).start()

    def _connect(self) -> socket.socket:
        if self._folder is None:
            return socket.create_connection((self._host, self._port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._folder}/.s.PGSQL.{self._port}")
        return server

    def _forward(self, source: socket.socket, target: socket.socket, reads: bool) -> None:
        buffer, started = b"", False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if reads:  # before it is sent: who sees its effect finds it written down
                    buffer, started = self._read(buffer + data, started)
                target.sendall(data)
        for end in (source, target):
            self._open.discard(end)
            _close(end)

    def _read(self, buffer: bytes, started: bool) -> tuple[bytes, bool]:
        """Write down the statements in what a client has sent; returns what is not whole yet.

        The first message of a connection has no type; Q is a statement, E runs a prepared one.
        """
        while True:
            kind = buffer[:1] if started else b""
            head = len(kind)
            if len(buffer) < head + 4:
                return buffer, started
            end = head + struct.unpack("!I", buffer[head : head + 4])[0]
            if len(buffer) < end:
                return buffer, started
            if kind in (b"Q", b"E"):
                self.statements.append(buffer[head + 4 : end].rstrip(b"\0").decode())
            buffer, started = buffer[end:], True


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
