"""What the check runs on, and the tests that need a GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from autotune.runtime import available_cpus
from autotune.study.devices import find_device
from autotune.study.state.oom import device_bytes
from autotune.training.compute.amp import half_precision_for
from gpu_steps.context import Context

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchvision", "timm", "optuna", "numpy")
#: What pytest needs for them beside itself.
PLUGINS = ("pytest", "pytest_timeout")
SMI_FIELDS = "name,driver_version,memory.total,memory.used,compute_mode,mig.mode.current"


def describe(context: Context) -> None:
    """Write down the machine, its GPU and the versions."""
    device = find_device()
    free, total = torch.cuda.mem_get_info(device)
    context.add(
        "machine",
        gpu=torch.cuda.get_device_name(device),
        capability=".".join(map(str, torch.cuda.get_device_capability(device))),
        total_bytes=total,
        free_bytes=free,
        allowed_bytes=device_bytes(device),
        half=half_precision_for(device),
        cuda=torch.version.cuda,
        cores=available_cpus(),
        processors=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
    )
    if shutil.which("nvidia-smi") and not context.dry:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv"],
            capture_output=True,
            text=True,
            check=False,
        )
        context.add("nvidia-smi", said=(said.stdout or said.stderr).strip())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


class Recorder:
    """A plugin of pytest that writes every outcome down at once.

    Args:
        context: Where it goes.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.found = 0

    def pytest_collection_finish(self, session: Any) -> None:
        """Take down how many tests there are."""
        self.found = len(session.items)

    def pytest_collectreport(self, report: Any) -> None:
        """Write down why a file of tests cannot be read."""
        if report.failed:
            self._add(report, 0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the outcome of a test down."""
        if report.when == "call" or report.outcome != "passed":
            self._add(report, report.duration)

    def _add(self, report: Any, seconds: float) -> None:
        self.context.add(
            "test",
            name=report.nodeid,
            outcome=report.outcome,
            seconds=round(seconds, 2),
            said=report.longreprtext[-1500:] if report.failed else "",
        )


def run_tests(context: Context) -> None:
    """Run the tests that need a GPU; a dry run finds them, and runs none."""
    missing = [name for name in PLUGINS if find_spec(name) is None]
    if missing:
        context.add("skipped", reason=f"not installed: {', '.join(missing)}")
        return
    import pytest

    recorder = Recorder(context)
    options = ["-m", "gpu", "-q", "--continue-on-collection-errors"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    if context.dry:
        options += ["--collect-only"]
    os.chdir(ROOT)
    code = pytest.main([*options, *_test_files()], plugins=[recorder])
    context.add("tests", found=recorder.found, code=int(code), ran=not context.dry)


def _test_files() -> list[str]:
    """List the files with tests that need a GPU; what is quick first, for time may run out."""
    found = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    found.sort(key=lambda path: path.parent.name == "study")
    return [str(path.relative_to(ROOT)) for path in found]
