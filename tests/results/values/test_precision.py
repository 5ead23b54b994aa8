"""In which precision trials computed: on the report, and where one is trained again."""

from __future__ import annotations

import pytest
from optuna.trial import create_trial

from autotune.results.report.markdown import render_markdown
from autotune.results.study_results import StudyResults
from autotune.results.values.precision import describe_precision, describe_precisions
from autotune.study.state import attrs
from tests.support.pages.page import page_of
from tests.support.study.studies import make_study

KEPT = ["stem.conv1", "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1"]


@pytest.mark.parametrize(
    ("half", "float32", "kept", "text"),
    [
        ("off", "ieee", [], "float32"),
        ("off", "tf32", [], "float32 with products in TF32"),
        ("bf16", "ieee", [], "bf16, the rest in float32"),
        ("fp16", "tf32", [], "fp16, the rest in float32 with products in TF32"),
        (
            *("bf16", "ieee", KEPT[:1]),
            "bf16, the rest in float32, 1 layer of it where bf16 is slow or wrong on that "
            "machine: stem.conv1",
        ),
        (
            *("bf16", "ieee", KEPT),
            "bf16, the rest in float32, 4 layers of it where bf16 is slow or wrong on that "
            "machine: stem.conv1, layer4.0.conv1, layer4.0.conv2 and others",
        ),
    ],
)
def test_describe_precision(half: str, float32: str, kept: list[str], text: str) -> None:
    assert describe_precision({"half": half, "float32": float32, "kept": kept}) == text


def test_the_report_says_what_the_trials_computed_in() -> None:
    study = make_study(trials=1)
    assert "Precision" not in page_of(study).of("h3")  # trials of older studies recorded none
    bf16 = {"half": "bf16", "float32": "tf32"}
    for device, compute in (
        *[("NVIDIA <H200>", bf16)] * 2,
        ("cpu", {"half": "bf16", "float32": "ieee", "kept": KEPT}),
        ("cpu", None),
    ):
        attributes = {attrs.DEVICE: device, attrs.COMPUTE: compute}
        study.add_trial(create_trial(value=0.5, user_attrs=attributes))
    lines = (
        "2 trials on NVIDIA <H200>: bf16, the rest in float32 with products in TF32",
        "1 trial on cpu: bf16, the rest in float32 (some layers are left in float32)",
    )
    assert describe_precisions(study.trials) == lines
    assert [text for text in page_of(study).of("li") if text in lines] == list(lines)
    results = StudyResults.from_study(study)
    assert "- 1 trial on cpu: bf16, the rest in float32" in render_markdown(results)
