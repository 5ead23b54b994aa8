"""benchmarks/transfer.py: what is measured once is not measured again; the table has its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from autotune.results.values.intervals import t_interval

ROOT = Path(__file__).parents[2]
TINY = {
    "data.train_per_class": 5,
    "search.trials": 1,
    "training.epochs": 1,
    "training.num_views": 1,
    "space.trainable_layers": {"low": 0, "high": 1},
}


@pytest.fixture
def transfer(module: Any) -> Any:
    return module("transfer")


def test_the_table_is_that_of_the_page(transfer: Any, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/none.db"
    empty = transfer.table({name: transfer.scores(name, storage) for name in transfer.SETS})
    assert empty in (ROOT / "docs/results.md").read_text()
    assert not (tmp_path / "none.db").exists()


def test_a_mean_over_the_sets_needs_all_of_them(transfer: Any) -> None:
    def rows(values: dict[str, tuple[float | None, ...]]) -> dict[str, list[str]]:
        scores = {
            name: [None if one is None else transfer.Score("accuracy", one, 60.0) for one in some]
            for name, some in values.items()
        }
        lines = transfer.table(scores).splitlines()[2:]
        return {cells[1]: cells[2:-1] for cells in (re.split(r" *\| *", line) for line in lines)}

    whole = {name: (80.0, 81.0, 82.0 + place) for place, name in enumerate(transfer.SETS)}
    found = rows(whole)
    interval = t_interval((80.0, 81.0, 84.0), 0.95)
    text = f"81.67 ({interval.low:.2f} to {interval.high:.2f})"
    assert found["mean"][1:5] == ["80.00", "81.00", "84.00", text]
    assert found["aircraft"][:4] == ["accuracy", "80.00", "81.00", "82.00"]
    assert found["aircraft"][5] == "60.00"
    partly = rows(whole | {"dtd": (70.0, None, None)})
    assert partly["dtd"][1:5] == ["70.00", "–", "–", "70.00"]
    assert partly["mean"][1:5] == ["–"] * 4
    assert rows({"dtd": (70.0, 71.0, 72.0)})["mean"][1:5] == ["–"] * 4


@pytest.mark.slow
def test_the_test_split_is_read_once_by_each_seed(
    transfer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SEEDS", 2)
    monkeypatch.setattr(transfer, "STUDY", str(ROOT / "studies/{}.yaml"))
    monkeypatch.chdir(tmp_path)
    storage = f"sqlite:///{tmp_path}/studies.db"
    assert transfer.scores("digits", storage) == [None, None]
    for _ in range(2):
        transfer.measure("digits", TINY, storage, workers=1, gpus="none")
    first = transfer.scores("digits", storage)
    assert all(score.metric == "accuracy" and 10 < score.plan <= 100 for score in first)
    for name in transfer.study_names("digits"):
        study = transfer.autotune.Study.open(name, storage).optuna_study
        assert len(study.user_attrs["test_reads"]) == 1
