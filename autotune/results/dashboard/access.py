"""Who may use the dashboard: pages of this machine, or visitors of Caddy who know the password.

optuna-dashboard has no authentication. On the loopback address the danger is the browser: a page
of another site can send requests there, and with a name that it lets point to 127.0.0.1 (DNS
rebinding) it can read the responses. Such requests have a foreign ``Host`` or ``Origin``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Headers with which Caddy shows its token and names the visitor.
TOKEN_HEADER = "X-Autotune-Token"
CLIENT_HEADER = "X-Autotune-Client"
#: The path that Caddy asks before it lets a request through.
PASSWORD_PATH = "/-/password"
#: Security headers of every response: no type sniffing, no frames, no referrer.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
#: No frames, for current browsers. It is added to the policy of optuna-dashboard, which says whose
#: scripts may run: a browser follows every policy.
POLICY = ("Content-Security-Policy", "frame-ancestors 'none'")
#: Policy of the files of trials: others may have stored a page there, and it must run no script.
_SANDBOX = ("Content-Security-Policy", "sandbox")
_FILES = "/artifacts/"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#@\s]+)")


def local_only(app: WSGIApplication) -> WSGIApplication:
    """Let an application answer only pages of its own address, which is one of this machine.

    Any port is allowed: SSH forwards another one.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if problem := cross_site_problem(environ):
            return _respond(start_response, "403 Forbidden", problem)
        return app(environ, start_response)

    return guarded


def cross_site_problem(environ: WSGIEnvironment) -> str:
    """Say why a request may come from a page of another site; empty where it does not.

    Programs without a page, such as curl, send neither ``Origin`` nor ``Sec-Fetch-Site``.
    """
    host = str(environ.get("HTTP_HOST", "")).lower()
    is_safe = environ["REQUEST_METHOD"] in _SAFE_METHODS
    if not is_loopback_host(host):
        return (
            "the dashboard answers only as localhost, 127.0.0.1 or [::1], but was called "
            f"{host!r}; a server in front of it must send the header Host: 127.0.0.1"
        )
    origin = environ.get("HTTP_ORIGIN")
    referer = environ.get("HTTP_REFERER")
    if origin is None and referer and not is_safe:
        # A browser of before 2020 sends no Origin with a form, and no Sec-Fetch-Site.
        origin = "/".join(str(referer).split("/")[:3])
    if origin is not None and not _is_same_address(str(origin).lower(), host):
        return f"the dashboard answers only its own pages, but was asked by {origin!r}"
    site = str(environ.get("HTTP_SEC_FETCH_SITE", "none")).lower()
    is_link = is_safe and environ.get("HTTP_SEC_FETCH_MODE", "").lower() == "navigate"
    if site not in ("same-origin", "none") and not is_link:  # following a link is harmless
        return f"the dashboard answers only its own pages, but the request is {site}"
    return ""


def is_loopback_host(host: str) -> bool:
    """Tell whether a ``Host`` names the loopback address of this machine, at any port."""
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > 65535:
        return False
    name = match["name"].removesuffix(".")
    with suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return name == "localhost"


def _is_same_address(origin: str, host: str) -> bool:
    """Compare an ``Origin`` with a ``Host``; without a port it is that of the scheme."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    port = {"http": ":80", "https": ":443"}[match["scheme"]]
    return match["host"].removesuffix(port) == host.removesuffix(port)


class Passwords:
    """Checks passwords; an address that sends wrong ones has to wait, longer every time.

    The first wrong ones are free, because people mistype. During the wait no password is checked,
    not even the right one.
    """

    #: Wrong passwords without a wait, and the longest wait.
    FREE = 3
    LONGEST_S = 900.0
    #: Time without a wrong password after which an address starts again.
    FORGET_S = 3600.0
    #: Most addresses that are remembered, the latest ones.
    ADDRESSES = 4096

    def __init__(
        self, user: str, password: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected = f"{user}:{password}".encode(errors="surrogateescape")
        self._clock = clock
        self._lock = threading.Lock()
        #: Address -> wrong passwords, and when the next one is checked.
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, client: str, authorization: str | None) -> float | None:
        """Check the password of a visitor.

        Returns:
            ``None`` for the right password; else the seconds to wait before the next try.
        """
        address, now = _client_network(client), self._clock()
        with self._lock:
            count, until = self._wrong.get(address, (0, now))
            if now < until:
                return until - now
            if authorization is None:  # a browser asks before it has a password
                return 0.0
            if secrets.compare_digest(_credentials(authorization), self._expected):
                self._wrong.pop(address, None)
                return None
            count = 1 if now > until + self.FORGET_S else count + 1
            wait_s = 0.0
            if count > self.FREE:
                wait_s = min(2.0 ** min(count - self.FREE, 30), self.LONGEST_S)
            self._wrong[address] = (count, now + wait_s)
            self._wrong.move_to_end(address)
            while len(self._wrong) > self.ADDRESSES:
                self._wrong.popitem(last=False)
            return wait_s


def _client_network(client: str) -> str:
    """Return the key of an address: of IPv6 its /64 network, which one machine may have."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _credentials(authorization: str) -> bytes:
    """Return user and password of Basic authentication; empty for anything else."""
    kind, _, encoded = authorization.partition(" ")
    with suppress(binascii.Error, ValueError):
        if kind.lower() == "basic":
            return base64.b64decode(encoded.strip(), validate=True)
    return b""


def caddy_only(app: WSGIApplication, token: str, passwords: Passwords) -> WSGIApplication:
    """Let an application answer only Caddy, and check passwords for it.

    Every user of this machine reaches the loopback address; only Caddy has the token.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent = environ.get(_variable(TOKEN_HEADER), "").encode("latin-1")
        if not secrets.compare_digest(sent, token.encode("latin-1")):
            return _respond(
                start_response, "403 Forbidden", "this port is only for the server in front"
            )
        if environ["PATH_INFO"] != PASSWORD_PATH:
            return app(environ, start_response)
        client = environ.get(_variable(CLIENT_HEADER), "")
        wait_s = passwords.check(client, environ.get("HTTP_AUTHORIZATION"))
        if wait_s is None:
            return _respond(start_response, "204 No Content")
        if wait_s > 0:
            return _respond(
                start_response,
                "429 Too Many Requests",
                "too many wrong passwords from your address; try again later",
                ("Retry-After", str(int(wait_s) + 1)),
            )
        challenge = ("WWW-Authenticate", 'Basic realm="restricted", charset="UTF-8"')
        return _respond(start_response, "401 Unauthorized", "", challenge)

    return guarded


def add_security_headers(app: WSGIApplication) -> WSGIApplication:
    """Put :data:`HEADERS` and :data:`POLICY` into all responses of an application."""
    names = {name.lower() for name in HEADERS}

    def secured(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            others = [header for header in headers if header[0].lower() not in names]
            is_file = environ.get("PATH_INFO", "").startswith(_FILES)
            added = [*HEADERS.items(), POLICY, *([_SANDBOX] if is_file else [])]
            return start_response(status, others + added, *error)

        return app(environ, start)

    return secured


def _variable(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _respond(
    start_response: StartResponse, status: str, text: str = "", *headers: tuple[str, str]
) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [f"{text}\n".encode()] if text else [b""]
