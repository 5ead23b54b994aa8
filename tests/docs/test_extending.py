"""The examples of docs/extending.md, run as they stand on the page."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, environment, trials_of
from tests.support.commands.serving import running_publisher
from tests.support.data.archives import jpeg, tar_bytes
from tests.support.pages.doc_commands import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCKS = re.findall(r"```(python|diff)\n(.*?)```", PAGE, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
DIFFS = [text for language, text in BLOCKS if language == "diff"]

pytestmark = pytest.mark.usefixtures("closed_connections")


def example(having: str) -> str:
    """Return the one block of Python that has some text."""
    (found,) = (text for text in PYTHON if having in text)
    return found


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of the sources with all changes of the page, in the folder that is returned."""
    shutil.copytree(
        ROOT / "autotune", tmp_path / "autotune", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    (tmp_path / "autotune/data/leaves.py").write_text(example("ArchivedDataset("))
    for diff in DIFFS:
        apply(diff, tmp_path)
    return tmp_path


def apply(diff: str, root: Path) -> None:
    """Apply a change that names no lines: what it shows as unchanged must be there once."""
    for part in re.split(r"^--- a/.*\n", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        path = root / name.removeprefix("+++ b/")
        for hunk in re.split(r"^@@\n", body, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            text = path.read_text()
            assert text.count(old) == 1, f"docs/extending.md: {path.name} has no longer\n{old}"
            path.write_text(text.replace(old, new))


def python(code: str, cwd: Path, *arguments: str, **extra: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment(PYTHONPATH=str(cwd), **extra),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


OWN = ("search.sampler=climb.py:Climber", "search.pruner=floor.py:at_least_half")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the sampler and the pruner of the page."""
    (tmp_path / "climb.py").write_text(example("class Climber"))
    (tmp_path / "floor.py").write_text(example("def at_least_half"))
    return tmp_path


def test_a_sampler_and_a_pruner_are_made(own: Path) -> None:
    ended = call("validate", "digits", *OWN, cwd=own)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.slow
def test_a_sampler_and_a_pruner_run_a_study(own: Path) -> None:
    arguments = ("digits", *OWN, *SMALL, "search.default_plans=false", "search.trials=4")
    ended = call("run", *arguments, "--workers", "1", cwd=own)
    assert (ended.code, ended.err) == (0, "")
    trials = trials_of(own, "digits-Climber")
    assert len(trials) == 4 and len({str(trial.params) for trial in trials}) == 4


def test_the_changes_fit_the_sources(changed: Path) -> None:
    paths = re.findall(r"^\+\+\+ b/autotune/(\S+)$", "\n".join(DIFFS), re.MULTILINE)
    assert len(paths) >= 4
    for path in paths:
        before, after = ((root / "autotune" / path).read_text() for root in (ROOT, changed))
        assert before != after
        ast.parse(after)


@pytest.mark.slow
def test_the_changes_of_autotune(changed: Path) -> None:
    """A value more of an activation, and two data sets; in one process, which imports torch."""
    code = """
import torch
from autotune.data.sources.registry import dataset_names
from autotune.models.backbone import load_backbone
from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import LayerPlan, TrialPlan
from autotune.config.loading import load_study_file

assert {"gtsrb", "leaves"} <= set(dataset_names())
load_study_file("digits", ["space.layers.activation=[keep,celu]"])
backbone = load_backbone("test_resnet.letters")
plan = TrialPlan("test_resnet.letters", depth=1, layers=(LayerPlan(activation="celu"),))
network = build_network(backbone, plan, classes=3, seed=0)
assert any(isinstance(one, torch.nn.CELU) for one in network.modules())
"""
    python(code, changed)


@pytest.mark.slow
def test_a_published_archive(changed: Path) -> None:
    images = {
        f"{tree}/{number}.jpg": jpeg(100 * place + number)
        for place, tree in enumerate(("ash", "elm", "oak"))
        for number in range(8)
    }
    code = """
import sys
from autotune.cli.main import main
sys.argv = ["autotune", "data", *sys.argv[1:]]
main()
"""
    with running_publisher() as publisher:
        publisher.files["/leaves/leaves.tar"] = tar_bytes(images)
        where = {"AUTOTUNE_MIRROR": publisher.url, "AUTOTUNE_DATA": str(changed / "data")}
        python(code, changed, "fetch", "leaves", **where)
    code = (
        "from autotune.data.sources.registry import open_source\n"
        "print(len(open_source('leaves').samples))"
    )
    assert python(code, changed, **where) == "24\n"


def test_the_loader_of_torchvision_is_there() -> None:
    (diff,) = (text for text in DIFFS if "TorchvisionDataset(" in text)
    name = re.findall(r'^\+ +"([A-Z]+)",$', diff, re.MULTILINE)[0]
    taken = inspect.signature(getattr(torchvision.datasets, name)).parameters
    assert {"root", "split", "download"} <= taken.keys()
