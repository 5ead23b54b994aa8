"""Custom samplers, pruners and spaces, and warm starts, as a user runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution

from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.support.commands.inside import call, contents
from tests.support.commands.runs import SMALL, trials_of
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
DOCS = Path(__file__).parents[3] / "docs/search.md"


def example() -> str:
    """Return the example of the documentation."""
    (found,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study file with the example beside it was run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "files").mkdir()
    (folder / "files/mine.py").write_text(example(), encoding="utf-8")
    assert call("cp", "digits", "files/my.yaml", cwd=folder).code == 0
    path = folder / "files/my.yaml"
    text = path.read_text(encoding="utf-8")
    text = text.replace("sampler: gp", "sampler: mine.py:MySampler")
    text = text.replace("pruner: median", "pruner: mine.py:MyPruner")
    text = text.replace("space:\n", "space:\n  custom: mine.py:gentle\n", 1)
    path.write_text(text, encoding="utf-8")
    arguments = ("run", "files/my.yaml", *SMALL, "search.trials=7", "training.epochs=4")
    with connections_closed():
        ended = call(*arguments, "--workers", "1", cwd=folder)
    assert (ended.code, ended.err) == (0, "")
    return folder


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(ran: Path) -> None:
    trials = trials_of(ran, "digits")
    assert [one.state.is_finished() for one in trials] == [True] * 7
    origins = [attrs.trial_origin(one) for one in trials[1:3]]
    assert all(origin.startswith("known good: ") for origin in origins)
    kernels = CategoricalDistribution(["keep", 5, 7])
    for trial in trials[3:]:
        assert trial.distributions["layer.3.kernel"] == kernels
        assert 0.001 <= trial.params["training.lr"] <= 0.01
        assert "training.layer_decay" not in trial.params
        plan = attrs.trial_plan(trial)
        assert plan is not None and plan.policy.layer_decay == (0.7 if plan.depth else 1.0)
    opened = open_existing("digits", f"sqlite:///{ran}/storage/autotune.db")
    mine = f"{ran}/files/mine.py"
    assert opened.config().search.sampler == f"{mine}:MySampler"
    assert set(opened.study.user_attrs[attrs.PLUGINS]) == {
        "search.sampler",
        "search.pruner",
        "space.custom",
    }


def test_a_warm_start_is_told_once_and_shown(ran: Path) -> None:
    arguments = (
        "run", "digits", *SMALL, "--name", "next", "--workers", "1", "search.default_plans=false",
        "search.warm_start=[digits]", "space.training.layer_decay=0.7", "search.trials=1",
    )  # fmt: skip
    first = call(*arguments, cwd=ran)
    assert first.code == 0, first.err
    told = [line for line in first.out.splitlines() if line.startswith("warm start: trial ")]
    assert len(told) == 3
    assert all(re.search(r" of study digits is (queued|dropped: \w)", line) for line in told)
    page = (ran / "storage/autotune.files/reports/next.html").read_text(encoding="utf-8")
    assert all(line in page for line in told)
    again = call(*arguments, cwd=ran)
    assert again.code == 0, again.err
    assert "nothing was trained" in again.out
    assert "warm start: trial" not in again.out.partition("nothing was trained")[0]


@pytest.mark.parametrize("verb", ["run", "validate"])
def test_mistakes_come_with_all_others(verb: str, tmp_path: Path) -> None:
    make_study("dogs", storage=open_storage(f"sqlite:///{tmp_path}/s.db", create=True))
    (tmp_path / "mine.py").write_text(example() + "\ndef far(space):\n    return space.far\n")
    (tmp_path / "broken.py").write_text("x = (\n")
    before = contents(tmp_path)
    ended = call(
        verb, "digits", "storage=sqlite:///s.db", "search.sampler=mine.py:MySampeler",
        "search.pruner=broken.py:Pruner", "space.custom=nine.py:far", "search.warm_start=[dgs]",
        "weights=w.pt", cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 2 and "Traceback" not in ended.err
    lines = ended.err.splitlines()
    assert lines[0] == "error: digits-MySampeler: 5 mistakes"
    expected = {
        "search.warm_start: ": "no study 'dgs'; it has dogs; did you mean 'dogs'?",
        "weights: there is no file 'w.pt'": "",
        "search.sampler: ": "mine.py has no 'MySampeler'; it has MySampler, MyPruner, gentle, far",
        "search.pruner: ": "broken.py:1 raises SyntaxError: '(' was never closed",
        "space.custom: there is no file ": "did you mean 'mine.py'?",
    }
    for line, (start, said) in zip(lines[1:], expected.items(), strict=True):
        assert line.strip().startswith(start) and said in line
    ended = call(verb, "digits", "space.custom=mine.py:far", cwd=tmp_path)
    line = len((tmp_path / "mine.py").read_text().splitlines())
    assert f"space.custom: {tmp_path}/mine.py:{line} raises AttributeError: " in ended.err
    assert ended.code == 2 and contents(tmp_path) == before


def test_a_sampler_that_fails_in_the_middle_ends_the_run_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from optuna.samplers import RandomSampler\n"
        "class Late(RandomSampler):\n"
        "    def __init__(self, space, seed): super().__init__(seed)\n"
        "    def sample_independent(self, study, trial, name, distribution):\n"
        "        raise ValueError('no idea')\n"
    )
    small = (*SMALL, "search.default_plans=false", "search.trials=3", "--workers", "1")
    ended = call("run", "digits", *small, "search.sampler=mine.py:Late", cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.strip() == f"error: {tmp_path}/mine.py:5 raises ValueError: no idea"
    trials = trials_of(tmp_path, "digits-Late")
    assert "RUNNING" not in [one.state.name for one in trials]


def test_what_is_run_is_said(ran: Path) -> None:
    """Once, with the files, before anything of them runs; a file without any says nothing."""
    arguments = ("files/my.yaml", *SMALL)
    for verb, more in (("validate", ()), ("run", ("--workers", "1", "search.trials=7"))):
        ended = call(verb, *arguments, *more, cwd=ran)
        (line,) = (one for one in ended.out.splitlines() if "its own Python" in one)
        assert line.startswith("this study file runs its own Python: ")
        assert line.count(str(ran / "files/mine.py")) == 3 and "search.sampler" in line
        assert ended.out.index(line) == 0
    assert "Python" not in call("validate", "digits", cwd=ran).out
