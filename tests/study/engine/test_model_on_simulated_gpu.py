"""A model that was refitted on a simulated GPU: confirmed, reproduced, exported, used."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import autotune as package
from autotune.results.evaluation.confirm import confirm_plans
from autotune.results.evaluation.refit import RefitResult, refit_study
from autotune.results.evaluation.reproduce import reproduce_trial
from autotune.results.model.export import FORMATS, export, random_images
from autotune.results.model.prediction import predict_files
from autotune.study.setup.opening import OpenStudy
from tests.study.engine.test_on_simulated_gpu import opened_study, search
from tests.support.commands.runs import autotune
from tests.support.simulated_gpu import simulated_gpu
from tests.support.simulated_gpu.process import faults_of, simulated_environment


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    """A study that was searched on the device."""
    folder = tmp_path_factory.mktemp("searched")
    made = opened_study(
        folder, training__precision="bf16", space__trainable_layers=2, refit__ema=0.9
    )
    search(made)
    return made


@pytest.fixture(scope="module")
def fitted(handle: OpenStudy) -> RefitResult:
    with simulated_gpu():
        return refit_study(handle, trial=1)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Files of images that are no part of the study."""
    drawn = np.random.default_rng(0).integers(0, 256, (4, 20, 20), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(len(drawn))]
    for path, pixels in zip(paths, drawn, strict=True):
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


@pytest.mark.slow
def test_a_model_is_fitted_and_measured(fitted: RefitResult) -> None:
    assert math.isfinite(fitted.test.log_loss) and math.isfinite(fitted.baseline.log_loss)


@pytest.mark.slow
def test_a_fitted_model_predicts_on_the_device(fitted: RefitResult, images: list[str]) -> None:
    def probabilities(model: Any) -> Tensor:
        batches = predict_files(model, images, 2)
        return torch.stack([one.probabilities for batch in batches for one in batch])

    here = probabilities(package.load(fitted.folder))
    with simulated_gpu() as gpu:
        model = package.load(fitted.folder).to("cuda")
        assert {one.device for one in model.parameters()} == {torch.device("cuda", 0)}
        there = probabilities(model)
        assert gpu.traffic.operations
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
        features = torch.rand(2, 3, model.spec.size, model.spec.size, device="cuda")
        model(features).sum().backward()
        model.to("cpu")
        torch.testing.assert_close(probabilities(model), here)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_fitted_model_is_exported(tmp_path: Path, fitted: RefitResult, form: str) -> None:
    """Exporting is the CPU's, on a machine with a GPU too."""
    with simulated_gpu() as gpu:
        model = package.load(fitted.folder)
        parity = export(model, FORMATS[form], tmp_path / "exported", random_images(model, 4))
        assert parity.same_class == parity.images
        assert gpu.traffic.operations == 0


@pytest.mark.slow
def test_plans_are_confirmed(handle: OpenStudy) -> None:
    with simulated_gpu():
        confirmation = confirm_plans(handle, top=1, seeds=2)
    assert confirmation.trained == 4
    assert all(value is not None for value in confirmation.plans[0].values)


@pytest.mark.slow
def test_a_rerun_has_the_same_values(handle: OpenStudy) -> None:
    with simulated_gpu():
        again = reproduce_trial(handle, 1)
    assert again.first_difference is None and again.changes == ()


@pytest.mark.slow
def test_the_command_predicts_on_the_device(
    tmp_path: Path, fitted: RefitResult, images: list[str]
) -> None:
    ended = autotune(
        *("predict", str(fitted.folder), *images, "--output", "out.csv"),
        cwd=tmp_path,
        **simulated_environment(tmp_path),
    )
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "out.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(images)
    assert faults_of(tmp_path) == ""
