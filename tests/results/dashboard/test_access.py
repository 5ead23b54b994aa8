"""Who may use the dashboard: its own pages, and visitors who know the password."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator

import pytest

from autotune.results.dashboard.access import Passwords, is_loopback_host
from autotune.results.dashboard.server import Shown, make_dashboard_server
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a plain dashboard."""
    folder = tmp_path_factory.mktemp("guard")
    url = f"sqlite:///{folder}/study.db"
    with connections_closed():
        study = make_study("made", trials=3, storage=open_storage(url, create=True))
        study.set_user_attr(attrs.FILES, str(folder / "files"))
        with make_dashboard_server(Shown.study(open_existing("made", url)), 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()


def ask(port: int, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value.replace("{}", str(port)))
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


#: Requests of a page of the dashboard, and of programs, of which {} is the port.
OWN: list[dict[str, str]] = [
    {"Host": "127.0.0.1:{}"},
    {"Host": "localhost:{}", "Origin": "http://localhost:{}", "Sec-Fetch-Site": "same-origin"},
    {"Host": "LocalHost:9999", "Origin": "http://localhost:9999"},  # forwarded by SSH
    {"Host": "localhost.:9999"},
    {"Host": "localhost", "Origin": "http://localhost"},
    {"Host": "localhost:80", "Origin": "http://localhost"},
    {"Host": "[::1]:8080", "Origin": "http://[::1]:8080"},
    {"Host": "127.0.0.2:{}"},
    {"Host": "127.0.0.1:{}", "Sec-Fetch-Site": "none"},
]
FOREIGN: list[dict[str, str]] = [
    {},
    {"Host": ""},
    {"Host": "evil.example:{}"},
    {"Host": "127.0.0.1.evil.example:{}"},
    {"Host": "localhost.evil.example"},
    {"Host": "evil.localhost.example:{}"},
    {"Host": "localhost@evil.example"},
    {"Host": "evil.example#127.0.0.1"},
    {"Host": "192.168.1.5:{}"},
    {"Host": "0.0.0.0:{}"},
    {"Host": "[::ffff:1.2.3.4]:{}"},
    {"Host": "[fe80::1]"},
    {"Host": "127.0.0.1:99999"},
    {"Host": "2130706433"},
    {"Host": "127.0.0.1:{}", "Origin": "http://evil.example"},
    {"Host": "127.0.0.1:{}", "Origin": "null"},
    {"Host": "127.0.0.1:{}", "Origin": ""},
    {"Host": "127.0.0.1:{}", "Origin": "http://127.0.0.1:1"},  # another server of this machine
    {"Host": "127.0.0.1:{}", "Origin": "http://localhost:{}"},
    {"Host": "127.0.0.1:{}", "Origin": "file://"},
    {"Host": "127.0.0.1:{}", "Origin": "http://["},
    {"Host": "127.0.0.1:{}", "Origin": "http://[::1"},
    {"Host": "127.0.0.1:{}", "Origin": "http://127.0.0.1:{}?"},
    {"Host": "127.0.0.1:{}", "Origin": "http://127.0.0.1:{}@evil.example"},
    {"Host": "127.0.0.1:{}", "Sec-Fetch-Site": "cross-site"},
    {"Host": "127.0.0.1:{}", "Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", OWN)
def test_its_own_pages_are_answered(headers: dict[str, str], port: int) -> None:
    assert ask(port, "GET", "/api/studies", headers).status == 200
    changed = ask(port, "POST", "/api/nothing", headers)
    assert changed.status == 404  # so it came to the dashboard


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_elsewhere_are_refused(headers: dict[str, str], port: int) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        refused = ask(port, method, "/api/studies/1", headers)
        assert refused.status == 403
        assert refused.headers["X-Frame-Options"] == "DENY"


def test_a_link_may_be_followed_and_a_form_not_be_sent(port: int) -> None:
    followed = {"Host": "127.0.0.1", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(port, "GET", "/dashboard", followed).status == 200
    assert ask(port, "POST", "/api/studies", followed).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_form_of_an_old_browser(method: str, port: int) -> None:
    """It sends neither an Origin nor Sec-Fetch-Site, but says where it was."""
    host = {"Host": "127.0.0.1:{}"}
    for foreign in ("http://evil.example/form", "https://127.0.0.1/", "http://127.0.0.1:1/", "x"):
        assert ask(port, method, "/api/studies/1", {**host, "Referer": foreign}).status == 403
    own = {**host, "Referer": "http://127.0.0.1:{}/dashboard/studies/1"}
    assert ask(port, method, "/api/nothing", own).status == 404
    link = {**host, "Referer": "http://evil.example/"}
    assert ask(port, "GET", "/dashboard", link).status == 200


def test_the_page_keeps_its_own_policy(port: int) -> None:
    """optuna-dashboard says whose scripts may run; ours is beside it, in every answer."""
    page = ask(port, "GET", "/dashboard", {"Host": "localhost"})
    policies = page.headers.get_all("Content-Security-Policy")
    assert any("script-src 'self'" in one for one in policies), policies
    assert policies.count("frame-ancestors 'none'") == 1
    file = ask(port, "GET", "/artifacts/0/1/some-page", {"Host": "localhost"})
    assert "sandbox" in file.headers.get_all("Content-Security-Policy")
    refused = ask(port, "GET", "/dashboard", {"Host": "evil.example"})
    assert refused.headers.get_all("Content-Security-Policy") == ["frame-ancestors 'none'"]


def test_two_hosts_are_none(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", "/api/studies")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


def test_hosts() -> None:
    assert [is_loopback_host(one) for one in ("127.1", "[127.0.0.1", "[::1]")] == [0, 0, 1]


# Wrong passwords


def basic(password: str, user: str = "u") -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_the_wait_grows_and_ends() -> None:
    now = [0.0]
    passwords = Passwords("u", "right", lambda: now[0])
    waits = []
    for _ in range(16):
        wait_s = passwords.check("192.0.2.1", basic("wrong"))
        assert wait_s is not None
        waits.append(wait_s)
        now[0] += wait_s
    assert waits[:7] == [0, 0, 0, 2, 4, 8, 16] and waits[-1] == Passwords.LONGEST_S
    assert passwords.check("192.0.2.1", basic("right")) is None
    assert passwords.check("192.0.2.1", basic("wrong")) == 0


def test_no_password_is_looked_at_meanwhile() -> None:
    passwords = Passwords("u", "right", lambda: 0.0)
    for _ in range(4):
        passwords.check("192.0.2.1", basic("wrong"))
    assert passwords.check("192.0.2.1", basic("right")) == 2
    assert passwords.check("192.0.2.1", None) == 2
    assert passwords.check("192.0.2.2", basic("right")) is None  # somebody else
    assert passwords.check("192.0.2.3", None) == 0  # a browser's first request


@pytest.mark.parametrize(
    "wrong", ["", "Basic", "Basic !", "Bearer x", basic("right", "x"), basic("righ"), basic("é")]
)
def test_what_is_no_password(wrong: str) -> None:
    passwords = Passwords("u", "right", lambda: 0.0)
    assert [passwords.check("::1", wrong) for _ in range(4)] == [0, 0, 0, 2]


def test_a_network_of_ipv6_is_one_visitor() -> None:
    passwords = Passwords("u", "right", lambda: 0.0)
    found = [passwords.check(f"2001:db8::{one}", basic("wrong")) for one in range(4)]
    assert found == [0, 0, 0, 2]
    mapped = [passwords.check(one, basic("x")) for one in ("::ffff:1.2.3.4", "1.2.3.4") * 2]
    assert mapped == [0, 0, 0, 2]


def test_its_memory_is_bounded() -> None:
    passwords = Passwords("u", "right", lambda: 0.0)
    for one in range(2 * Passwords.ADDRESSES):
        passwords.check(f"10.{one // 65536}.{one // 256 % 256}.{one % 256}", basic("wrong"))
    assert len(passwords._wrong) == Passwords.ADDRESSES
