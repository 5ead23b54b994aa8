"""The notification at the end of a run, to a server and to a command."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from autotune.config.notification import masked
from autotune.errors import ConfigError
from autotune.loggers import notification
from autotune.loggers.notification import Notification, NotificationError
from tests.support.commands.serving import serving
from tests.support.study.events import ended, first_run, second_run
from tests.support.study.small import small_config

SECRET = "T0KEN"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[list[Any], str]]:
    with serving(_Handler) as (server, url):
        server.received = []  # type: ignore[attr-defined]
        yield server.received, url  # type: ignore[attr-defined]


def notify(target: str, events: Any) -> None:
    notification = Notification(target)
    for event in events:
        notification(event)


def test_a_url_gets_the_result(
    server: tuple[list[Any], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received, url = server
    caplog.set_level(logging.DEBUG)
    notify(f"{url}/204/{SECRET}", first_run(tmp_path))
    ((path, values),) = received
    assert path == f"/204/{SECRET}" and SECRET not in caplog.text
    assert values["event"] == "study_ended" and values["state"] == "interrupted"
    assert values["best"] == {"trial": 2, "value": 0.8, "plan": "last 2 layers"}
    assert values["trials"] == {"complete": 1, "pruned": 1, "infeasible": 1, "failed": 0}
    assert values["text"] == (
        "digits interrupted: best accuracy 0.8 (trial 2), baseline accuracy 0.7 (trial 0); "
        "3 finished trials"
    )


def test_a_run_without_trials_is_told_only_if_it_failed(
    server: tuple[list[Any], str], tmp_path: Path
) -> None:
    received, url = server
    begin = first_run(tmp_path)[0]
    for state in ("finished", "unfinished", "interrupted", "failed"):
        notify(f"{url}/200/", [begin, ended(state)])
    assert [values["state"] for _, values in received] == ["failed"]


@pytest.mark.parametrize("status", [301, 404, 500])
def test_what_a_server_refuses_is_an_error_without_the_secret(
    status: int, server: tuple[list[Any], str], tmp_path: Path
) -> None:
    _, url = server
    with pytest.raises(NotificationError) as caught:
        notify(f"{url}/{status}/{SECRET}", second_run(tmp_path))
    assert str(caught.value).startswith(f"{url}/*** answers {status} ")


@pytest.mark.parametrize(
    "target",
    [
        f"http://me:{SECRET}@127.0.0.1:9/{SECRET}",
        f"https://{SECRET}@[::1]:9/?key={SECRET}",
        f"http://host.invalid/{SECRET}",
        f"http://127.0.0.1:99999999/{SECRET}",
        f"http://[::1/{SECRET}",
        f"exit 3 # {SECRET}",
        f"{SECRET}=1 false",
    ],
)
def test_no_message_has_a_secret(target: str, tmp_path: Path) -> None:
    with pytest.raises(NotificationError) as caught:
        notify(target, second_run(tmp_path))
    assert SECRET not in str(caught.value) and "***" in str(caught.value)
    assert caught.value.__cause__ is None or SECRET not in repr(caught.value.__cause__)


def test_a_command_gets_its_variables(tmp_path: Path) -> None:
    code = "import json, os; json.dump(dict(os.environ), open('seen.json', 'w'))"
    path = shlex.quote(str(tmp_path))
    notify(f"cd {path} && {sys.executable} -c {shlex.quote(code)}", second_run(tmp_path))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["AUTOTUNE_STUDY"] == "digits" and seen["AUTOTUNE_STATE"] == "finished"
    assert (seen["AUTOTUNE_BEST_TRIAL"], seen["AUTOTUNE_BEST_VALUE"]) == ("2", "0.8")
    assert json.loads(seen["AUTOTUNE_JSON"])["baseline"]["value"] == 0.7


def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification, "COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(NotificationError, match=r"the command sleep .* was killed"):
        notify("sleep 60 | sleep 60", second_run(tmp_path))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("https://me:pass@host:8080/T/B?x=1", "https://host:8080/***"),
        ("curl -H 'Authorization: x' host", "the command curl ***"),
        ("beep", "the command beep"),
        ("KEY=secret beep", "the command ***"),
    ],
)
def test_what_is_shown_of_a_target(target: str, text: str) -> None:
    assert masked(target) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "an empty text"),
        (7, "a int"),
        (f"ftp://host/{SECRET}", "a URL of ftp://"),
        (f"https:///{SECRET}", "a URL without a usable host"),
        (f"http://host:99999999/{SECRET}", "usable host and port"),
        (f"https://host/a {SECRET}", "with a blank"),
    ],
)
def test_a_study_file_with_another_target(value: object, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        small_config(tmp_path, notify=value)
    assert text in str(caught.value) and SECRET not in str(caught.value)


def test_a_target_is_no_part_of_a_study(tmp_path: Path) -> None:
    config = small_config(tmp_path, notify=f"https://host/{SECRET}", loggers="tensorboard")
    assert config.loggers == ["tensorboard"]
    assert config.identity() == small_config(tmp_path).identity()
