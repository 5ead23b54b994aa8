"""When memory does not suffice, when a neighbor has it, and when there is no such GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autotune.config.schema import StudyConfig
from autotune.errors import AutotuneError
from autotune.models.backbone import build_backbone
from autotune.models.layers import list_layers
from autotune.study.devices import find_device
from autotune.study.engine.local_workers import local_backend
from autotune.study.engine.pool import WorkerPool
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.oom import MIB
from gpu_steps.context import Context
from gpu_steps.material import configure
from studies import open_study, run_trials

#: Shares of what a plan needs: what its process may have, and what a neighbor leaves.
ALLOWED, LEFT = 0.7, 0.3
#: Looks at the free memory after which a simulated neighbor leaves.
_LOOKS = 4
#: A GPU that no machine here has.
MISSING = "63"
_HOLD = """
import sys, time, torch
held = torch.zeros(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def provoke(context: Context) -> None:
    """Train with all the memory, with too little, and beside a neighbor that leaves."""
    device = find_device()
    plain = open_study(_config(context, "plain"))
    run_trials(plain, print, threads=0)
    peak = max(float(trial.user_attrs[attrs.PEAK_MEMORY_MB]) for trial in plain.study.trials)
    _tell(context, "plain", plain, peak_mib=peak)

    little = open_study(_config(context, "little"))
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(ALLOWED * peak * MIB / total, device)
    try:
        run_trials(little, print, threads=0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    _tell(context, "little", little, allowed_mib=ALLOWED * peak)

    crowded = open_study(_config(context, "crowded"))
    torch.cuda.empty_cache()
    start = time.monotonic()
    with _neighbor(context, int(LEFT * peak * MIB)):
        run_trials(crowded, print, threads=0)
    _tell(context, "crowded", crowded, seconds=round(time.monotonic() - start, 1))


def _config(context: Context, name: str) -> StudyConfig:
    """Make a study whose plans tune all layers: they need the most memory."""
    sizes = context.sizes
    depth = len(list_layers(build_backbone(sizes.backbone, sizes.memory_px, "meta")))
    return configure(
        context,
        name,
        space__trainable_layers=depth,
        space__head__hidden_layers=0,
        cache__features="off",
        training__precision="off",
        training__epochs=1,
        training__batch_size=sizes.memory_batch,
        data__image_size=sizes.memory_px,
        training__num_views=1,
        search__trials=2,
    )


@contextmanager
def _neighbor(context: Context, left: int) -> Iterator[None]:
    """Let another process hold all memory but a part, and leave after a while."""
    free = torch.cuda.mem_get_info()[0]
    if context.gpu is not None:
        context.gpu.memory.crowd(free - left, calls=_LOOKS)
        yield
        return
    arguments = [str(free - left), str(context.sizes.neighbor_s)]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, *arguments], stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout is not None
        if popen.stdout.readline() != "held\n":
            raise RuntimeError("the neighbor did not get the memory that it is to hold")
        try:
            yield
        finally:
            popen.kill()


def _tell(context: Context, case: str, opened: OpenStudy, **values: Any) -> None:
    """Write down how the trials of a study ended."""
    batch = context.sizes.memory_batch
    trials = opened.study.get_trials(deepcopy=False)
    context.add(
        "memory",
        case=case,
        states=[trial.state.name for trial in trials],
        parts=[trial.user_attrs.get(attrs.MICRO_BATCH, batch) for trial in trials],
        batch=batch,
        reasons=[one.user_attrs[attrs.REASON] for one in trials if attrs.REASON in one.user_attrs],
        held_mib=round(torch.cuda.memory_allocated() / MIB, 1),
        **values,
    )


def name_missing(context: Context) -> None:
    """Give a worker a GPU that is not there: it refuses, and trains nothing on the CPU."""
    opened = open_study(configure(context, "missing", search__trials=1))
    said = ""
    try:
        with local_backend((MISSING,), 1) as backend:
            WorkerPool(opened, backend, print).run()
    except AutotuneError as error:
        said = f"{type(error).__name__}: {error}"
    trained = [
        trial.user_attrs.get(attrs.DEVICE)
        for trial in opened.study.get_trials(deepcopy=False)
        if attrs.DEVICE in trial.user_attrs
    ]
    context.add("missing", gpu=MISSING, said=said, trained_on=trained)
