"""One study by one worker, then by two that share the GPU: trials a minute."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from optuna.trial import TrialState

from autotune.study.engine.launcher import run_study
from autotune.study.state import attrs
from gpu_steps.context import Context
from gpu_steps.device import gpu_for_processes
from gpu_steps.material import configure

#: How often nvidia-smi is asked, in milliseconds.
_LOOK_MS = 500


@dataclass
class Usage:
    """What nvidia-smi says of the GPU from time to time.

    Args:
        busy: Percent of the time in which a kernel ran.
        used_mib: Memory in use.
    """

    busy: list[float] = field(default_factory=list)
    used_mib: list[float] = field(default_factory=list)

    def read(self, line: str) -> None:
        """Take in a line of nvidia-smi."""
        try:
            busy, used = (float(one) for one in line.split(","))
        except ValueError:  # "[N/A]" where a card does not tell
            return
        self.busy.append(busy)
        self.used_mib.append(used)


@contextmanager
def _watched() -> Iterator[Usage]:
    """Ask nvidia-smi meanwhile, where there is one."""
    usage = Usage()
    program = shutil.which("nvidia-smi")
    if program is None:
        yield usage
        return
    query = "--query-gpu=utilization.gpu,memory.used"
    command = [program, "--id=0", query, "--format=csv,noheader,nounits", f"-lms={_LOOK_MS}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None

        def follow(lines: Iterator[str]) -> None:
            for line in lines:
                usage.read(line)

        reader = threading.Thread(target=follow, args=(popen.stdout,), daemon=True)
        reader.start()
        try:
            yield usage
        finally:
            popen.terminate()
            reader.join()


def compare(context: Context) -> None:
    """Train the same plans with one worker and with two."""
    free = torch.cuda.mem_get_info()[0]
    for workers in (1, 2):
        _run(context, workers)
    context.add("memory", before_bytes=free, after_bytes=torch.cuda.mem_get_info()[0])


def _run(context: Context, workers: int) -> None:
    sizes = context.sizes
    config = configure(
        context,
        f"workers-{workers}",
        search__trials=sizes.study_trials,
        training__epochs=sizes.study_epochs,
        files=str(context.folder / f"files-{workers}"),
        storage=f"sqlite:///{context.folder}/study-{workers}.db",
    )
    with _watched() as usage, gpu_for_processes(context.folder, context.dry):
        result = run_study(config, gpus="0", workers_per_gpu=workers)
    trials = result.handle.study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    starts = [one.datetime_start for one in done if one.datetime_start is not None]
    ends = [one.datetime_complete for one in done if one.datetime_complete is not None]
    seconds = (max(ends) - min(starts)).total_seconds()
    context.add(
        "workers",
        workers=workers,
        trials=len(trials),
        complete=len(done),
        failed=result.progress.failed,
        seconds=round(seconds, 2),
        trials_per_min=round(60 * len(done) / seconds, 2),
        trial_s=round(statistics.mean(float(one.user_attrs[attrs.SECONDS]) for one in done), 2),
        devices=sorted({str(one.user_attrs[attrs.DEVICE]) for one in done}),
        busy_percent=round(statistics.mean(usage.busy), 1) if usage.busy else None,
        most_used_mib=max(usage.used_mib, default=None),
    )
