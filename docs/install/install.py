"""Installs autotune from a checkout into an environment of its own.

'make' runs this before anything is installed, so it uses the standard library alone. It says how
much is downloaded, shows the progress of pip, and may be interrupted: the next call continues.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Where PyTorch publishes its builds; PYTORCH_INDEX names a copy.
PYTORCH = "https://download.pytorch.org/whl"
#: Gigabytes to download and on disk, by build of torch; "" is that of PyPI, for CUDA. Measured on
#: Linux with Python 3.11 and the versions of constraints.txt, CPU: torch 2.13.0.
SIZES = {"": (3.2, 6.1), "cpu": (0.4, 1.6)}
#: Packages that belong to the CUDA build of PyPI and to no other.
OF_CUDA = ("nvidia-", "cuda-", "triton==")
#: What pip writes into its log when something fails, and what to tell the user.
PIP_FAILURES = {
    r"No space left on device|Errno 28|Disk quota exceeded": (
        "there is no space left. 'df -h' shows where: VENV=/large/disk/venv puts the environment "
        "elsewhere, TMPDIR=/large/disk what is unpacked, PIP_NO_CACHE_DIR=1 keeps no copies"
    ),
    r"certificate verify failed": (
        "the certificate of the package index is not trusted; behind a company's proxy "
        "PIP_CERT=/path/to/ca.pem names its own"
    ),
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Max retries": (
        "the package index cannot be reached. PIP_INDEX_URL=https://... names a mirror (and "
        "PYTORCH_INDEX one of PyTorch's builds), https_proxy a proxy; without internet see "
        "docs/install.md"
    ),
}


class InstallError(Exception):
    """A reason why nothing can be installed, for the user."""


def check_python() -> None:
    """Raise an InstallError when this Python cannot make environments (Debian's, at first)."""
    missing = [name for name in ("venv", "ensurepip") if find_spec(name) is None]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InstallError(
            f"{sys.executable} has no module {missing[0]}. On Debian and Ubuntu: "
            f"apt install python{version}-venv. Or name another Python: make PYTHON=python3.12"
        )


def installed_build(venv: Path) -> str | None:
    """Return the build of torch in an environment, "" for that of PyPI, None without torch."""
    for folder in venv.glob("lib/python3*/site-packages/torch-*.dist-info"):
        return folder.name.removesuffix(".dist-info").partition("+")[2]
    return None


def choose_build(venv: Path, given: str) -> str:
    """Return the build of torch to install: the given one, else that of the environment.

    Raises:
        InstallError: When there is no such build, or the environment has another one.
    """
    if not re.fullmatch(r"|cpu|cu\d+|rocm[\d.]+|xpu", given):
        raise InstallError(
            f"TORCH must be cpu, or one of PyTorch's other builds (cu126, rocm6.4, xpu), but got "
            f"{given!r}; without TORCH it is the build of PyPI, which has CUDA on Linux"
        )
    if given == "cpu" and platform.system() != "Linux":
        return ""  # what PyPI has for macOS is the build for the CPU
    there = installed_build(venv)
    if there is None:
        kept = venv / "constraints.txt"
        pinned = re.search(r"^torch==\S+\+(\S+)$", _text(kept), re.MULTILINE)
        return given or (pinned[1] if pinned else "")
    if given not in ("", there):
        raise InstallError(
            f"{venv} has {f'the build {there}' if there else 'the build of PyPI'} of torch; for "
            f"another one: make clean && make install TORCH={given}"
        )
    return there


def constraints(build: str, index: str) -> str:
    """Return the versions to install; torch and torchvision of one build, from one index."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if build:
        lines = [f"--extra-index-url {index.rstrip('/')}/{build}"] + [
            f"{line}+{build}" if line.startswith(("torch==", "torchvision==")) else line
            for line in lines
            if not line.startswith(OF_CUDA)
        ]
    return "\n".join(lines) + "\n"


def check_space(venv: Path, build: str) -> None:
    """Raise an InstallError when the packages do not fit on the disk, or into TMPDIR."""
    download, disk = SIZES.get(build, SIZES[""])
    place = next(parent for parent in venv.absolute().parents if parent.exists())
    temporary = Path(tempfile.gettempdir())
    same = place.stat().st_dev == temporary.stat().st_dev
    for folder, needed, change in (
        (place, disk + download * same, "VENV=/large/disk/venv"),
        (temporary, download, "TMPDIR=/large/disk"),
    ):
        free = shutil.disk_usage(folder).free / 1e9
        if free < needed:
            smaller = f", or TORCH=cpu ({SIZES['cpu'][1]} GB)" if build != "cpu" else ""
            raise InstallError(
                f"{folder} has {free:.1f} GB free, but {needed:.1f} GB are needed: "
                f"make install {change}{smaller}"
            )


def has_nvidia_driver() -> bool:
    """Tell whether an NVIDIA driver is there, also that of Windows under WSL."""
    places = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1")
    return any(map(os.path.exists, places)) or shutil.which("nvidia-smi") is not None


def announce(venv: Path, build: str) -> None:
    """Say what is installed, how large it is, and whether a smaller build would do."""
    download, disk = SIZES.get(build, SIZES[""])
    name = f"its build {build}" if build else "the build of PyPI"
    say(
        f"installing autotune into {venv} with PyTorch, {name}: about {download} GB to download, "
        f"{disk} GB on disk, minutes. Ctrl-C stops it; the same command continues."
    )
    is_cuda = not build and platform.system() == "Linux" and platform.machine() == "x86_64"
    if is_cuda and not has_nvidia_driver():
        download, disk = SIZES["cpu"]
        say(
            f"no NVIDIA driver here. The build for CPUs is a fraction of that ({download} and "
            f"{disk} GB): Ctrl-C, then make install TORCH=cpu"
        )


def make_environment(venv: Path) -> Path:
    """Make an environment, or mend one that was not finished; return its Python."""
    python = venv / "bin/python"
    if python.is_symlink() and not python.exists():
        raise InstallError(
            f"the Python of {venv} is gone ({python.readlink()}): make clean && make install"
        )
    if not python.exists() or _run(python, "-m", "pip", "--version", quiet=True):
        check_python()
        if _run(sys.executable, "-m", "venv", venv):
            raise InstallError(f"the environment {venv} cannot be made; the lines above say why")
        # Newer ones show the progress of installing and continue broken downloads.
        _run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", quiet=True)
    return python


def install(venv: Path, extra: str, build: str, editable: bool) -> None:
    """Install autotune with an extra."""
    python = make_environment(venv)
    pinned, log = venv / "constraints.txt", venv / "install.log"
    pinned.write_text(
        constraints(build, os.environ.get("PYTORCH_INDEX") or PYTORCH), encoding="utf-8"
    )
    for path in (log, venv / "bin/autotune"):  # without its program an environment is not finished
        path.unlink(missing_ok=True)
    target = [*(["--editable"] if editable else []), f"{ROOT}[{extra}]"]
    if _run(
        *(python, "-m", "pip", "install", "--disable-pip-version-check"),
        *("--log", log, "--constraint", pinned, *target),
    ):
        text = _text(log)
        reason = next((why for rule, why in PIP_FAILURES.items() if re.search(rule, text)), "")
        raise InstallError(
            f"the installation is not finished: {reason or 'the lines above say why'} "
            f"(everything: {log}). The same command continues it."
        )


def say(text: str) -> None:
    """Print a line of make's."""
    print(f"make: {text}", file=sys.stderr, flush=True)


def _run(*command: str | Path, quiet: bool = False) -> int:
    # setuptools warns of folders named like the package; here the folder is the package.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        [str(word) for word in command], env=environment, stdout=output, stderr=output
    ).returncode


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def main(arguments: list[str] | None = None) -> int:
    """Install what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path, help="folder of the environment")
    parser.add_argument("extra", help="an extra of setup.cfg")
    parser.add_argument("--torch", default="", help="build of PyTorch, e.g. cpu")
    parser.add_argument("--no-editable", action="store_true", help="copy the package")
    options = parser.parse_args(arguments)
    try:
        build = choose_build(options.venv, options.torch)
        if installed_build(options.venv) is None:
            check_space(options.venv, build)
            announce(options.venv, build)
        install(options.venv, options.extra, build, not options.no_editable)
    except (InstallError, OSError) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command continues the installation")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
