"""The model card: what a fitted model is and how good, for whoever finds its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.models.backbone import PACKAGED_WEIGHTS, Backbone
from autotune.plan import TrialPlan
from autotune.results.model.model import write_text
from autotune.text import as_cell, visible

CARD, MATRIX = "README.md", "confusion_matrix.csv"
#: Classes whose recall is listed; the matrix beside the card has those of all.
LISTED_CLASSES = 100
_METRICS = {
    "accuracy": "accuracy (top-1)",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}


def weights_origin(backbone: Backbone, weights: str) -> dict[str, str]:
    """Say where the weights of a backbone come from, and under which licence.

    Args:
        backbone: The backbone, as it was loaded.
        weights: What the study file says: ``hub``, ``none`` or a file.

    Returns:
        ``weights`` (``hub``, ``shipped``, ``file`` or ``none``) and ``hash``, for the hub
        ``source`` and ``licence`` where timm states them.
    """
    kind = weights if weights in ("hub", "none") else "file"
    origin = {"hash": backbone.weights_hash}
    if kind == "hub" and backbone.name in PACKAGED_WEIGHTS:
        return {"weights": "shipped", **origin, "licence": "apache-2.0"}
    if kind == "hub":
        stated: Mapping[str, Any] = getattr(backbone.pretrained, "pretrained_cfg", {})
        source = stated.get("hf_hub_id") or stated.get("url")
        found = {"source": source, "licence": stated.get("license")}
        origin |= {key: str(value) for key, value in found.items() if value}
    return {"weights": kind, **origin}


def write_model_card(
    folder: Path, record: Mapping[str, Any], matrix: npt.NDArray[np.int64]
) -> None:
    """Write the card of a model and its confusion matrix as a table.

    Args:
        folder: The folder of the model.
        record: What :func:`~autotune.results.model.model.save_model` returned.
        matrix: ``(classes, classes)`` counts of the test part; rows are true.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["true \\ predicted", *map(as_cell, record["classes"])])
    for name, row in zip(record["classes"], matrix.tolist(), strict=True):
        writer.writerow([as_cell(name), *row])
    write_text(folder / MATRIX, table.getvalue())
    write_text(folder / CARD, model_card(record, matrix))


def model_card(record: Mapping[str, Any], matrix: npt.NDArray[np.int64]) -> str:
    """Return the card of a model as Markdown, with the front matter of the Hugging Face hub."""
    plan = TrialPlan.from_json(record["plan"])
    test = record["test"]
    classes, preprocessing = record["classes"], record["preprocessing"]
    reads = record["times_the_test_part_was_read"]
    versions = ", ".join(f"{name} {one}" for name, one in record["versions"].items())
    sections = [
        "---\nlibrary_name: autotune\npipeline_tag: image-classification\n---",
        f"# {_plain(record['study'])}",
        f"Tells {len(classes)} classes of images apart. {plan.backbone}, trained by autotune with "
        f"the plan of {record['chosen']}: {plan.describe()}.",
        *record["remarks"],
        "## How good",
        f"On {test['images']} images of {_plain(record['dataset'])} that neither the search nor "
        f"the training has seen; trained on {record['trained_on']['images']} others. "
        + _reads_in_words(reads),
        _figures(record),
        "The baseline is the untouched backbone with a linear head, trained as this model was. In "
        "brackets: 95 % bootstrap intervals over the test images; those of the difference are "
        "paired. They say how far other images would change a figure, not how far another "
        "training would. Log loss (in nats) and calibration error are better when lower.",
        "This model is the baseline."
        if record["is_baseline"]
        else describe_difference(record["objective"], record["intervals"]["difference"]),
        "![Confusion matrix of the test part](confusion_matrix.png)",
        *_classes(classes, matrix),
        "## What its probabilities are worth",
        *_reliability(record["calibration"]["test"]),
        "## How it was trained",
        _table(("", "this model", "baseline"), _training(record)),
        "## What it is",
        _table(
            ("", ""),
            [
                ("parameters", f"{record['parameters']:,}"),
                ("input", " x ".join(map(str, preprocessing["input_size"]))),
                ("resized with", f"{preprocessing['interpolation']}, then cropped to a share of "
                 f"{preprocessing['crop_pct']:g} ({preprocessing['crop_mode']})"),
                ("mean", _numbers(preprocessing["mean"])),
                ("standard deviation", _numbers(preprocessing["std"])),
                ("made with", versions),
            ],
        ),
        "## How to use it",
        "    autotune predict THIS_FOLDER photos/ -o classes.csv\n"
        "    autotune export THIS_FOLDER --format onnx\n"
        "In Python `autotune.load('THIS_FOLDER').predict(['a.jpg', 'b.jpg'])` gives the "
        "probabilities of the classes.",
        "## Licences",
        _licence(plan.backbone, record["pretrained"]),
        "The images that it was trained on have terms of their own.",
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def describe_difference(metric: str, differences: Mapping[str, Mapping[str, float]]) -> str:
    """Say in a sentence whether the test part shows a difference to the baseline.

    Args:
        metric: The metric that the study optimises.
        differences: Of each metric ``value``, ``low`` and ``high``, model minus baseline.
    """
    name, found = _METRICS[metric], differences[metric]
    value, low, high = (_signed(metric, found[key]) for key in ("value", "low", "high"))
    unit = "" if metric == "log_loss" else " points"
    known = f"{value}{unit} against the baseline (95 % interval {low} to {high})"
    if found["low"] <= 0.0 <= found["high"]:
        return (
            f"The {name} is {known}. The interval includes 0: the test part does not show that "
            "one of the two is better."
        )
    better = (found["value"] > 0) != (metric == "log_loss")
    return f"The {name} is {known}: this model is {'better' if better else 'worse'}."


def _figures(record: Mapping[str, Any]) -> str:
    intervals = record["intervals"]
    rows = []
    for name, words in _METRICS.items():
        if name not in record["test"]:
            continue
        shown = [
            f"{_figure(name, record[scores][name])} "
            f"[{', '.join(_figure(name, end) for end in intervals[key][name])}]"
            for scores, key in (("test", "test"), ("baseline_test", "baseline"))
        ]
        gap = intervals["difference"][name]
        value, low, high = (_signed(name, gap[key]) for key in ("value", "low", "high"))
        rows.append((words, *shown, f"{value} [{low}, {high}]"))
    return _table(("", "this model", "baseline", "difference"), rows)


def _reliability(bins: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"{one['low']:.0%} to {one['high']:.0%}",
            str(one["images"]),
            f"{one['probability']:.1%}",
            f"{one['accuracy']:.1%}",
        )
        for one in bins
        if one["images"]
    ]
    return [
        "Of the images that were classified with about the same probability, so many are right. "
        "The calibration error is the mean gap of the two last columns over all images; with few "
        "images it comes out too large.",
        "![Share of right answers by probability](reliability.png)",
        _table(("probability", "images", "mean probability", "right"), rows),
    ]


def _training(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    both = (record["trained_on"], record["baseline_trained_on"])

    def row(words: str, key: str, write: Callable[[Any], str]) -> tuple[str, str, str]:
        mine, its = (write(one[key]) for one in both)
        return words, mine, its

    return [
        row("images (training and validation part)", "images", str),
        row("views of each image", "views", _views),
        row("epochs", "epochs", str),
        row("average of the weights", "ema", lambda ema: f"decay {ema:.4f}" if ema else "none"),
        row("images at a time", "part", str),
        row("seconds", "seconds", lambda seconds: f"{seconds:.0f}"),
    ]


def _views(views: int | str) -> str:
    if isinstance(views, str):
        return "a new one in every epoch"
    return "1, not augmented" if views == 1 else str(views)


def _reads_in_words(reads: int) -> str:
    if reads == 1:
        return "The test images were looked at once."
    return (
        f"The test images were looked at {reads} times: whoever chose by that has chosen by these "
        "figures."
    )


def _classes(classes: list[str], matrix: npt.NDArray[np.int64]) -> list[str]:
    """List the recall of every class, worst first."""
    counts = matrix.sum(axis=1)
    recalls = matrix.diagonal() / np.maximum(1, counts)
    order = np.argsort(recalls, kind="stable")[:LISTED_CLASSES]
    rows = [(_plain(classes[i]), str(counts[i]), f"{recalls[i]:.1%}") for i in order]
    more = len(classes) - len(rows)
    left_out = [f"{more} more classes are in `{MATRIX}`."] if more else []
    return ["Recall of each class:", _table(("class", "images", "recall"), rows), *left_out]


def _licence(name: str, pretrained: Mapping[str, str]) -> str:
    kind = pretrained["weights"]
    if kind == "none":
        return f"{name} started from random weights."
    if kind == "file":
        return (
            f"{name} started from the weights of a file (fingerprint {pretrained['hash']}); "
            "their licence is not known here."
        )
    if kind == "shipped":
        return f"{name} started from the weights that autotune ships (Apache-2.0)."
    source = pretrained.get("source", "the hub")
    if "licence" not in pretrained:
        return f"{name} started from the weights of {source}; timm states no licence of them."
    return f"{name} started from the weights of {source}; timm states {pretrained['licence']}."


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "log_loss" else f"{value:.2%}"


def _signed(name: str, value: float) -> str:
    shown = f"{value:+.4f}" if name == "log_loss" else f"{100 * value:+.2f}"
    return shown.replace("-", "−")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Take from a name what Markdown would read as its own, line ends among it."""
    spaced = " ".join(text.split())
    special = "\\`*_{}[]<>#|!"
    return visible("".join(f"\\{one}" if one in special else one for one in spaced))
