"""Plot a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autotune.api.reader import StudyReader
from autotune.errors import StudyError, did_you_mean, join_sentences

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from autotune.results.study_results import StudyResults


class StudyPlots(StudyReader):
    """A study that can be plotted."""

    def plot_history(self) -> go.Figure:
        """Plot the value of every trial, the best so far and the baseline.

        Raises:
            StudyError: When there is nothing to plot yet; all plots raise it.

        Example:
            >>> [trace.name for trace in study.plot_history().data][-2:]
            ['best so far', 'baseline']
        """
        from autotune.results.figures.history import history_figure

        return self._plot(history_figure, "no trial is complete yet")

    def plot_curves(self) -> go.Figure:
        """Plot the objective of every trial after each epoch.

        Example:
            >>> study.plot_curves().layout.xaxis.title.text
            'epoch'
        """
        from autotune.results.figures.history import curves_figure

        return self._plot(curves_figure, "no trial has finished an epoch yet")

    def plot_losses(self, trial: int | None = None) -> go.Figure:
        """Plot the training and the validation loss of a trial after each epoch.

        Args:
            trial: Number of the trial; default: the best one.

        Raises:
            StudyError: When there is no such trial, or its losses were not recorded.

        Example:
            >>> [trace.name for trace in study.plot_losses().data]
            ['training', 'validation', 'lowest']
        """
        from autotune.results.figures.losses import losses_figure

        trials = self._results().trials
        if trial is not None and not 0 <= trial < len(trials):
            text = f"trial: the study {self._name!r} has the trials 0 to {len(trials) - 1}"
            raise StudyError(f"{text}, but got {trial}")

        def draw(results: StudyResults) -> go.Figure | None:
            chosen = results.best if trial is None else results.trials[trial]
            return None if chosen is None else losses_figure(chosen)

        which = "the best trial" if trial is None else f"trial {trial}"
        return self._plot(draw, f"the losses of {which} are not known")

    def plot_timeline(self) -> go.Figure:
        """Plot the trials of each worker over time.

        Example:
            >>> study.plot_timeline().layout.xaxis.type
            'date'
        """
        from autotune.results.figures.history import timeline_figure

        return self._plot(timeline_figure, "no trial has ended yet")

    def plot_importances(self) -> go.Figure:
        """Plot how much each parameter matters; with few trials this is mostly noise.

        Example:
            >>> study.plot_importances().layout.xaxis.title.text
            'importance'
        """
        from autotune.results.figures.parameters import importances, importances_figure

        why = "importances need complete trials that differ in their values and in a parameter"
        return self._plot(lambda results: importances_figure(importances(results)), why)

    def plot_slice(self, name: str) -> go.Figure:
        """Plot the values of the complete trials over one parameter.

        Raises:
            StudyError: When there is no such parameter, or nothing to plot yet.

        Example:
            >>> study.plot_slice("training.lr").layout.xaxis.type
            'log'
        """
        from autotune.results.figures.parameters import slice_figure

        names = self._results().parameter_names
        if name not in names:
            searched = ", ".join(names) or "nothing yet"
            text = f"the study {self._name!r} searches {searched}, but got {name!r}"
            raise StudyError(join_sentences(text, did_you_mean(name, names)))
        return self._plot(
            lambda results: slice_figure(results, name),
            f"fewer than two complete trials in which {name} has an effect",
        )

    def plot_front(self) -> go.Figure:
        """Plot the metric of the complete trials over their cost, and the Pareto front.

        Example:
            >>> study.plot_front()
            Traceback (most recent call last):
            autotune.errors.StudyError: the study 'digits' has one objective, and no front; ...
        """
        from autotune.results.figures.pareto import front_figure

        if self._results().cost is None:
            raise StudyError(
                f"the study {self._name!r} has one objective, and no front; a study file with "
                "'objectives: [accuracy, latency_ms]' has two"
            )
        return self._plot(front_figure, "no trial is complete yet")

    def _plot(self, draw: Callable[[StudyResults], go.Figure | None], why: str) -> go.Figure:
        figure = draw(self._results())
        if figure is None:
            raise StudyError(f"the study {self._name!r} cannot be plotted: {why}")
        return figure
