"""The notification at the end of a study: a POST request, or a shell command."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
from typing import Any

from autotune.config.notification import is_url, masked
from autotune.errors import AutotuneError
from autotune.events import Event, StudyEnded, StudyStarted, TrialStarted
from autotune.loggers.packages import describe

#: Time limits of a request and of a command.
REQUEST_TIMEOUT_S, COMMAND_TIMEOUT_S = 15.0, 40.0


class NotificationError(AutotuneError):
    """A notification was refused, or its command failed."""


class Notification:
    """Tells a program that a run of a study has ended.

    Args:
        target: A URL, which gets a JSON object by POST; or a shell command, which gets the same
            values as environment variables.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._study: StudyStarted | None = None
        self._has_trained = False

    def __call__(self, event: Event) -> None:
        """Notify at the end of a run that has started a trial, or failed.

        Raises:
            NotificationError: When the notification failed; the message has no secret.
        """
        match event:
            case StudyStarted():
                self._study = event
            case TrialStarted():
                self._has_trained = True
            case StudyEnded() if self._has_trained or event.state == "failed":
                send = post if is_url(self._target) else run_command
                send(self._target, describe_end(event, self._study))


def describe_end(event: StudyEnded, study: StudyStarted | None) -> dict[str, Any]:
    """Return the JSON object of a notification."""
    objective = study.objective if study else "value"
    results = {"best": event.best, "baseline": event.baseline}
    parts = [
        f"{name} {objective} {result.value:.4g} (trial {result.trial})"
        for name, result in results.items()
        if result is not None
    ]
    return {
        "event": "study_ended",
        "study": event.study,
        "state": event.state,
        "reason": event.reason,
        "text": f"{event.study} {event.state}: {', '.join(parts) or 'no result'}; {event.reason}",
        "objective": objective,
        **{name: result and dict(vars(result)) for name, result in results.items()},
        "trials": dict(event.trials),
        "host": socket.gethostname(),
    }


def variables(values: dict[str, Any]) -> dict[str, str]:
    """Return the environment variables of a command, empty where there is no value."""
    best, baseline = values["best"] or {}, values["baseline"] or {}
    found = {name: values[name] for name in ("study", "state", "reason", "text", "objective")}
    found |= {"best_trial": best.get("trial"), "best_value": best.get("value")}
    found |= {"baseline_value": baseline.get("value"), "json": json.dumps(values)}
    return {
        f"AUTOTUNE_{name.upper()}": "" if value is None else str(value).replace("\0", "")
        for name, value in found.items()
    }


def post(url: str, values: dict[str, Any]) -> None:
    """Send the values of a notification to a URL.

    Raises:
        NotificationError: When it cannot be reached, or answers with an error or a redirect.
    """
    import httpx2

    # Its log has the whole URL.
    requests = logging.getLogger("httpx2")
    requests.addFilter(_drop)
    try:
        answer = httpx2.post(url, json=values, timeout=REQUEST_TIMEOUT_S)
    except httpx2.InvalidURL:
        raise NotificationError(f"{masked(url)} is no valid URL") from None
    except httpx2.HTTPError as error:
        raise NotificationError(f"{masked(url)}: {describe(error)}") from None
    finally:
        requests.removeFilter(_drop)
    if not answer.is_success:
        raise NotificationError(
            f"{masked(url)} answers {answer.status_code} {answer.reason_phrase}".rstrip()
        )


def _drop(_record: logging.LogRecord) -> bool:
    return False


def run_command(command: str, values: dict[str, Any]) -> None:
    """Run a shell command with the values of a notification in its environment.

    Raises:
        NotificationError: When it fails, or takes too long; it is killed then.
    """
    # What it prints may hold a secret, and would disturb the display.
    process = subprocess.Popen(
        command,
        shell=True,
        env=os.environ | variables(values),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait(COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise NotificationError(
            f"{masked(command)} took more than {COMMAND_TIMEOUT_S:.0f} s and was killed"
        ) from None
    if code:
        raise NotificationError(f"{masked(command)} failed (exit code {code})")
