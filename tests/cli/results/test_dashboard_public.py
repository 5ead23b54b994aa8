"""The dashboard for others: Caddy in front, a real one, on all addresses of this machine."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import signal
import socket
import ssl
import stat
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from optuna_dashboard import wsgi

from autotune.cli.results.dashboard import _print_endpoint
from autotune.results.dashboard.public import VARIABLE, PublicEndpoint, check_host
from autotune.study.setup.opening import open_existing
from tests.support.commands.inside import call, contents
from tests.support.commands.runs import start, wait_for
from tests.support.commands.serving import free_port, other_addresses
from tests.support.pages.browser import open_page, until
from tests.support.study.rows import everything

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: What a browser asks for is what may be asked for; a new one has to be checked first.
GETS = {
    "/",
    "/api/meta",
    "/api/studies",
    "/api/studies/<study_id:int>",
    "/api/studies/<study_id:int>/param_importances",
    "/api/studies/<study_id:int>/plot/<plot_type>",
    "/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    "/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    "/csv/<study_id:int>",
    "/dashboard<:re:(/.*)?>",
    "/favicon.ico",
    "/incompatible-rdb-schema",
    "/static/<filename:path>",
}


@dataclass(frozen=True)
class Answer:
    """What a server has answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Public:
    """A running dashboard for others, in its own folder."""

    process: subprocess.Popen[str]
    port: int
    work: Path

    @property
    def said(self) -> str:
        return (self.work / "out.txt").read_text()

    @property
    def password(self) -> str:
        return (self.work / "storage/dashboard/password").read_text().strip()

    @property
    def study_id(self) -> int:
        found = re.search(r"/dashboard/studies/(\d+)", self.said)
        assert found is not None
        return int(found[1])

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def caddy(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        assert found.name() == "caddy"
        return found

    def ask(
        self,
        path: str,
        method: str = "GET",
        password: str | None = None,
        host: str = "127.0.0.1",
        **headers: str,
    ) -> Answer:
        connection = http.client.HTTPSConnection(
            host, self.port, timeout=60, context=ssl._create_unverified_context()
        )
        if password is not None:
            shown = base64.b64encode(f"autotune:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {shown}"
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, body)


def serve(finished: Path, name: str) -> Public:
    work = finished / name
    work.mkdir()
    port = free_port()
    storage = f"sqlite:///{finished}/storage/autotune.db"
    arguments = ("dashboard", "tiny", "--storage", storage, "--public", "--port", str(port))
    public = Public(start(*arguments, cwd=work), port, work)
    try:
        wait_for(lambda: "fingerprint" in public.said or public.process.poll() is not None)
        assert public.process.poll() is None, public.said
    except BaseException:
        public.process.kill()
        raise
    return public


@pytest.fixture(scope="module")
def public(finished: Path) -> Iterator[Public]:
    """A dashboard for others; at the end SIGTERM has to stop all of it in silence."""
    public = serve(finished, "public")
    try:
        yield public
        caddy = public.caddy()
        public.process.terminate()
        assert public.process.wait(timeout=30) == 130
        assert not caddy.is_running()
        assert len(public.said.splitlines()) == 4
    finally:
        public.process.kill()
        public.process.wait()


@pytest.mark.slow
def test_it_asks_for_a_password_and_writes_nothing(public: Public) -> None:
    for password in (None, "", "wrong", public.password[:-1]):
        refused = public.ask("/api/studies", password=password)
        assert (refused.status, refused.body) == (401, b"")
        assert refused.headers["www-authenticate"].startswith("Basic ")
    answer = public.ask("/api/studies", password=public.password)
    assert [one["study_name"] for one in answer.json()["study_summaries"]] == ["tiny"]
    path = f"/api/studies/{public.study_id}"
    for method in ("DELETE", "POST", "PUT", "PATCH", "OPTIONS", "TRACE", "get"):
        assert public.ask(path, method).status == 401
        refused = public.ask(path, method, password=public.password)
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
        assert b"read-only" in refused.body
        override = {"X-HTTP-Method-Override": method, "X-HTTP-Method": method}
        assert public.ask(path, password=public.password, **override).json()["name"] == "tiny"


@pytest.mark.slow
def test_others_reach_it_by_any_address(public: Public) -> None:
    for address in other_addresses():
        assert public.ask("/", host=address).status == 401
        assert public.ask("/dashboard", password=public.password, host=address).status == 200


@pytest.mark.slow
def test_allowed_requests_change_nothing(public: Public, finished: Path) -> None:
    url = f"sqlite:///{finished}/storage/autotune.db"
    handle = open_existing("tiny", url)
    app = wsgi(handle.storage, artifact_store=handle.artifacts)
    assert {one.rule for one in app.routes if one.method == "GET"} == GETS
    before, files = everything(url, "tiny"), contents(handle.files.root)
    study = f"/api/studies/{public.study_id}"
    plain = public.ask(study, password=public.password)
    trial = plain.json()["trials"][0]
    picture = trial["artifacts"][0]["artifact_id"]
    paths = {
        *("/", f"/report/{public.study_id}", "/dashboard", "/favicon.ico", "/api/meta"),
        *("/api/studies", study),
        *(f"{study}/param_importances", f"/csv/{public.study_id}", "/incompatible-rdb-schema"),
        *(f"{study}/plot/{one}" for one in ("slice", "edf", "timeline", "none")),
        f"/artifacts/{public.study_id}/{trial['trial_id']}/{picture}",
        f"/artifacts/{public.study_id}/{picture}",
    }
    found = {path: public.ask(path, password=public.password).status for path in paths}
    assert found.pop("/incompatible-rdb-schema") == 302  # the tables are compatible
    assert set(found.values()) == {200, 404}
    assert public.ask("/dashboard", "HEAD", password=public.password).status == 200
    packed = public.ask(study, password=public.password, **{"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 5
    assert (everything(url, "tiny"), contents(handle.files.root)) == (before, files)


@pytest.mark.slow
def test_the_dashboard_answers_only_caddy(public: Public) -> None:
    (listening,) = [
        one.laddr for one in psutil.Process(public.process.pid).net_connections() if not one.raddr
    ]
    assert listening.ip == "127.0.0.1"
    for method in ("GET", "DELETE"):
        connection = http.client.HTTPConnection(*listening, timeout=30)
        connection.request(method, f"/api/studies/{public.study_id}")
        assert connection.getresponse().status == 403
        connection.close()


def test_a_fingerprint_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    _print_endpoint(PublicEndpoint("https://gpu1:8080", "autotune", "in a file", "AB:CD:EF"))
    assert capsys.readouterr().out.splitlines()[-1] == "AB:CD:EF"


@pytest.mark.slow
def test_https_with_its_certificate(public: Public) -> None:
    found = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", public.port)))
    assert hashlib.sha256(found).digest().hex(":").upper() in public.said
    root = public.work / "storage/dashboard/caddy/pki/authorities/local/root.crt"
    trusting = ssl.create_default_context(cafile=str(root))
    name = check_host(socket.gethostname())
    with (
        socket.create_connection(("127.0.0.1", public.port), timeout=30) as raw,
        trusting.wrap_socket(raw, server_hostname=name) as secured,
    ):
        assert secured.version() == "TLSv1.3"
    connection = http.client.HTTPConnection("127.0.0.1", public.port, timeout=30)
    connection.request("GET", "/dashboard")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (308, f"{public.url}/dashboard")
    connection.close()


@pytest.mark.slow
def test_password_and_keys_are_private(public: Public) -> None:
    folder = public.work / "storage/dashboard"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert "storage/dashboard/password" in public.said and public.password not in public.said
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(b"--public" in line for line in lines)
    assert not any(public.password.encode() in line or b"$2a$" in line for line in lines)
    variables = public.caddy().environ()
    assert set(variables) == {"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"}
    assert set(variables.values()) == {str(folder)}
    assert {path.name for path in public.work.iterdir()} == {"out.txt", "storage"}
    assert {path.name for path in (public.work / "storage").iterdir()} == {"dashboard"}
    assert {path.name for path in folder.iterdir()} == {"caddy", "password"}
    own = [one.laddr.port for one in public.caddy().net_connections() if one.status == "LISTEN"]
    assert set(own) == {public.port}  # no admin endpoint, no port 80


@pytest.mark.slow
def test_the_study_in_a_browser(public: Public, browser: Browser) -> None:
    known = {"http_credentials": {"username": "autotune", "password": public.password}}
    url = f"{public.url}/dashboard/studies/{public.study_id}/trials?numbers=0"
    page, said, asked = open_page(
        browser, url, viewport={"width": 1300, "height": 1400}, ignore_https_errors=True, **known
    )
    page.get_by_role("heading", name="Trial 0", exact=False).first.wait_for()
    until(
        page,
        "[...document.images].some(one => one.src.includes('/artifacts/') && one.naturalWidth)",
    )
    for part, wanted in (("", "Hyperparameter Importance"), ("/trials", "Trial 2")):
        page.goto(f"{public.url}/dashboard/studies/{public.study_id}{part}")
        page.get_by_role("heading", name=wanted).or_(page.get_by_text(wanted)).first.wait_for()
    assert [one for one in asked if not one.startswith((public.url, "data:", "blob:"))] == []
    assert [one for one in said if "error" in one.lower()] == []
    remove = (
        f"fetch('/api/studies/{public.study_id}', {{method: 'DELETE'}}).then(one => one.status)"
    )
    assert page.evaluate(remove) == 405
    page.close()


@pytest.mark.slow
def test_a_killed_dashboard_leaves_no_caddy(finished: Path) -> None:
    public = serve(finished, "killed")
    caddy = public.caddy()
    public.process.kill()
    public.process.wait()
    caddy.wait(timeout=10)


@pytest.mark.slow
def test_a_caddy_that_dies_ends_the_command(finished: Path) -> None:
    public = serve(finished, "widowed")
    public.caddy().send_signal(signal.SIGKILL)
    assert public.process.wait(timeout=30) == 1
    said = public.said.splitlines()[4:]
    assert len(said) == 1 and re.fullmatch(
        r"error: \S+/caddy has ended with exit code -9", said[0]
    )


def refused(finished: Path, work: Path, *arguments: str, **extra: str) -> str:
    storage = f"sqlite:///{finished}/storage/autotune.db"
    ended = call("dashboard", "tiny", "--storage", storage, *arguments, cwd=work, **extra)
    assert (ended.code, ended.out, ended.err.count("error: ")) == (2, "", 1)
    assert "Traceback" not in ended.err
    return " ".join(ended.err.split())


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_taken_port(finished: Path, tmp_path: Path, address: str) -> None:
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(finished, tmp_path, "--public", "--port", str(port))
    assert f"port {port} cannot be used (Address already in use); choose another" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host", ["https://gpu1", "gpu1:8080", "a b", "", "gpu..1", "*", "x" * 64, "{env.HOME}"]
)
def test_what_is_no_host(finished: Path, tmp_path: Path, host: str) -> None:
    said = refused(finished, tmp_path, "--public", "--host", host)
    assert "--host must be a name or an address of this machine, such as gpu1" in said
    assert list(tmp_path.iterdir()) == []


def test_hosts() -> None:
    assert check_host("GPU1.Example.org") == "gpu1.example.org"
    assert check_host("my_host") == "my_host"
    assert check_host("FD00:0::2") == "fd00::2"


def test_a_host_without_others(finished: Path, tmp_path: Path) -> None:
    said = refused(finished, tmp_path, "--host", "gpu1")
    assert "--host is for --public; without it the dashboard is on 127.0.0.1 alone" in said


@pytest.mark.parametrize(
    "password", ["", "elevenchars", "x" * 73, "é" * 37, "with\na new line", "\udcff" * 12]
)
def test_what_is_no_password(finished: Path, tmp_path: Path, password: str) -> None:
    said = refused(
        finished, tmp_path, "--public", "--port", str(free_port()), **{VARIABLE: password}
    )
    assert f"the password of {VARIABLE} must have at least 12 printable characters" in said
    assert not password or password not in said
    assert list(tmp_path.iterdir()) == []


def test_a_password_that_others_can_read(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "storage/dashboard/password"
    file.parent.mkdir(parents=True)
    file.write_text("a password of others\n")
    file.chmod(0o640)
    said = refused(finished, tmp_path, "--public", "--port", str(free_port()))
    assert "must be for its owner alone, but its mode is 640" in said
    assert "a password of others" not in said


def test_without_caddy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(empty))
    said = refused(finished, tmp_path, "--public", PATH=str(empty))
    assert "needs Caddy: pip install 'autotune[public]', or a caddy on the PATH" in said
    old = empty / "caddy"
    old.write_text("#!/bin/sh\necho 'loading config: unknown field' >&2; exit 1\n")
    old.chmod(0o755)
    storage = f"sqlite:///{finished}/storage/autotune.db"
    arguments = ("dashboard", "tiny", "--storage", storage, "--public", "--port")
    ended = call(*arguments, str(free_port()), cwd=tmp_path, PATH=str(empty))
    assert ended.code == 1
    assert "has ended with exit code 1:\n  loading config: unknown field" in ended.err
    assert "(autotune needs Caddy 2.11 or newer)" in ended.err


HARDENED = {
    "strict-transport-security": "max-age=86400",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


@pytest.mark.slow
def test_every_answer_is_hardened(public: Public) -> None:
    for path, method in (("/dashboard", "GET"), ("/none", "GET"), ("/", "PUT")):
        for password in (public.password, None):
            headers = public.ask(path, method, password=password).headers
            assert {name: headers.get(name) for name in HARDENED} == HARDENED


@pytest.mark.slow
def test_wrong_passwords_cost_ever_more_time(finished: Path) -> None:
    """In its own dashboard: who has to wait is the address of all tests."""
    public = serve(finished, "guessed")
    try:
        forged = {"X-Autotune-Client": "192.0.2.1", "X-Forwarded-For": "192.0.2.2"}
        found = [public.ask("/", password="wrong", **forged) for _ in range(5)]
        assert [one.status for one in found] == [401, 401, 401, 429, 429]
        assert 1 <= int(found[-1].headers["retry-after"]) <= 3
        known = public.ask("/", password=public.password)  # no password is looked at meanwhile
        assert known.status == 429
        wait_for(lambda: public.ask("/dashboard", password=public.password).status == 200, 20)
        assert [public.ask("/", password="wrong").status for _ in range(3)] == [401] * 3
    finally:
        public.process.terminate()
        public.process.wait(timeout=30)
        public.process.kill()
