"""The dashboard: optuna-dashboard on a study of ours, for this machine alone."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from tests.support.commands.runs import start, wait_for
from tests.support.commands.serving import free_port, other_addresses
from tests.support.pages.browser import open_page, until
from tests.support.study.databases import connections_closed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: The pictures of a complete trial, and how such files begin.
PICTURES = {
    "learning_curve.png": b"\x89PNG",
    "confusion_matrix.png": b"\x89PNG",
    "worst_images.jpg": b"\xff\xd8",
}


@dataclass(frozen=True)
class Served:
    """A running dashboard."""

    url: str
    port: int
    study_id: int

    def get(self, path: str) -> tuple[str, bytes]:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read()


@pytest.fixture(scope="module")
def served(finished: Path) -> Iterator[Served]:
    """A dashboard on the study ``tiny``; at the end Ctrl-C has to stop it in silence."""
    port = free_port()
    work = finished / "served"
    work.mkdir()
    storage = f"sqlite:///{finished}/storage/autotune.db"
    process = start("dashboard", "tiny", "--storage", storage, "--port", str(port), cwd=work)
    output = work / "out.txt"
    try:
        wait_for(lambda: "http://" in output.read_text() or process.poll() is not None)
        found = re.search(r"(http://127\.0\.0\.1:\d+)/dashboard/studies/(\d+)", output.read_text())
        assert found is not None, output.read_text()
        yield Served(found[1], port, int(found[2]))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        said = output.read_text()
        assert "Traceback" not in said and len(said.splitlines()) <= 2
        assert [path.name for path in work.iterdir()] == ["out.txt"]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_pages_and_the_studies_are_served(served: Served) -> None:
    kind, page = served.get("/dashboard")
    assert kind.startswith("text/html") and b"<title>Optuna Dashboard</title>" in page
    kind, answer = served.get("/api/studies")
    assert kind.startswith("application/json")
    assert [one["study_name"] for one in json.loads(answer)["study_summaries"]] == ["tiny"]


def test_the_pictures_of_a_trial_are_served(served: Served, finished: Path) -> None:
    _, answer = served.get(f"/api/studies/{served.study_id}?after=0")
    trial = json.loads(answer)["trials"][0]
    pictures = {one["filename"]: one["artifact_id"] for one in trial["artifacts"]}
    assert set(PICTURES) <= set(pictures)
    store = finished / "storage/autotune.files/artifacts"
    for name, magic in PICTURES.items():
        path = f"/artifacts/{served.study_id}/{trial['trial_id']}/{pictures[name]}"
        _, content = served.get(path)
        assert content.startswith(magic)
        assert content == (store / pictures[name]).read_bytes()


def test_no_other_machine_can_reach_it(served: Served) -> None:
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    # Columns: number, local address, remote address, state; 0A is LISTEN.
    fields = [line.split() for line in listening]
    local = [one[1] for one in fields if one[3] == "0A" and int(one[1][-4:], 16) == served.port]
    assert local == [f"0100007F:{served.port:04X}"]
    for address in other_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, served.port), timeout=10)


@dataclass(frozen=True)
class Shown:
    """A page in a browser, with what it said and what it asked for."""

    page: Page
    said: list[str]
    asked: list[str]

    def look(self, url: str, *conditions: str) -> str:
        """Go to another page of the dashboard, wait for it, and return its text."""
        self.page.goto(url)
        for condition in conditions:
            until(self.page, condition)
        return str(self.page.evaluate("document.body.innerText"))


@pytest.fixture(scope="module")
def shown(served: Served, browser: Browser) -> Iterator[Shown]:
    """A page of the dashboard; at the end it has asked nobody else, and has met no error."""
    page, said, asked = open_page(
        browser, f"{served.url}/dashboard", viewport={"width": 1300, "height": 1400}
    )
    yield Shown(page, said, asked)
    # Everything comes from this server: a machine without internet has a dashboard as well.
    assert [one for one in asked if not one.startswith((served.url, "data:", "blob:"))] == []
    assert [one for one in said if "error" in one.lower()] == []
    page.close()


@pytest.mark.slow
def test_the_first_page_follows_the_storage(
    served: Served, shown: Shown, finished: Path, tmp_path: Path
) -> None:
    text = shown.look(f"{served.url}/", "document.querySelector('.studies .answer')")
    assert "1 study" in text and "tiny" in text and "3 of 3" in text and "ended" in text
    name, url = "a <b>late</b> one", f"sqlite:///{finished}/storage/autotune.db"
    with connections_closed():
        optuna.create_study(study_name=name, storage=open_storage(url))
        shown.page.evaluate("refresh()")
        until(shown.page, f"document.body.innerText.includes('{name}')")
        optuna.delete_study(study_name=name, storage=open_storage(url))
    shown.page.evaluate("refresh()")
    until(shown.page, "document.querySelectorAll('.studies tbody tr').length == 1")
    shown.page.set_viewport_size({"width": 390, "height": 900})
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 390
    shown.page.screenshot(path=tmp_path / "first.png")
    shown.page.set_viewport_size({"width": 1300, "height": 1400})
    shown.page.get_by_text("report", exact=True).click()
    until(shown.page, "document.querySelector('.plot .main-svg')")


@pytest.mark.slow
def test_the_charts_of_a_study_are_drawn(served: Served, shown: Shown, tmp_path: Path) -> None:
    text = shown.look(
        f"{served.url}/dashboard/studies/{served.study_id}",
        "document.querySelectorAll('#plot-history .scatterlayer path.point').length >= 3",
        "document.querySelectorAll('#graph-intermediate-values .scatterlayer path').length >= 3",
    )
    assert "accuracy" in text
    # What is shown of the study is short: its definition is in the note.
    assert "Study User Attributes" in text and '{"' not in text
    shown.page.screenshot(path=tmp_path / "study.png")


def test_the_note_of_a_study_is_shown(served: Served, shown: Shown, tmp_path: Path) -> None:
    text = shown.look(
        f"{served.url}/dashboard/studies/{served.study_id}/note",
        "document.body.innerText.includes('To run it again')",
    )
    for expected in (
        "trials: 3 of 3 finished",
        "50 train",
        "dataset: digits",
        "autotune refit tiny",
    ):
        assert expected in text, text
    assert shown.page.locator("table").count() == 2
    shown.page.screenshot(path=tmp_path / "note.png")


@pytest.mark.slow
def test_a_trial_has_its_note_and_its_pictures(
    served: Served, shown: Shown, tmp_path: Path
) -> None:
    pictures = "[...document.images].filter(one => one.src.includes('/artifacts/'))"
    text = shown.look(
        f"{served.url}/dashboard/studies/{served.study_id}/trials?numbers=0",
        f"{pictures}.length == 3 && {pictures}.every(one => one.naturalWidth > 0)",
    )
    assert "the baseline, " in text and "backbone frozen, linear head" in text
    assert re.search(r"□ layers 1-5 +frozen .*\n■ head +trainable", text), text
    for name in PICTURES:
        assert name in text
    # Long lines would make the page wider than the window.
    width = shown.page.evaluate("document.querySelector('main').getBoundingClientRect().right")
    assert width <= 1300
    shown.page.screenshot(path=tmp_path / "trial.png")


def test_opening_for_the_dashboard_adds_nothing(served: Served, finished: Path) -> None:
    opened = open_existing("tiny", f"sqlite:///{finished}/storage/autotune.db")
    assert len(opened.study.get_trials(deepcopy=False)) == 4
