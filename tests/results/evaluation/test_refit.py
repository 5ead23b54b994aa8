"""The final fit: what is remembered of it, and what is left when it is cut off."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.config.schema import RefitConfig
from autotune.errors import DiskFullError
from autotune.results.evaluation import refit as fit_module
from autotune.results.evaluation.refit import RefitResult, refit_study
from autotune.results.model.model_folder import load_model
from autotune.results.report.images import find_image_results, predictions_csv
from autotune.results.study_results import StudyResults
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.predictions import WORST
from tests.support.inline import Event, run
from tests.support.inside import contents
from tests.support.small import open_small


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    made = open_small(
        tmp_path_factory.mktemp("fit"),
        search__trials=2,
        training__num_views=2,
        refit__ema=0.5,
        refit__views="online",
    )
    run(made)
    return made


@pytest.fixture(scope="module")
def fitted(opened: OpenStudy) -> RefitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.models.heat_maps.MIN_SIDE", 1)
        return refit_study(opened, trial=1)


def test_both_are_trained_alike_and_all_figures_are_kept(
    opened: OpenStudy, fitted: RefitResult
) -> None:
    assert fitted.summary.ema == fitted.baseline_summary.ema == 0.5  # of the study's last run
    assert fitted.summary.views == fitted.baseline_summary.views == "online"
    values = json.loads((fitted.folder / "record.json").read_text("utf-8"))
    (read,) = opened.study.user_attrs[attrs.TEST_READS]
    assert {name: values["test"][name] for name in read["test"]} == read["test"]
    assert values["baseline_test"] == read["baseline"]
    assert read["intervals"] == values["intervals"]["test"]
    gap = values["intervals"]["difference"]["accuracy"]
    assert read["gain"] == {"mean": gap["value"], "low": gap["low"], "high": gap["high"]}
    assert gap["value"] == pytest.approx(fitted.test.accuracy - fitted.baseline.accuracy)
    assert list(read["test"]) == [
        *("accuracy", "balanced_accuracy", "macro_f1", "log_loss"),
        *("top5_accuracy", "calibration_error"),
    ]
    told = json.loads(json.dumps(fitted.to_json()))
    for key in ("test", "baseline_test", "intervals", "calibration"):
        assert told[key] == values[key]
    card = (fitted.folder / "README.md").read_text("utf-8")
    assert "| average of the weights | decay 0.5000 | decay 0.5000 |\n" in card
    assert "the plan of trial 1, as asked for:" in card


def test_the_report_shows_the_images_of_the_test_split(
    opened: OpenStudy, fitted: RefitResult
) -> None:
    results = StudyResults.from_study(opened.study, opened.files.artifacts)
    found = find_image_results(results)
    assert found is not None
    assert (found.split, found.network) == ("test", "the refitted plan of trial 1")
    assert len(found.predictions) == fitted.test_images
    assert found.correct / fitted.test_images == pytest.approx(fitted.test.accuracy)
    right = sum(recall.baseline_correct or 0 for recall in found.recalls)
    assert right / fitted.test_images == pytest.approx(fitted.baseline.accuracy)
    assert len(found.tiles) == len(found.heat_maps) == WORST
    splits = {row["split"] for row in csv.DictReader(predictions_csv(results).splitlines())}
    assert splits == {"test", "validation"}


def test_settings_of_a_call_come_before_those_of_the_study(
    opened: OpenStudy, tmp_path: Path
) -> None:
    found = refit_study(
        opened, trial=0, folder=tmp_path, settings=RefitConfig(views="study", ema="off")
    )
    assert (found.summary.ema, found.summary.views) == (None, 2)
    assert found.comparison.difference["accuracy"].value == 0.0  # the baseline is one training


def test_a_full_disk_leaves_the_old_model_and_the_read_counts(
    opened: OpenStudy, fitted: RefitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, reads = contents(fitted.folder), len(opened.study.user_attrs[attrs.TEST_READS])

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fit_module, "write_model_card", full)
    with pytest.raises(DiskFullError):
        refit_study(opened, trial=0)
    assert contents(fitted.folder) == before
    assert len(opened.study.user_attrs[attrs.TEST_READS]) == reads + 1
    assert load_model(fitted.folder).classes


def test_what_is_stopped_in_training_has_read_nothing_and_continues(
    opened: OpenStudy, fitted: RefitResult, tmp_path: Path
) -> None:
    """What has ended is not trained again, and the other one continues from its last epoch."""
    before, reads = contents(fitted.folder), len(opened.study.user_attrs[attrs.TEST_READS])
    settings = RefitConfig(views="study", ema=0.25)
    events: list[Event] = []

    def stop_in_the_last_epoch(event: Event) -> None:
        if event.get("training") == "baseline" and event.get("epoch") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit_study(opened, 1, on_event=stop_in_the_last_epoch, settings=settings)
    assert contents(fitted.folder) == before
    assert len(opened.study.user_attrs[attrs.TEST_READS]) == reads
    found = refit_study(opened, 1, tmp_path / "a", events.append, settings=settings)
    epochs = [(one["training"], one["epoch"]) for one in events if one["event"] == "epoch"]
    assert epochs == [("baseline", 2)]
    assert found.summary.epochs == found.baseline_summary.epochs == 2
    assert set(found.epochs()["plan"]) == {"baseline", "trial 1"}
    events.clear()
    refit_study(opened, 0, tmp_path / "b", events.append, settings=settings)
    results = [one for one in events if one["event"] == "result"]
    assert [(one["training"], one["is_cached"]) for one in results] == [("baseline", True)]
