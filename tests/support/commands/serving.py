"""Servers on the loopback address: any handler, a publisher of archives, free ports."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil


class Answering(BaseHTTPRequestHandler):
    """Answers with a status, a body and headers, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def send(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """Serve with a handler until the block ends.

    Yields:
        The server, which the handler sees, and its address.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def other_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine by which others could reach it."""
    found = [one for cards in psutil.net_if_addrs().values() for one in cards]
    return [
        one.address
        for one in found
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]


@dataclass
class Publisher:
    """A running server.

    Args:
        url: Its address.
        files: Path -> content.
        failures: Path -> what its next answers are, before it answers as it should: a status,
            ``cut:N`` to break the connection after N bytes, ``hang`` for no answer.
        ranges: Whether it answers ranges.
        tags: Whether it sends ETags.
        requests: Path and range of what was asked, e.g. ``/a.tar bytes=5-``.
        conditions: The ``If-Range`` of each request.
        gate: Answers wait until it is set.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[int | str]] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    requests: list[str] = field(default_factory=list)
    conditions: list[str | None] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)


@contextmanager
def running_publisher() -> Iterator[Publisher]:
    with serving(_Handler) as (server, url):
        publisher = Publisher(url)
        publisher.gate.set()
        server.publisher = publisher  # type: ignore[attr-defined]
        try:
            yield publisher
        finally:
            publisher.gate.set()


class _Handler(Answering, BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        publisher: Publisher = self.server.publisher  # type: ignore[attr-defined]
        path, wanted = self.path.partition("?")[0], self.headers.get("Range", "")
        publisher.requests.append(f"{path} {wanted}".strip())
        publisher.conditions.append(self.headers.get("If-Range"))
        publisher.gate.wait(30)
        failures = publisher.failures.get(path, [])
        failure = failures.pop(0) if failures else ""
        content = publisher.files.get(path)
        if isinstance(failure, int) or content is None:
            self.send(failure if isinstance(failure, int) else 404)
        elif failure == "hang":
            threading.Event().wait(5)
            self.close_connection = True
        else:
            self._serve(publisher, content, wanted, failure)

    def _serve(self, publisher: Publisher, content: bytes, wanted: str, failure: str) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"ETag": tag} if publisher.tags else {}
        condition = self.headers.get("If-Range")
        found = re.fullmatch(r"bytes=(\d+)-", wanted)
        if not (found and publisher.ranges and condition in (None, tag)):
            self._send_until(failure, 200, content, headers)
        elif int(found[1]) >= len(content):
            self.send(416, headers={"Content-Range": f"bytes */{len(content)}"})
        else:
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send_until(failure, 206, content[start:], headers)

    def _send_until(self, failure: str, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer; of ``cut:N`` the first N bytes, and break the connection."""
        if not failure:
            self.send(status, body, headers)
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: int(failure.removeprefix("cut:"))])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
