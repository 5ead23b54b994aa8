"""The page of a study's report as a browser reads it, and what its figures draw."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.results.report.html import render_html
from autotune.results.study_results import StudyResults
from tests.support.pages.browser import open_page, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


VOID = {"meta", "link", "br", "img", "input", "hr"}


class Parsed(HTMLParser):
    """What a browser would make of a page: texts by tag, tags, attributes, rows of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def of(self, tag: str) -> list[str]:
        return [text for parent, text in self.texts if parent == tag]

    def having(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and wanted.items() <= attributes.items()
        ]


def html_of(study: Study, storage_url: str = "") -> str:
    return render_html(StudyResults.from_study(study), storage_url)


def page_of(study: Study, storage_url: str = "") -> Parsed:
    return Parsed(html_of(study, storage_url))


def report_page(
    browser: Browser, study: Study, folder: Path, **context: Any
) -> tuple[Page, list[str], list[str]]:
    """Open the report of a study in a browser and wait for its figures; see :func:`open_page`."""
    path = folder / "report.html"
    path.write_text(html_of(study), encoding="utf-8")
    page, messages, requests = open_page(browser, path.as_uri(), **context)
    until(page, "[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg'))")
    return page, messages, requests


def some(figure: go.Figure | None) -> go.Figure:
    assert figure is not None
    return figure


def traces(figure: go.Figure | None) -> dict[str, Any]:
    return {trace.name: trace for trace in some(figure).data}


def add(
    study: Study, params: dict[str, Any], found: dict[str, BaseDistribution], value: float
) -> FrozenTrial:
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, value=value, params=params, distributions=found)
    )
    return study.trials[-1]
