"""Who may use the dashboard: pages of this machine, or visitors of Caddy who know the password.

optuna-dashboard asks nobody for anything. On the loopback address a browser is the danger: a page
of another site can send requests there, and with a name that it lets point to 127.0.0.1 (DNS
rebinding) it can read the answers. Such requests have a ``Host`` or an ``Origin`` of elsewhere.
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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The header in which Caddy shows its token, and the one in which it names the visitor.
TOKEN_HEADER = "X-Autotune-Token"
CLIENT_HEADER = "X-Autotune-Client"
#: What Caddy asks before it lets a request through.
PASSWORD_PATH = "/-/password"
#: What every answer says to a browser: guess no types, show it in no frame, tell no other site.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
#: The same of frames, for browsers of now. It is added to the policy that optuna-dashboard sends
#: with its page, which says whose scripts may run: a browser keeps to every policy.
POLICY = ("Content-Security-Policy", "frame-ancestors 'none'")
#: Files of trials, which others may have put there: a page among them runs no script.
_SANDBOX = ("Content-Security-Policy", "sandbox")
_FILES = "/artifacts/"
#: Methods that change nothing.
_READING = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#@\s]+)")


def local_only(app: WSGIApplication) -> WSGIApplication:
    """Let an application answer pages of its own address alone, which is one of this machine.

    The port may be any: SSH forwards another one.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if problem := cross_site_problem(environ):
            return _answer(start_response, "403 Forbidden", problem)
        return app(environ, start_response)

    return guarded


def cross_site_problem(environ: WSGIEnvironment) -> str:
    """Say why a request may come from a page of another site; empty where it does not.

    Programs without a page, such as curl, send neither ``Origin`` nor ``Sec-Fetch-Site``.
    """
    host = str(environ.get("HTTP_HOST", "")).lower()
    if not is_loopback_host(host):
        return (
            "the dashboard answers as localhost, 127.0.0.1 or [::1] alone, but was called "
            f"{host!r}; a server in front of it must send the header Host: 127.0.0.1"
        )
    origin = environ.get("HTTP_ORIGIN")
    referer = environ.get("HTTP_REFERER")
    if origin is None and referer and environ["REQUEST_METHOD"] not in _READING:
        # A browser of before 2020 sends no Origin with a form, and no Sec-Fetch-Site.
        origin = "/".join(str(referer).split("/")[:3])
    if origin is not None and not _same_address(str(origin).lower(), host):
        return f"the dashboard answers its own pages alone, but was asked by {origin!r}"
    site = str(environ.get("HTTP_SEC_FETCH_SITE", "none")).lower()
    if site not in ("same-origin", "none"):
        followed = environ.get("HTTP_SEC_FETCH_MODE", "").lower() == "navigate"
        if not (followed and environ["REQUEST_METHOD"] in _READING):  # a link is no harm
            return f"the dashboard answers its own pages alone, but the request is {site}"
    return ""


def is_loopback_host(host: str) -> bool:
    """Tell whether a ``Host`` names the loopback address of this machine, at any port."""
    found = _HOST.fullmatch(host)
    if found is None or int(found["port"] or 0) > 65535:
        return False
    name = found["name"].removesuffix(".")
    if name == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return False


def _same_address(origin: str, host: str) -> bool:
    """Compare an ``Origin`` with a ``Host``; one without a port means that of its scheme."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    standard = {"http": ":80", "https": ":443"}[found["scheme"]]
    return found["host"].removesuffix(standard) == host.removesuffix(standard)


class Passwords:
    """Checks a password; whoever gives wrong ones has to wait, longer every time.

    The first wrong ones are free, because people mistype. While somebody has to wait, no password
    is looked at, the right one neither.

    Args:
        user: Name to give.
        password: The password.
        clock: Seconds that only grow.
    """

    #: Wrong passwords without a wait, and the longest wait.
    FREE = 3
    LONGEST_S = 900.0
    #: After so long without a wrong password an address starts anew.
    FORGET_S = 3600.0
    #: So many addresses are remembered, the latest ones.
    ADDRESSES = 4096

    def __init__(
        self, user: str, password: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wanted = f"{user}:{password}".encode(errors="surrogateescape")
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, _Wrong] = OrderedDict()

    def check(self, client: str, authorization: str | None) -> float | None:
        """Check what a visitor sends.

        Args:
            client: Address of the visitor.
            authorization: The header ``Authorization``, ``None`` where there is none.

        Returns:
            ``None`` where it is right; else the seconds to wait before the next try.
        """
        key, now = _network(client), self._clock()
        with self._lock:
            known = self._wrong.get(key, _Wrong(0, now))
            if now < known.until:
                return known.until - now
            if authorization is None:  # a browser asks before it has a password
                return 0.0
            if secrets.compare_digest(_given(authorization), self._wanted):
                self._wrong.pop(key, None)
                return None
            count = 1 if now > known.until + self.FORGET_S else known.count + 1
            wait_s = 0.0
            if count > self.FREE:
                wait_s = min(2.0 ** min(count - self.FREE, 30), self.LONGEST_S)
            self._wrong[key] = _Wrong(count, now + wait_s)
            self._wrong.move_to_end(key)
            while len(self._wrong) > self.ADDRESSES:
                self._wrong.popitem(last=False)
            return wait_s


@dataclass(frozen=True)
class _Wrong:
    """The wrong passwords of one address.

    Args:
        count: How many.
        until: When the next one is looked at.
    """

    count: int
    until: float


def _network(client: str) -> str:
    """Return whose tries count together: of IPv6 a network of 64 bits, which one machine has."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _given(authorization: str) -> bytes:
    """Return user and password of Basic authentication; empty where it is something else."""
    kind, _, encoded = authorization.partition(" ")
    with suppress(binascii.Error, ValueError):
        if kind.lower() == "basic":
            return base64.b64decode(encoded.strip(), validate=True)
    return b""


def caddy_only(app: WSGIApplication, token: str, passwords: Passwords) -> WSGIApplication:
    """Let an application answer Caddy alone, and tell Caddy who knows the password.

    Every user of this machine reaches the loopback address; the token is Caddy's alone.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        shown = environ.get(_variable(TOKEN_HEADER), "").encode("latin-1")
        if not secrets.compare_digest(shown, token.encode("latin-1")):
            return _answer(
                start_response, "403 Forbidden", "this port is for the server in front alone"
            )
        if environ["PATH_INFO"] != PASSWORD_PATH:
            return app(environ, start_response)
        client = environ.get(_variable(CLIENT_HEADER), "")
        wait_s = passwords.check(client, environ.get("HTTP_AUTHORIZATION"))
        if wait_s is None:
            return _answer(start_response, "204 No Content")
        if wait_s > 0:
            return _answer(
                start_response,
                "429 Too Many Requests",
                "too many wrong passwords from your address; try again later",
                ("Retry-After", str(int(wait_s) + 1)),
            )
        asked = ("WWW-Authenticate", 'Basic realm="restricted", charset="UTF-8"')
        return _answer(start_response, "401 Unauthorized", "", asked)

    return guarded


def add_security_headers(app: WSGIApplication) -> WSGIApplication:
    """Put :data:`HEADERS` and :data:`POLICY` into all answers of an application."""

    def answering(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *failed: Any) -> Any:
            names = {name.lower() for name in HEADERS}
            kept = [one for one in headers if one[0].lower() not in names]
            kept += [*HEADERS.items(), POLICY]
            if environ.get("PATH_INFO", "").startswith(_FILES):
                kept.append(_SANDBOX)
            return start_response(status, kept, *failed)

        return app(environ, start)

    return answering


def _variable(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _answer(
    start_response: StartResponse, status: str, text: str = "", *headers: tuple[str, str]
) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [f"{text}\n".encode()] if text else [b""]
