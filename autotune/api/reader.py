"""Read a study: its best trial, tables and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.display.console import check_writable
from autotune.errors import (
    AutotuneError,
    StudyError,
)
from autotune.plan import TrialPlan
from autotune.storage.url import redact

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from optuna.trial import FrozenTrial

    from autotune.results.study_results import StudyResults
    from autotune.study.setup.opening import OpenStudy


@dataclass(frozen=True)
class TrialSummary:
    """A complete trial.

    Args:
        value: The metric after its last epoch.
        words: Description of the plan.
        params: The searched parameters that have an effect in this plan, by name.
        cost: The second objective, if the study has two.
    """

    number: int
    value: float
    plan: TrialPlan = field(repr=False)
    words: str
    params: Mapping[str, Any]
    cost: float | None = None


class StudyReader:
    """A study that can be read."""

    def __init__(self, name: str, storage: str, files: str | None) -> None:
        self._name = name
        self._url = storage
        self._files = files
        self._handle: OpenStudy | None = None

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._name

    @property
    def storage(self) -> str:
        """URL of the study's storage, without a password."""
        return redact(self._url)

    @property
    def best(self) -> TrialSummary | None:
        """The best complete trial within the limits; ``None`` if there is none yet.

        Example:
            >>> study.best.value >= study.baseline.value
            True
            >>> study.best.words
            '...trainable..., adamw lr ...'
        """
        return self._summary(lambda results: results.best)

    @property
    def baseline(self) -> TrialSummary | None:
        """The baseline, the unchanged backbone with a linear head; ``None`` until it is complete.

        Example:
            >>> study.baseline.plan.depth
            0
        """
        return self._summary(lambda results: results.baseline)

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as an Optuna study.

        Example:
            >>> study.optuna_study.trials[0].state.name
            'COMPLETE'
        """
        return self._open_handle().study

    def trials_dataframe(self) -> pd.DataFrame:
        """Return the trials as a table with a row for each.

        The columns are those of :mod:`autotune.results.report.dataframe`: typed, times in UTC,
        parameters as ``param.<name>``, metrics as ``metric.<name>``, costs as ``cost.<name>``.

        Example:
            >>> frame = study.trials_dataframe()
            >>> frame.loc[0, ["state", "role"]].tolist()
            ['complete', 'baseline']
            >>> bool(frame["value"].max() == study.best.value)
            True
        """
        from autotune.results.report.dataframe import trials_frame

        return trials_frame(self._results())

    def epochs_dataframe(self) -> pd.DataFrame:
        """Return the epochs of all trials as a table with a row for each.

        The columns are those of :mod:`autotune.results.report.epoch_table`: the objective,
        training and validation loss, learning rate and seconds.

        Example:
            >>> frame = study.epochs_dataframe()
            >>> first = frame[frame["number"] == 0]
            >>> first["epoch"].tolist(), bool(first["training_loss"].notna().all())
            ([1, 2, 3], True)
        """
        from autotune.results.report.epoch_table import epochs_frame

        return epochs_frame(self._results())

    def report(self, path: str | Path | None = None, format: str | None = None) -> Path:
        """Write the report, by default one self-contained HTML page, and return its path.

        Args:
            path: The file; default: beside the study.
            format: ``html``, ``md``, ``json``, ``csv``, ``parquet``, ``epochs`` (CSV with a row
                an epoch) or ``yaml`` (the study file); default: the ending of the file, else
                ``html``.

        Raises:
            UserError: When the file cannot be written, or format and ending differ.

        Example:
            >>> study.report().name
            'digits.html'
            >>> study.report("digits.md")
            PosixPath('digits.md')
        """
        from autotune.results.report.formats import resolve_format, write_report

        format = resolve_format(path, format)
        if path is not None:
            check_writable(path)
        return write_report(self._open_handle(), None if path is None else Path(path), format)

    def __repr__(self) -> str:
        return f"<Study {self._name}: {self._describe()}>"

    def _repr_html_(self) -> str:
        """Return the headline and the key figures for a notebook."""
        title = f"<p>Study <b>{escape(self._name)}</b>: "
        try:
            handle = self._find_handle()
        except AutotuneError:
            handle = None
        if handle is None:
            return f"{title}{escape(self._describe())}</p>"
        from autotune.results.diagnosis import answer, headline

        results = self._results()
        figures = headline.key_figures(results)
        rows = [(name, f"{number} ({parts})") for name, number, parts in figures]
        if confirmation := headline.describe_confirmation(results):
            rows.append(("confirmed", confirmation))
        if tested := headline.describe_refit(results):
            rows.append(("test split", tested))
        cells = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{escape(text)}</td></tr>'
            for name, text in rows
        )
        return f"{title}{escape(answer.describe_answer(results))}</p><table>{cells}</table>"

    def _describe(self) -> str:
        """Describe the progress of the study, also if its storage cannot be read."""
        try:
            if self._find_handle() is None:
                return "not run yet"
            results = self._results()
        except AutotuneError as error:
            return f"cannot be read: {error}"
        progress, best, baseline = results.progress, results.best, results.baseline
        texts = [f"{results.finished} trials finished"]
        if progress.running:
            texts.append(f"{progress.running} running")
        if best is not None:
            texts.append(f"best {results.format_values(best)} (trial {best.number})")
        if baseline is not None:
            texts.append(f"baseline {results.format_values(baseline)}")
        if results.no_result is not None:
            texts.append(results.no_result.reason)
        return ", ".join(texts)

    def _summary(
        self, select: Callable[[StudyResults], FrozenTrial | None]
    ) -> TrialSummary | None:
        from autotune.study.state import attrs

        if self._find_handle() is None:
            return None
        results = self._results()
        trial = select(results)
        plan = None if trial is None else attrs.trial_plan(trial)
        if trial is None or plan is None:
            return None
        words, params = results.describe_plan(trial), results.active_params(trial)
        value, *costs = trial.values
        return TrialSummary(trial.number, value, plan, words, params, *costs)

    def _find_handle(self) -> OpenStudy | None:
        """Open the study; return ``None`` if it does not exist yet."""
        if self._handle is None:
            from autotune.study.setup.opening import find_existing

            self._handle = find_existing(self._name, self._url, self._files)
        return self._handle

    def _open_handle(self) -> OpenStudy:
        handle = self._find_handle()
        if handle is None:
            raise StudyError(f"the study {self._name!r} has not been run yet; run() makes it")
        return handle

    def _results(self) -> StudyResults:
        from autotune.results.study_results import StudyResults

        return StudyResults.from_study(self._open_handle().study)
