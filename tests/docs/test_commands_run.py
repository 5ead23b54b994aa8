"""Runs the commands of the documentation, page by page, in a copy of the repository.

What stands in blocks is run as it is, save what the tables below replace: small studies in place
of large ones, images and archives that are made here, a server that is here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from safetensors.torch import save_file

from tests.support.commands.runs import environment
from tests.support.commands.serving import free_port, running_publisher
from tests.support.commands.warm import warm_python
from tests.support.data.archives import (
    caltech101_archives,
    caltech256_archives,
    dogs_archives,
    sums_of,
)
from tests.support.data.images import photo
from tests.support.pages.doc_commands import EXTRAS, ROOT, commands, pages
from tests.support.study.databases import Server

pytestmark = pytest.mark.timeout(1800)

#: What is not run, and why.
NOT_RUN = {
    r"^git clone": "the copy is a checkout",
    r"^pip (install|download)|^make clean|make install\b": "tests/repository/test_install.py",
    r"^make image": "needs a container engine: tests/repository/test_container.py",
    r"^make (test|check)\b": "these are the tests",
    r"^make bench|^python benchmarks/": "measures for minutes",
    r"^make pictures|scripts/pictures": "trains for minutes: tests/docs/test_pictures.py",
    r"GPUS=0,2|WORKERS_PER_GPU|--gpus |^CUDA_VISIBLE": "needs CUDA: engine/test_gpu.py",
    r"ENGINE=ray|--engine ray": "starts a cluster: tests/study/engine/test_ray.py",
    r"^sbatch|^install |docker|postgres-(up|down)": "needs SLURM or Docker",
    r"PUBLIC=1|--public": "opens a port to others: tests/cli/results/test_dashboard_public.py",
    r"loggers=.*mlflow": "needs MLflow: tests/loggers/",
    r"flowers102": "its publisher alone has its layout: tests/data/sources/test_registry.py",
    r"^make transfer|transfer-": "needs a GPU: tests/benchmarks/test_transfer.py",
    r"tf_efficientnet_lite0": "needs the package index: tests/models/pretrained/test_packages.py",
    r"weights fetch": "needs the hub: tests/cli/resources/test_data.py",
    r"leaves|climb\.py|floor\.py": "of a file on the page: tests/docs/test_extending.py",
    r"cuda\.device_count": "says what torch is there",
}
#: What is replaced in a command: images, sizes, places. The rest of it is run as it stands.
INSTEAD = (
    (r"postgresql://user:password@host/autotune", "{postgres}"),
    (r"convnext_tiny\.fb_in22k TRIALS=100", "test_convnext.r160_in1k TRIALS=2"),
    (r"'\[resnet50\.a1_in1k, convnext_tiny.*?\]'", "'[test_resnet, test_vit]'"),
    (
        r"BACKBONE=resnet18 WEIGHTS=downloads/theirs",
        "BACKBONE=test_resnet WEIGHTS=downloads/theirs NAME=of-folder",
    ),
    # The command beside it has done it; there and back.
    (
        r"^make rename STUDY=photos-tpe TO=flowers",
        "make rename STUDY=flowers TO=back && make rename STUDY=back TO=flowers",
    ),
    (
        r"BACKBONE=resnet18 WEIGHTS=resnet18\.safetensors",
        "BACKBONE=test_resnet WEIGHTS=resnet18.safetensors NAME=of-file",
    ),
    (r"\[resnet18, convnext_nano, mobilenetv3_large_100\]", "[test_resnet, test_convnext]"),
    (r"BACKBONE=resnet18\.a1_in1k$", "BACKBONE=test_resnet NAME=of-one"),
    (r"backbone=resnet18 weights=", "backbone=test_resnet weights="),
    (r"search\.trials=60\b", "search.trials=4"),
    (r"30-per-class", "6-per-class"),
    (r"trials_per_stage=5", "trials_per_stage=1"),
    (r"(storage copy --from \S+)$", r"\1 --to sqlite:///whole.db"),
    (r"(--study photos) (--files) /shared", r"\1 --to sqlite:///copied.db \2 {root}/shared"),
    (r"/backups/", "{root}/backups/"),
    (r"--wait 3600", "--wait 1"),
    (r"reproduce digits 12", "reproduce digits 1"),
    (r"--plan 7", "--plan 1"),
    (r"export MODEL", "export storage/autotune.files/models/digits"),
    (r"-e photos\.zip photos", "-e photos.zip unpacked"),
    (r"PORT=9000|--port 9000", "PORT={port}"),
    (r"^(autotune rm .*|autotune gc)$", r"\1 --yes"),
    (r"^make dashboard$", "make dashboard PORT={port}"),
    (r"^autotune data info my.yaml", "autotune data info photos.yaml"),
    (r"sqlite:////data/team.db", "sqlite:///{root}/team.db"),
)
#: What is changed in all study files that ship: a study of seconds.
SMALL: dict[str, Any] = {
    "data": {"image_size": 32},
    "training": {"epochs": 1, "num_views": 1},
    "search": {"trials": 2},
}


@dataclass
class Checkout:
    """A copy of the repository in which commands are run.

    Args:
        root: Its folder.
        postgres: URL of a database.
        environment: What its commands have.
        ran: Commands that have ended well, with their seconds.
    """

    root: Path
    postgres: str
    environment: dict[str, str]
    ran: dict[str, float] = field(default_factory=dict)

    def run(self, text: str) -> str:
        """Run a command; return what went wrong, nothing if nothing."""
        if text in self.ran:
            return ""
        start = time.monotonic()
        until = "http://127.0.0.1" if "dashboard" in text else ""  # it runs until interrupted
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said = self._follow(process, until) if until else process.communicate(timeout=300)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - start
        if process.returncode and not until:
            return f"exit code {process.returncode} after {seconds:.0f} s:\n{said[-1500:]}"
        if until and until not in said:
            return f"never said {until!r}:\n{said[-1500:]}"
        self.ran[text] = seconds
        return ""

    def _follow(self, process: subprocess.Popen[str], until: str) -> str:
        """Wait until a command says that it is there, and interrupt it."""
        assert process.stdout is not None
        said = ""
        watch = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        for line in process.stdout:
            said += line
            if until in line:
                break
        watch.cancel()
        time.sleep(1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        return said + process.communicate(timeout=60)[0]


@pytest.fixture(scope="module")
def checkout(postgres: Server) -> Iterator[Checkout]:
    """A copy with an environment, images and the studies that pages take for granted."""
    # A short path, because sockets lie below it; with a blank, as people name folders.
    root = Path(tempfile.mkdtemp(prefix="my docs"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        copy_sources(root)
        make_images(root)
        make_programs(root, Path(sys.executable))
        for one in EXTRAS:
            (root / ".venv" / one).touch()
        publisher = stack.enter_context(running_publisher())
        data = publish(publisher, root)
        extra = {"AUTOTUNE_DATA": str(data), "AUTOTUNE_MIRROR": publisher.url}
        # Whatever a command may install goes here, not into the environment of the tests.
        extra["PIP_TARGET"] = str(root / "installed")
        given = environment(PYTHONPATH=str(root), HOME=str(root), **extra)
        given["PATH"] = f"{root}/.venv/bin:{given['PATH']}"
        made = Checkout(root, postgres.fresh_database(), given)
        # One study is run by processes that begin with nothing, as those of users do.
        assert not (wrong := made.run("make study")), wrong
        (root / "warm").mkdir()
        make_programs(root, stack.enter_context(warm_python(root / "warm", given)))
        assert "exit code 2" in made.run("autotune run nothing"), "a failure would not show"
        stack.callback(made.run, "make postgres-local-down")
        for text in (
            "make study DATASET=photos",
            f"make study DATASET=photos STORAGE={made.postgres}",
            "make study DATASET=photos SAMPLER=tpe",
            "make refit",
            "make refit DATASET=photos",
        ):
            assert not (wrong := made.run(text)), f"{text}: {wrong}"
        yield made


def copy_sources(root: Path) -> None:
    """Copy what git knows, with studies of seconds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    (root / "tests").mkdir()  # make format looks into it
    for path in (root / "studies").glob("*.yaml"):
        path.write_text(yaml.safe_dump(small(yaml.safe_load(path.read_text()))))
    (root / "photos.yaml").write_text((root / "studies/folder.yaml").read_text())


def small(study: dict[str, Any]) -> dict[str, Any]:
    """Make a study small; it keeps its data set, its order and the kind of its space."""
    for section, values in SMALL.items():
        study[section] = {**study.get(section, {}), **values}
    if study["dataset"] == "digits":
        study["data"] |= {"image_size": 16, "train_per_class": 5}
    else:
        study |= {"backbone": "test_resnet", "weights": "none"}
        study["space"] |= {"trainable_layers": {"low": 0, "high": 2}}
    if study["dataset"] == "path/to/images":
        study["dataset"] = "photos"
    if "trials_per_stage" in study["search"].get("greedy", {}):
        study["search"]["greedy"]["trials_per_stage"] = 1
    return study


def make_images(root: Path) -> None:
    """Make photos as folders, table and zip file, more of them, and a file of weights."""
    rows = ["path,label"]
    for place, name in enumerate(("cat", "dog")):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(20):
            path = root / "photos" / name / f"p{number % 10}_{number}.jpg"
            photo(40, 40, 100 * place + number).save(path)
            rows.append(f"{path.relative_to(root)},{name}")
    (root / "table.csv").write_text("\n".join(rows))
    shutil.make_archive(str(root / "photos"), "zip", root, "photos")
    (root / "more").mkdir()
    photo(40, 40, 7).save(root / "more/one.jpg")
    for name in ("backups", "shared"):
        (root / name).mkdir()
    model = timm.create_model("test_resnet", pretrained=False)
    for name in ("resnet18.safetensors", "downloads/theirs/model.safetensors", "runs/last.ckpt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), root / name)


def make_programs(root: Path, python: Path) -> None:
    """Make the programs of the .venv, each of which calls this Python."""
    programs = root / ".venv/bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name in ("python", "autotune", "pytest", "ruff", "mypy"):
        program, what = programs / name, "" if name == "python" else f"-m {name}"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} {what} "$@"\n')
        program.chmod(0o755)


def publish(publisher: Any, root: Path) -> Path:
    """Publish small archives in the layouts of their publishers; return the folder for them."""
    counts = {"accordion": 12, "airplanes": 12, "anchor": 12}
    sets = {
        "dogs": dogs_archives(breeds=3, train=8, test=3, side=40),
        "caltech101": caltech101_archives(counts),
        "caltech256": caltech256_archives({f"00{n}.{c}": 12 for n, c in enumerate(counts, 1)}),
    }
    for name, archives in sets.items():
        (root / "data" / name).mkdir(parents=True)
        (root / "data" / name / "SHA256SUMS").write_text(sums_of(archives))
        publisher.files |= {f"/{name}/{file}": content for file, content in archives.items()}
    return root / "data"


def reason_not_to_run(text: str) -> str:
    return next((why for rule, why in NOT_RUN.items() if re.search(rule, text)), "")


def replaced(text: str, checkout: Checkout) -> str:
    for rule, new in INSTEAD:
        text = re.sub(rule, new, text)
    for name, value in (
        ("postgres", checkout.postgres),
        ("root", shlex.quote(str(checkout.root))),
        ("port", str(free_port())),
    ):
        text = text.replace(f"{{{name}}}", value)
    return re.sub(r"^(autotune dashboard.*) PORT=(\d+)", r"\1 --port \2", text)


RUN = [
    page
    for page in pages()
    if any(not one.inline and not reason_not_to_run(one.text) for one in commands(page))
]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.slow if page.name == "README.md" else pytest.mark.long,
        )
        for page in RUN
    ],
)
def test_the_commands_of_a_page_run(page: Path, checkout: Checkout) -> None:
    kept, before = dict(checkout.environment), len(checkout.ran)
    wrong = []
    for command in commands(page):
        if command.inline or reason_not_to_run(command.text):
            continue
        text = replaced(command.text, checkout)
        name, given, value = text.removeprefix("export ").partition("=")
        if text.startswith("export ") and given:
            checkout.environment[name] = value
            continue
        if "cp folder my.yaml" in text:
            (checkout.root / "my.yaml").unlink(missing_ok=True)
        if error := checkout.run(text):
            wrong.append(f"{command}\n  as: {text}\n  {error}")
    checkout.environment.clear()
    checkout.environment.update(kept)
    for text, seconds in list(checkout.ran.items())[before:]:
        print(f"{seconds:6.1f} s  {text}")
    assert not wrong, "\n".join(wrong)


def test_every_reason_and_every_replacement_is_needed() -> None:
    texts = [one.text for page in pages() for one in commands(page)]
    for rule in (*NOT_RUN, *(rule for rule, _ in INSTEAD)):
        assert any(re.search(rule, text) for text in texts), f"no command has {rule}"
