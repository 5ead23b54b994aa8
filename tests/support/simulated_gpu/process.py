"""The simulated device in processes that a test starts, and in those that they start.

A ``sitecustomize`` module on the path of the processes installs it when they load torch, for as
long as they live. Each has its own device: what others hold has to be simulated too.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.simulated_gpu.simulation import simulated_gpu

ROOT = Path(__file__).parents[3]
_OPTIONS = "SIMULATED_GPU"
_FAULTS = "SIMULATED_GPU_FAULTS"

#: The device is installed once torch is loaded: a process that never loads it pays nothing.
_SITE = """
import importlib.abc
import importlib.machinery
import sys


class AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_install(module):
            load(module)
            from tests.support.simulated_gpu.process import install_for_good

            install_for_good()

        spec.loader.exec_module = load_and_install
        return spec


sys.meta_path.insert(0, AfterTorch())
"""


def simulated_environment(folder: Path, **options: Any) -> dict[str, str]:
    """Return the environment in which processes have a simulated device."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    return {
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        _OPTIONS: json.dumps(options),
        _FAULTS: str(folder / "faults.txt"),
    }


def faults_of(folder: Path) -> str:
    path = folder / "faults.txt"
    return path.read_text() if path.exists() else ""


class _Faults(list[str]):
    """Faults of a process, which are written to a file too."""

    def append(self, fault: str) -> None:
        with Path(os.environ[_FAULTS]).open("a") as file:
            file.write(f"{fault}\n")
        super().append(fault)


_installed = ExitStack()


def install_for_good() -> None:
    """Install the device that the environment describes, until this process ends."""
    options = json.loads(os.environ[_OPTIONS])
    gpu = _installed.enter_context(simulated_gpu(**options))
    gpu.faults = _Faults()
