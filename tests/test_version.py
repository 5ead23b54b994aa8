"""The version and the commit that reports and models name."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from autotune import version


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    version.commit.cache_clear()
    yield
    version.commit.cache_clear()


def test_a_checkout_names_its_commit() -> None:
    root = Path(version.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert head.stdout[:12] == version.commit()[:12]
    assert re.fullmatch(r"([0-9a-f]{12}(-dirty)?)?", version.commit())


@pytest.mark.parametrize(
    ("recorded", "commit"),
    [
        (
            '{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}',
            "0123456789ab",
        ),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', ""),
        (None, ""),
        ("damaged", ""),
    ],
)
def test_a_package_names_what_pip_has_recorded(
    recorded: str | None, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return recorded

    monkeypatch.setattr(version, "__file__", str(tmp_path / "autotune" / "version.py"))
    monkeypatch.setattr(version, "distribution", lambda name: Installed())
    assert version.commit() == commit
    assert (f"commit {commit}" in version.describe_version()) == bool(commit)


def test_versions_of_what_is_not_installed_are_empty() -> None:
    assert version.installed_version("python") == platform.python_version()
    assert version.installed_version("no-such-package") == ""


def test_the_citation_is_of_this_version() -> None:
    root = Path(version.__file__).parents[1]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == version.__version__
    assert {"message", "title", "authors", "license"} <= citation.keys()
