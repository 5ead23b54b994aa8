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

import pytest

from autotune.study.opening import open_existing
from tests.support.browser import open_page, until
from tests.support.network import free_port, other_addresses
from tests.support.runs import start, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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
    assert {"learning_curve.png", "confusion_matrix.png"} <= set(pictures)
    store = finished / "storage/autotune.files/artifacts"
    for name in ("learning_curve.png", "confusion_matrix.png"):
        path = f"/artifacts/{served.study_id}/{trial['trial_id']}/{pictures[name]}"
        _, content = served.get(path)
        assert content.startswith(b"\x89PNG")
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


def test_the_study_in_a_browser(
    served: Served, browser: Browser, finished: Path, tmp_path: Path
) -> None:
    url = f"{served.url}/dashboard/studies/{served.study_id}/trials?numbers=0"
    page, said, asked = open_page(browser, url, viewport={"width": 1300, "height": 1400})
    page.get_by_role("heading", name="Trial 0", exact=False).first.wait_for()
    until(
        page,
        "[...document.images].some(one => one.src.includes('/artifacts/') && one.naturalWidth)",
    )
    assert page.get_by_text("learning_curve.png").first.is_visible()
    page.screenshot(path=tmp_path / "dashboard.png")
    # Everything comes from this server: a machine without internet has a dashboard as well.
    assert [one for one in asked if not one.startswith((served.url, "data:", "blob:"))] == []
    assert [one for one in said if "error" in one.lower()] == []
    page.close()


def test_opening_for_the_dashboard_adds_nothing(served: Served, finished: Path) -> None:
    opened = open_existing("tiny", f"sqlite:///{finished}/storage/autotune.db")
    assert len(opened.study.get_trials(deepcopy=False)) == 3
