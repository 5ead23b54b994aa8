"""``autotune enqueue``, as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from autotune.storage.rdb.connection import open_storage
from tests.support.commands.inside import Ended, call
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enqueue")
    (folder / "storage").mkdir()
    with connections_closed():
        storage = open_storage(f"sqlite:///{folder}/storage/autotune.db", create=True)
        make_study("photos", trials=4, running=0, failed=0, retried=0, budget=4, storage=storage)
    return folder


def enqueue(folder: Path, *arguments: str) -> Ended:
    with connections_closed():
        return call("enqueue", "photos", *arguments, cwd=folder)


def test_a_plan_waits_for_a_trial_of_the_budget(folder: Path) -> None:
    ended = enqueue(folder, "layers=2", "lr=2e-3", "head.hidden_layers=1", "head.dropout=0.2")
    first, filled, why, *commands = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    words = "last 2 layers trainable, head 256 (dropout 0.2)"
    assert first.startswith(f"trial 4 of photos is queued: {words}") and "lr 0.002" in first
    assert filled.startswith("as in the baseline: head.pool ") and "training.lr" not in filled
    assert why == (
        "the budget of the study is used up (4 finished trials); this makes room for it:"
    )
    assert commands[0].startswith("  autotune report photos -o photos-next.yaml")
    assert commands[1].startswith("  autotune run photos-next.yaml search.trials=5")
    with connections_closed():
        shown = call("status", "photos", cwd=folder).out
    assert f"queued: trial 4, {words}" in shown and "(enqueued by hand)" in shown


def test_a_plan_from_a_file(folder: Path) -> None:
    with connections_closed():
        (folder / "best.yaml").write_text(call("best", "photos", cwd=folder).out)
    said = enqueue(folder, "--plan", "best.yaml").err
    assert "has tried this plan: 0." in said
    for value in ("weight_decay=0.001", "lr=0.0015"):
        assert enqueue(folder, "--plan", "best.yaml", value).err == ""
    plan = yaml.safe_load((folder / "best.yaml").read_text())["plan"]
    plan["policy"]["weight_decay"] = 1e-05  # YAML reads a text there
    record = {"plan": plan, "classes": list(map(str, range(30_000)))}
    (folder / "record.json").write_text(json.dumps(record))
    assert enqueue(folder, "--plan", "record.json", "lr=0.0016").err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("layers=9",), "layers (depth): must be from 0 to 5, but got 9"),
        (("layers",), "an override must read key=value"),
        (("--trial", "best"), "has tried this plan"),
        (("--trial", "one"), "--trial: must be the number of a trial, or 'best', but got 'one'"),
        (("--trial", "77"), "--trial: the study 'photos' has the trials 0 to "),
        (("--trial", "1", "--from", "phots"), "did you mean 'photos'?"),
        (("--plan", "none.yaml"), "cannot read 'none.yaml': No such file or directory"),
        (("--plan", "best.yaml", "--trial", "1"), "--plan is a plan of its own"),
        ((), "give the values of a plan"),
    ],
)
def test_what_is_wrong(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = enqueue(folder, *arguments)
    assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err
