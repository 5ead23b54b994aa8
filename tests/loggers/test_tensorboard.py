"""What TensorBoard reads of the trials of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.events import Event
from autotune.loggers import TensorBoard
from autotune.storage.paths import StudyPaths
from tests.support.study.events import ODD, epoch, first_run, second_run, started, study_started

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def log(*events: Event, folder: Path | None = None) -> None:
    logger = TensorBoard(folder)
    for event in events:
        logger(event)


def read(folder: Path) -> Any:
    runs = accumulator.EventAccumulator(str(folder))
    runs.Reload()
    return runs


def curve(folder: Path, name: str = "accuracy") -> list[tuple[int, float]]:
    return [(one.step, round(one.value, 4)) for one in read(folder).Scalars(name)]


def test_trials_have_curves_plans_and_parameters(tmp_path: Path) -> None:
    log(*first_run(tmp_path))
    log(*second_run(tmp_path))
    root = StudyPaths(tmp_path).tensorboard(ODD)
    assert {path.name for path in root.iterdir()} == {"trial-0000", "trial-0001", "trial-0003"}
    assert curve(root / "trial-0000") == [(1, 0.5), (2, 0.7)]
    assert curve(root / "trial-0001") == [(1, 0.4), (2, 0.8)]  # trial 2 continues it
    assert curve(root / "trial-0001", "training_loss") == [(1, 1.0), (2, 0.5)]
    assert "validation_loss" not in read(root / "trial-0001").Tags()["scalars"]  # unknown
    for number, state in ((0, "complete"), (1, "pruned"), (3, "infeasible")):
        metadata = read(root / f"trial-{number:04d}").SummaryMetadata(
            "_hparams_/session_start_info"
        )
        content = metadata.plugin_data.content
        assert b"training.lr" in content and state.encode() in content
        assert (b"layer" in content) == (number == 1)
    assert read(root / "trial-0000").Tags()["tensors"] == ["plan/text_summary"]


def test_epochs_that_are_trained_again_replace_those_before(tmp_path: Path) -> None:
    """Without its checkpoint, a trial starts anew on another machine."""
    begun = (study_started(tmp_path), started(1), epoch(1, 1, 0.4), epoch(1, 2, 0.5))
    log(*begun, folder=tmp_path / "own")
    log(
        begun[0],
        started(2, first=1, epoch=2),
        *(epoch(2, n, n / 10, first=1) for n in (1, 2, 3)),
        folder=tmp_path / "own",
    )
    name = StudyPaths(tmp_path).tensorboard(ODD).name
    assert curve(tmp_path / "own" / name / "trial-0001") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path / "own")
    logger(study_started(tmp_path))
    (tmp_path / "own").write_text("in the way")
    logger(started(0))
    with pytest.raises(OSError, match="own"):
        logger(epoch(0, 1, 0.5))
    (tmp_path / "own").unlink()
    logger(epoch(0, 2, 0.7))
    (folder,) = (tmp_path / "own").glob("*/trial-0000")
    assert curve(folder) == [(2, 0.7)]
