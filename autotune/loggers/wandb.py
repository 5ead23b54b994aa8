"""Trials as runs of Weights & Biases, in a group for each study."""

from __future__ import annotations

import os
from typing import Any

from autotune.errors import UserError
from autotune.events import EpochEnded, Event, StudyEnded, StudyStarted, TrialEnded, TrialStarted
from autotune.loggers.packages import describe, import_extra

PROJECT = "autotune"
#: Modes of WANDB_MODE that need no account.
_WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")


class WandB:
    """Logs each trial as a run; the runs of a study are a group.

    Every attempt at a trial continues the run of the first one. The variables of W&B count, such
    as ``WANDB_MODE=offline`` and ``WANDB_ENTITY``. Nothing of the machine, its command lines and
    the code is recorded: a command line may hold a password.

    Args:
        project: Name of the project; default: ``WANDB_PROJECT``, else ``autotune``.

    Raises:
        UserError: When the package is missing, or nobody has logged in.
    """

    def __init__(self, project: str | None = None) -> None:
        self._wandb = import_extra("wandb", "wandb")
        self._project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._study: StudyStarted | None = None
        self._trials: dict[int, TrialStarted] = {}
        self._runs: dict[int, Any] = {}
        self._wandb.setup(self._wandb.Settings(silent=True, console="off"))
        if os.environ.get("WANDB_MODE") not in _WITHOUT_ACCOUNT:
            self._check_key()

    def _check_key(self) -> None:
        """Refuse to start without a key: wandb would ask for one, or fail in each trial."""
        problem = "has no API key"
        try:
            if self._wandb.login(prompt=False, verify=False):
                return
        except Exception as error:  # a key that cannot be one
            problem = f"has no usable API key ({describe(error)})"
        raise UserError(
            f"loggers: wandb {problem}: log in with 'wandb login', or set WANDB_API_KEY; "
            "WANDB_MODE=offline needs none"
        )

    def __call__(self, event: Event) -> None:
        """Log one event."""
        match event:
            case StudyStarted():
                self._study = event
            case TrialStarted():
                self._trials[event.first] = event
                self._run(event.first)
            case EpochEnded():
                assert self._study is not None
                metrics = event.metrics(self._study.objective)
                self._run(event.first).log(metrics, step=event.epoch)
            case TrialEnded():
                self._end(event)
            case StudyEnded():
                for first in list(self._runs):
                    self._runs.pop(first).finish()

    def _run(self, first: int) -> Any:
        """Return the run of a trial, which an earlier attempt or process may have begun."""
        if first not in self._runs:
            assert self._study is not None, "the first event is that of the study"
            config: dict[str, Any] = {"trial": first, "study": self._study.study}
            if trial := self._trials.get(first):
                config |= {**trial.params, "plan": trial.plan, "backbone": trial.backbone}
            self._runs[first] = self._wandb.init(
                project=self._project,
                group=self._study.study[:128],
                name=f"trial {first}",
                id=f"{self._study.uuid}-{first}",
                resume="allow",
                config=config,
                reinit="create_new",
                settings=self._wandb.Settings(
                    silent=True,
                    console="off",
                    save_code=False,
                    disable_git=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                ),
            )
        return self._runs[first]

    def _end(self, event: TrialEnded) -> None:
        run = self._run(event.first)
        run.summary.update({"state": event.state, "reason": event.reason})
        if event.value is not None:
            run.summary["value"] = event.value
        del self._runs[event.first]
        run.finish(exit_code=0 if event.state in ("complete", "pruned", "infeasible") else 1)
