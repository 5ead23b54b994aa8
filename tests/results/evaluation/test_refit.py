"""The final fit: what is remembered of it, and what is left when it is cut off."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from autotune.config.schema import RefitConfig
from autotune.errors import BackboneError, DiskFullError, UserError
from autotune.models.pretrained.state_dict import load_weights
from autotune.results.diagnosis.headline import describe_refit
from autotune.results.evaluation import combination as combination_module
from autotune.results.evaluation import refit as fit_module
from autotune.results.evaluation.ensemble_selection import EnsembleChoice
from autotune.results.evaluation.refit import RefitResult, refit_study
from autotune.results.model.export import FORMATS, export
from autotune.results.model.model_folder import load_model
from autotune.results.report.images import find_image_results, predictions_csv
from autotune.results.study_results import StudyResults
from autotune.results.values.speed import describe_speed
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.predictions import WORST
from autotune.training.metrics import Metrics
from tests.support.commands.inline import Event, plots_not_drawn, run
from tests.support.commands.inside import contents
from tests.support.study.small import open_small


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    made = open_small(
        tmp_path_factory.mktemp("fit"),
        data__test=0.1,
        search__trials=2,
        training__num_views=2,
        refit__ema=0.5,
        refit__views="online",
    )
    run(made)
    return made


@pytest.fixture(autouse=True)
def plots_drawn_once() -> Iterator[None]:
    """Draw the plots of the model that the module shares, and of no other one."""
    with plots_not_drawn():
        yield


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
    for name in ("confusion_matrix.png", "learning_curve.png", "reliability.png"):
        with Image.open(fitted.folder / name) as plot:
            assert min(plot.size) > 100


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
    events.clear()
    refit_study(opened, 0, tmp_path / "b", events.append, settings=settings)
    results = [one for one in events if one["event"] == "result"]
    assert [(one["training"], one["is_cached"]) for one in results] == [("baseline", True)]


def test_an_ensemble_is_one_model(
    opened: OpenStudy, fitted: RefitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are those of the module that is loaded; the study keeps those of the plan."""
    scores = Metrics(0.5, 0.5, 0.5, 1.0)
    choice = EnsembleChoice({1: 2, 0: 1}, scores, replace(scores, log_loss=0.9), 2)
    monkeypatch.setattr(fit_module, "select_ensemble", lambda *args: choice)
    made = refit_study(opened, 1, tmp_path, combine="ensemble")
    combination = made.combination
    assert combination is not None and combination.is_used
    assert made.name == "the ensemble of trials 1 (weight 2) and 0"
    assert [one.name for one in combination.models] == ["baseline", "trial 1", "ensemble"]
    assert [one.weight for one in combination.members] == [2, 1]
    baseline, single, ensemble = combination.models
    assert ensemble.parameters == baseline.parameters + single.parameters
    assert single.scores.values == fitted.comparison.model.values and not single.gain
    assert ensemble.scores.values == made.comparison.model.values
    gap = ensemble.gain["log_loss"]
    assert gap.low <= gap.value <= gap.high
    assert "log loss 1.0000 → 0.9000" in combination.decision
    model, alone = load_model(tmp_path), load_model(fitted.folder)
    other = made.combination.members[1].plan
    assert [spec.plan for _, spec in model.model_spec.members] == [fitted.plan, other]
    images = torch.randn(3, 3, 16, 16)
    second = model.network.members[1]
    expected = (2 * alone.probabilities(images) + second(images).softmax(dim=1)) / 3
    torch.testing.assert_close(model.probabilities(images), expected)
    read = opened.study.user_attrs[attrs.TEST_READS][-1]
    assert read["test"] == fitted.comparison.model.values
    assert read["combination"]["name"] == made.name
    assert read["combination"]["test"] == ensemble.scores.values
    card = (tmp_path / "README.md").read_text("utf-8")
    assert f"Classifies images into 10 classes: {made.name}, trained by autotune." in card
    assert "## Combination" in card and "| trial 1 | 2 | " in card
    results = StudyResults.from_study(opened.study, opened.files.artifacts)
    found = find_image_results(results)
    assert found is not None and found.network == made.name
    assert f"The model in the folder, {made.name}, has " in describe_refit(results)
    with pytest.raises(UserError, match="the model is an ensemble of 2 networks"):
        export(model, FORMATS["timm"], tmp_path / "timm", images)
    assert export(model, FORMATS["torch-export"], tmp_path / "model.pt2", images).is_equal
    with pytest.raises(BackboneError, match="is an ensemble of 2 networks, and a study starts"):
        load_weights(alone.network.backbone, tmp_path, "test_resnet", set)


@pytest.mark.slow
@pytest.mark.parametrize("agrees", [True, False])
def test_a_soup_is_made_where_the_validation_split_agrees(
    opened: OpenStudy,
    fitted: RefitResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    agrees: bool,
) -> None:
    events: list[Event] = []
    calls = iter([(0.5, 0.0), (1.0, 0.0)] if agrees else [(0.5, 0.0), (0.5, 0.0)])
    monkeypatch.setattr(combination_module, "rank_metrics", lambda *args: next(calls))
    made = refit_study(opened, 1, tmp_path, events.append, combine="soup", members=2)
    trained = [one["training"] for one in events if one["event"] == "result"]
    rehearsed = ["trial 1, training split", "seed 1, training split"]
    assert trained[:2] == rehearsed and ("seed 1" in trained) == agrees
    assert made.combination is not None and made.combination.is_used == agrees
    assert made.combination.decision.startswith("Soup of 2" if agrees else "No soup: ")
    assert len(made.combination.models) == 2 + agrees
    scores = made.combination.models[-1].scores.values
    assert (scores == fitted.comparison.model.values) == (not agrees)
    model, alone = load_model(tmp_path), load_model(fitted.folder)
    assert model.model_spec == alone.model_spec
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(model(images), alone(images)) == (not agrees)


@pytest.mark.slow
def test_a_student_learns_from_an_ensemble(
    opened: OpenStudy, fitted: RefitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Metrics(0.5, 0.5, 0.5, 1.0)
    choice = EnsembleChoice({1: 1, 0: 1}, scores, scores, 2)
    monkeypatch.setattr(fit_module, "select_ensemble", lambda *args: choice)
    made = refit_study(opened, 1, tmp_path, combine="distill")
    assert made.combination is not None
    names = [one.name for one in made.combination.models]
    assert names == ["baseline", "trial 1", "ensemble", "distilled"]
    single, _, student = made.combination.models[1:]
    assert student.parameters == single.parameters
    assert student.scores.values == made.comparison.model.values != single.scores.values
    assert load_model(tmp_path).model_spec == load_model(fitted.folder).model_spec


@pytest.mark.parametrize(
    ("kind", "members", "what"),
    [
        ("ensembel", None, "did you mean 'ensemble'"),
        ("soup", 1, "at least 2 networks"),
        ("none", 3, "add --combine ensemble"),
    ],
)
def test_a_combination_that_cannot_be(
    opened: OpenStudy, kind: str, members: int | None, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        refit_study(opened, 1, combine=kind, members=members)


def test_files_of_something_else_are_not_replaced(opened: OpenStudy, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(UserError, match=r"has a README\.md and no record\.json; name another"):
        refit_study(opened, 0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_reshaped_network_is_timed_against_the_baseline(tmp_path: Path) -> None:
    made = open_small(
        tmp_path, search__trials=2, space__trainable_layers=1, space__layers__width=0.5
    )
    run(made)
    result = refit_study(made, trial=1)
    assert result.plan.reshaped and result.speed is not None
    assert result.speed.ratio.low <= result.speed.ratio.value <= result.speed.ratio.high
    (read,) = made.study.user_attrs[attrs.TEST_READS]
    record = json.loads((result.folder / "record.json").read_text("utf-8"))
    assert read["speed"] == record["speed"] == json.loads(json.dumps(result.speed.to_json()))
    text = describe_speed(read["speed"])
    assert describe_refit(StudyResults.from_study(made.study)).endswith(text)
    assert text in (result.folder / "README.md").read_text("utf-8")


def test_the_baseline_is_not_timed_against_itself(opened: OpenStudy, tmp_path: Path) -> None:
    result = refit_study(opened, trial=0, folder=tmp_path)
    assert result.is_baseline and result.speed is None
    assert "speed" not in opened.study.user_attrs[attrs.TEST_READS][-1]
