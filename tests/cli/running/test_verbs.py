"""A small study from its run to its model: what every verb says and leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import StudyConfig
from autotune.data.views.study_data import open_test_views
from autotune.plan import TrialPlan
from autotune.results.model.model_folder import load_model
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.metrics import compute_metrics
from tests.support.commands.inside import call, contents
from tests.support.commands.runs import autotune, trials_of
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
DATABASE = "storage/autotune.db"


def percent(value: float | None) -> str:
    assert value is not None
    return f"{100 * value:.1f} %"


def ended_trials(folder: Path) -> list[FrozenTrial]:
    """Return the trials without the plans that were queued when the budget was used up."""
    return [trial for trial in trials_of(folder, "tiny") if trial.state.is_finished()]


def test_run_tells_what_happens_in_plain_lines(finished: Path) -> None:
    said = (finished / "out.txt").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", said)
    lines = said.splitlines()
    assert lines[0] == "study tiny: checking the study file, the images and the backbone"
    assert "study tiny: 0/3 finished, 0 pruned, 0 failed; no trial finished yet" in lines
    assert any(line.startswith("worker 0 is ready on c") for line in lines)
    trials = ended_trials(finished)
    for trial in trials:
        (ended,) = [line for line in lines if line.startswith(f"trial {trial.number}: ")]
        value = percent(trial.value)
        assert ended.startswith(f"trial {trial.number}: {trial.state.name.lower()} {value} | ")
        assert f"baseline {percent(trials[0].value)}" in ended
    assert "3/3 finished" in ended and ended.endswith("time left 0:00")


def test_status_is_the_summary_of_the_run(finished: Path) -> None:
    before, count = contents(finished), len(trials_of(finished, "tiny"))
    ended = call("status", "tiny", cwd=finished)
    assert (ended.code, ended.err) == (0, "")
    summary = ended.out.partition("study tiny")[2]
    assert summary in (finished / "out.txt").read_text(encoding="utf-8")
    trials = trials_of(finished, "tiny")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda one: one.value or 0.0)
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:]
        for line in summary.splitlines()
        if line.startswith("│")
    }
    assert rows["baseline"][:2] == [f" {'0':>5} ", f" {percent(trials[0].value):>19} "]
    assert rows["best"][1].strip() == percent(best.value)
    assert best.value is not None and trials[0].value is not None
    gain = 100 * (best.value - trials[0].value)
    assert rows["difference"][1].strip() == (
        f"{gain:+.1f} points" if gain else "no trial is better"
    )
    assert "trials: 3 of 3 finished: " in summary
    assert "\nended: 3 finished trials\n" in summary
    assert "■ head" in summary
    assert "report         storage/autotune.files/reports/tiny.html" in summary
    assert "final model    autotune refit tiny" in summary
    assert contents(finished) == before
    assert len(trials_of(finished, "tiny")) == count


def test_best_is_yaml_and_a_plan(finished: Path) -> None:
    before = contents(finished)
    ended = call("best", "tiny", cwd=finished)
    assert (ended.code, ended.err) == (0, "")
    values = yaml.safe_load(ended.out)
    trial = trials_of(finished, "tiny")[values["trial"]]
    assert list(values) == ["study", "trial", "accuracy", "plan"]
    assert (values["study"], values["accuracy"]) == ("tiny", trial.value)
    assert TrialPlan.from_json(values["plan"]) == attrs.trial_plan(trial)
    assert contents(finished) == before


def test_fit_measures_twice_and_says_so(finished: Path, tmp_path: Path) -> None:
    first = call("refit", "tiny", cwd=finished)
    assert first.code == 0 and "trained for 3 epochs" in first.err
    assert "The test split has now been read" not in first.out
    assert first.out.startswith("Refitted: trial ")
    assert "The accuracy (top-1) is " in first.out or "the baseline: no trial" in first.out
    report = "storage/autotune.files/reports/tiny.html"
    assert first.out.endswith(f"report: {report}\nmodel: storage/autotune.files/models/tiny\n")
    assert "on the test split" in (finished / report).read_text("utf-8")
    folder = finished / "storage/autotune.files/models/tiny"
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "record.json", "README.md"),
        *("confusion_matrix.png", "confusion_matrix.csv", "reliability.png"),
        *("epochs.csv", "learning_curve.png"),
        *("predictions.csv", "worst_images.jpg"),
    }
    values = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert values["times_the_test_part_was_read"] == 1
    for key in ("test", "baseline_test"):
        assert {"accuracy", "balanced_accuracy", "macro_f1", "log_loss"} <= set(values[key])
        assert percent(values[key]["accuracy"]) in first.out
        assert f"{values[key]['log_loss']:.4f}" in first.out

    output = str(tmp_path / "model")
    again = call("refit", "tiny", "--trial", "0", "--json", "-o", output, cwd=finished)
    assert again.code == 0 and "(cached)" in again.err
    told = json.loads(again.out)
    assert (told["times_the_test_part_was_read"], told["folder"]) == (2, output)
    second = json.loads((tmp_path / "model" / "record.json").read_text(encoding="utf-8"))
    assert second["times_the_test_part_was_read"] == 2
    assert second["trial"] == 0
    assert second["test"] == {**second["baseline_test"], "images": values["test"]["images"]}
    opened = open_existing("tiny", f"sqlite:///{finished / DATABASE}")
    assert len(opened.study.user_attrs[attrs.TEST_READS]) == 2
    check_model(folder, opened.files.cache)


def check_model(folder: Path, cache: Path) -> None:
    """Load a model from its folder and measure it again."""
    values = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    config = StudyConfig.model_validate({"name": "tiny", **values["definition"]})
    assert values["pretrained"]["weights"] == "shipped"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy (top-1) | {values['test']['accuracy']:.2%} (" in card
    model = load_model(folder)
    views = open_test_views(config.dataset, config.data, model.spec, cache)
    normalize = Normalizer.from_config(values["preprocessing"], torch.device("cpu"))
    order = torch.arange(len(views))
    with torch.no_grad():
        logits = torch.cat(
            [
                model(normalize(images)).float()
                for images, _ in views.batches(order, torch.zeros_like(order), 64)
            ]
        )
    found = compute_metrics(logits, views.labels).to_json()
    for name, value in found.items():
        assert values["test"][name] == pytest.approx(value, abs=1e-4), name


# Studies at other stages, as tests.support.study.studies makes them


def shown(tmp_path: Path, **made: object) -> str:
    storage = open_storage(f"sqlite:///{tmp_path / DATABASE}", create=True)
    make_study("made", storage=storage, **made)  # type: ignore[arg-type]
    ended = call("status", "made", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def test_status_of_a_study_that_runs(tmp_path: Path) -> None:
    text = shown(tmp_path, trials=0, running=2, failed=1, waiting=1)
    columns = "host worker device trial epoch accuracy heartbeat speed plan"
    assert text.splitlines()[0].split() == columns.split()
    row = r"gpu-box +\d+/\d +NVIDIA H200 +\d +3/10 +\d\d\.\d % +none +(last|backbone) "
    assert len(re.findall(row, text)) == 2
    assert "failed attempts: 1 DivergedError" in text
    assert "not finished yet" in text
    assert "trials: 1 of 40 finished: 0 complete, 0 pruned, 1 failed, 2 running, 1 waiting" in text
    assert "  1 failed: DivergedError: the loss is nan in epoch 2" in text
    assert "ended: " not in text and "pruning saved" not in text
    # Commands that would be refused are not offered.
    assert "autotune dashboard made" in text
    assert "autotune refit" not in text and "autotune best" not in text


def test_a_terminal_without_utf8(tmp_path: Path) -> None:
    shown(tmp_path)
    ended = autotune("status", "made", cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"\u25a0 head" in ended.stdout


def test_long_plans_stay_within_the_terminal(tmp_path: Path) -> None:
    shown(tmp_path)
    ended = call("status", "made", cwd=tmp_path, COLUMNS="80")
    table = [line for line in ended.out.splitlines() if line.startswith(("│", "┃"))]
    assert table and {len(line) for line in table} == {80}


def test_a_worker_of_a_finished_study_has_nothing_to_do(finished: Path) -> None:
    ended = call("worker", "tiny", cwd=finished)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == (
        "0 trials finished here; the study 'tiny' has no more to do: 3 finished trials"
    )
    assert len(ended_trials(finished)) == 3


def test_an_ended_study_is_shown_once(finished: Path) -> None:
    before = contents(finished)
    ended = call("status", "tiny", "--watch", cwd=finished)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("study tiny  ")
    assert ended.out.count("ended: 3 finished trials") == 2  # once more in the summary
    assert "autotune refit tiny" in ended.out
    assert contents(finished) == before
