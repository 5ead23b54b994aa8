"""``make install``: what it says, what it refuses, and that it continues what was interrupted.

Tests do not reach PyTorch's index of builds: an index on loopback has packages of these names.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from docs.install import install
from docs.install.install import InstallError
from tests.support.commands.serving import free_port
from tests.support.wheels import wheel

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


def with_torch(venv: Path, version: str) -> Path:
    (venv / f"lib/python3.11/site-packages/torch-{version}.dist-info").mkdir(parents=True)
    return venv


@pytest.mark.parametrize(
    ("there", "given", "build"),
    [
        (None, "", ""),
        (None, "cpu", "cpu"),
        (None, "cu126", "cu126"),
        ("2.15.0+cpu", "", "cpu"),  # an extra keeps the build
        ("2.15.0+cpu", "cpu", "cpu"),
        ("2.15.0", "", ""),
    ],
)
def test_the_build_of_torch(there: str | None, given: str, build: str, tmp_path: Path) -> None:
    venv = with_torch(tmp_path, there) if there else tmp_path
    assert install.choose_build(venv, given) == build


@pytest.mark.parametrize(
    ("there", "given", "message"),
    [
        (None, "gpu", "TORCH must be cpu, or one of PyTorch's other builds"),
        ("2.15.0", "cpu", "has the build of PyPI of torch; for another one: make clean && make"),
        ("2.15.0+cpu", "cu126", "has the build cpu of torch; for another one: make clean && make"),
    ],
)
def test_a_build_that_is_refused(
    there: str | None, given: str, message: str, tmp_path: Path
) -> None:
    venv = with_torch(tmp_path, there) if there else tmp_path
    with pytest.raises(InstallError, match=message):
        install.choose_build(venv, given)


def test_torch_and_torchvision_are_of_one_build() -> None:
    lines = install.constraints("cpu", "https://mirror/whl/").splitlines()
    assert lines[0] == "--extra-index-url https://mirror/whl/cpu"
    builds = [line for line in lines if line.endswith("+cpu")]
    assert [line.partition("==")[0] for line in builds] == ["torch", "torchvision"]
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))]
    assert install.constraints("", "x") == (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(
    ("free", "build", "message"),
    [
        (2e9, "", r"2\.0 GB free, but .* GB are needed: make install VENV=.*, or TORCH=cpu"),
        (0.5e9, "cpu", r"0\.5 GB free, but .* GB are needed: make install VENV=/large/disk/venv$"),
    ],
)
def test_too_little_space(
    free: float, build: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(1e12, 0, free))
    with pytest.raises(InstallError, match=message):
        install.check_space(tmp_path / "not/there/yet", build)


@pytest.mark.parametrize("driver", [True, False])
def test_what_is_said_before(
    driver: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "has_nvidia_driver", lambda: driver)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    install.announce(Path(".venv"), "")
    said = capsys.readouterr().err
    assert "GB to download" in said and "the same command continues" in said
    assert ("make install TORCH=cpu" in said) is not driver
    install.announce(Path(".venv"), "cpu")
    assert "NVIDIA" not in capsys.readouterr().err


def test_a_python_without_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(InstallError, match=r"has no module ensurepip. .* apt install python3"):
        install.check_python()


def test_an_environment_whose_python_is_gone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/no/python3.9")
    with pytest.raises(InstallError, match=r"is gone \(/no/python3.9\): make clean"):
        install.make_environment(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "there is no space left"),
        ("urllib3.exceptions.NewConnectionError: refused", "the package index cannot be reached"),
        ("NameResolutionError(\"HTTPSConnection(host='pypi.org'\")", "docs/install.md"),
        ("SSLError: certificate verify failed", "PIP_CERT"),
        ("ERROR: ResolutionImpossible", "the lines above say why"),
    ],
)
def test_why_pip_has_failed(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*command: object, quiet: bool = False) -> int:
        (tmp_path / "install.log").write_text(line)
        return 1

    monkeypatch.setattr(install, "make_environment", lambda venv: venv / "bin/python")
    monkeypatch.setattr(install, "_run", fail)
    with pytest.raises(
        InstallError, match=r"not finished: .*The same command continues"
    ) as caught:
        install.install(tmp_path, "heic", "", editable=True)
    assert message in str(caught.value)


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = subprocess.run(
        ["make", "install", f"VENV={tmp_path}/venv", f"PYTHON={old}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "autotune needs Python 3.11 or newer; name one: make PYTHON=" in result.stdout
    assert not (tmp_path / "venv").exists()


#: Builds a package named autotune without setuptools, by the function that writes wheels.
BACKEND = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.wheels import wheel
def build_editable(folder, config_settings=None, metadata_directory=None):
    scripts = "[console_scripts]\\nautotune = platform:platform\\n"
    needs = ("Requires-Dist: torch", "Requires-Dist: torchvision", "Provides-Extra: heic")
    return wheel(Path(folder), "autotune", "1.0", *needs, scripts=scripts)
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index on loopback: PyPI below /simple, PyTorch's builds below /whl."""
    for name in ("torch", "torchvision"):
        for version, place in (("9.0", "simple"), ("9.1", "simple"), ("9.0+cpu", "whl/cpu")):
            wheel(tmp_path / "index" / place / name, name, version)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    handler.func.log_message = lambda *arguments: None  # type: ignore[method-assign]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with a blank in its path, of a package that needs torch and torchvision."""
    root = tmp_path / "my clone"
    (root / "docs/install").mkdir(parents=True)
    for name in ("Makefile", "docs/install/install.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "setup.cfg").touch()
    (root / "constraints.txt").write_text("torch==9.0\ntorchvision==9.0\nnvidia-x==1\n")
    (root / "backend.py").write_text(BACKEND.format(root=str(ROOT)))
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return root


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "install", *arguments],
        cwd=clone,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(clone),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_RETRIES": "0",
            **environment,
        },
        capture_output=True,
        text=True,
    )


def installed(clone: Path) -> set[str]:
    found = clone.glob(".venv/lib/python3*/site-packages/*.dist-info")
    return {path.name.removesuffix(".dist-info") for path in found} & {
        f"{name}-{version}"
        for name in ("torch", "torchvision")
        for version in ("9.0", "9.1", "9.0+cpu")
    }


@pytest.mark.slow
def test_an_installation_that_is_interrupted_and_continued(clone: Path, index: str) -> None:
    program = clone / ".venv/bin/autotune"
    nowhere = f"http://127.0.0.1:{free_port()}"
    offline = make(clone, "TORCH=cpu", PIP_INDEX_URL=f"{nowhere}/simple", PYTORCH_INDEX=nowhere)
    assert offline.returncode == 2
    assert "make: installing autotune into .venv with PyTorch, its build cpu" in offline.stderr
    assert "the package index cannot be reached" in offline.stderr
    assert not program.exists()

    # Without PyTorch's index, the build of PyPI is not taken in its place.
    without = make(clone, PIP_INDEX_URL=f"{index}/simple", PYTORCH_INDEX=nowhere)
    assert without.returncode == 2 and not program.exists() and not installed(clone)

    places = {"PIP_INDEX_URL": f"{index}/simple", "PYTORCH_INDEX": f"{index}/whl"}
    done = make(clone, **places)  # the choice was kept
    assert done.returncode == 0, done.stderr
    assert "Installing collected packages: torchvision, torch, autotune" in done.stdout
    assert installed(clone) == {"torch-9.0+cpu", "torchvision-9.0+cpu"}

    assert make(clone, **places).stdout == "make: Nothing to be done for 'install'.\n"
    program.unlink()  # as pip leaves it that was killed while it installed
    assert make(clone, **places).returncode == 0 and program.exists()
    refused = make(clone, "TORCH=cu126", **places)
    assert refused.returncode == 2 and "has the build cpu of torch" in refused.stderr
    assert program.exists()
