"""The model card: what a refitted model is and how good it is, for a reader of its folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.study import StudyDirection

from autotune.models.backbone import Backbone
from autotune.models.pretrained.names import PACKAGED_WEIGHTS, resolve, split_source
from autotune.plan import TrialPlan
from autotune.results.evaluation.bootstrap import Bin
from autotune.results.model.model_folder import CARD
from autotune.results.values.markdown import escape, table
from autotune.results.values.objective import Objective
from autotune.results.values.speed import describe_speed
from autotune.text import as_cell

MATRIX, RELIABILITY = "confusion_matrix.csv", "reliability.png"
#: Most classes whose recall is listed; the matrix beside the card has all.
LISTED_CLASSES = 100
_METRICS = {
    "accuracy": "accuracy (top-1)",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
_VIEWS = {"online": "a new one in every epoch", 1: "1, not augmented"}
_CARD = """\
---
library_name: autotune
pipeline_tag: image-classification
---

# {study}

Classifies images into {count} classes: {what}.

{remarks}## Scores

Measured on {images} images of {dataset} that were used neither by the search nor by the training;
trained on {train_images} others. {reads}

{scores}

The baseline is the unchanged backbone with a linear head, trained as this model was. In brackets:
95 % bootstrap intervals over the test images; those of the gain are paired. They say how far other
images would change a score, not how far another training would. Log loss (in nats) and calibration
error are better when lower; a gain is positive where this model is better.

{difference}

{combination}![Confusion matrix of the test split](confusion_matrix.png)

Recall of each class:

{recalls}

## Calibration

Images that were classified with about the same probability, and the share of them that is correct.
The calibration error is the mean gap between the last two columns over all images; with few images
it is overestimated.

![Share of correct predictions by probability](reliability.png)

{calibration}

## Training

{training}

## Model

{model}

## Usage

    autotune predict THIS_FOLDER photos/ -o classes.csv
    autotune export THIS_FOLDER --format onnx

In Python `autotune.load('THIS_FOLDER').predict(['a.jpg', 'b.jpg'])` returns the probabilities of
the classes.

## Licenses

{license}

The images that it was trained on have terms of their own.
"""


def weights_origin(backbone: Backbone, weights: str) -> dict[str, str]:
    """Return where the weights of a backbone come from, and their license.

    Args:
        backbone: The backbone, as it was loaded.
        weights: The value of the study file: ``hub``, ``none`` or a file.

    Returns:
        ``weights`` (``hub``, ``package``, ``shipped``, ``file`` or ``none``) and
        ``hash``; for the hub also ``source`` and ``licence`` where timm states them, for a package
        both.
    """
    kind = weights if weights in ("hub", "none") else "file"
    origin = {"hash": backbone.weights_hash}
    if backbone.package:
        origin |= {"source": f"the package {backbone.package}", "licence": "apache-2.0"}
        return {"weights": "package", **origin}
    if kind == "hub" and split_source(backbone.name) is not None:
        return {"weights": "hub", **origin, "source": backbone.name}
    if kind == "hub" and resolve(backbone.name) in PACKAGED_WEIGHTS:
        return {"weights": "shipped", **origin, "licence": "apache-2.0"}
    if kind == "hub":
        stated: Mapping[str, Any] = getattr(backbone.pretrained, "pretrained_cfg", {})
        source = stated.get("hf_hub_id") or stated.get("url")
        values = {"source": source, "licence": stated.get("license")}
        origin |= {key: str(value) for key, value in values.items() if value}
    return {"weights": kind, **origin}


def write_model_card(
    folder: Path, record: Mapping[str, Any], matrix: npt.NDArray[np.int64], bins: Sequence[Bin]
) -> None:
    """Write the card of a model, its confusion matrix as CSV and its reliability diagram.

    Args:
        folder: The folder of the model.
        record: What :func:`~autotune.results.model.model_folder.save_model` returned.
        matrix: Counts on the test split ``(classes, classes)``; rows are true.
        bins: Calibration on the test split.
    """
    with (folder / MATRIX).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true \\ predicted", *map(as_cell, record["classes"])])
        for name, row in zip(record["classes"], matrix.tolist(), strict=True):
            writer.writerow([as_cell(name), *row])
    _draw_reliability(folder / RELIABILITY, bins)
    (folder / CARD).write_text(model_card(record, matrix), "utf-8")


def model_card(record: Mapping[str, Any], matrix: npt.NDArray[np.int64]) -> str:
    """Return the card of a model as Markdown, with the front matter of the Hugging Face hub."""
    plan = TrialPlan.from_json(record["plan"])
    preprocessing = record["preprocessing"]
    origins = {plan.backbone: record["pretrained"], **record.get("other_pretrained", {})}
    reads = record["times_the_test_part_was_read"]
    often = "once." if reads == 1 else f"{reads} times; scores that were chosen by are optimistic."
    if record["is_baseline"]:
        difference = "This model is the baseline."
    else:
        difference = describe_difference(record["objective"], record["intervals"]["difference"])
    if speed := record.get("speed"):
        difference = f"{difference}\n\n{describe_speed(speed)}"
    model = [
        ("parameters", f"{record['parameters']:,}"),
        ("input", " x ".join(map(str, preprocessing["input_size"]))),
        (
            "resized with",
            f"{preprocessing['interpolation']}, then cropped to a share of "
            f"{preprocessing['crop_pct']:g} ({preprocessing['crop_mode']})",
        ),
        *(
            (title, ", ".join(f"{value:g}" for value in preprocessing[key]))
            for title, key in (("mean", "mean"), ("standard deviation", "std"))
        ),
        ("made with", ", ".join(" ".join(item) for item in record["versions"].items())),
    ]
    return _CARD.format(
        study=escape(record["study"]),
        count=len(record["classes"]),
        what=_what(record, plan),
        remarks="".join(f"{remark}\n\n" for remark in record["remarks"]),
        images=record["test"]["images"],
        dataset=escape(record["dataset"]),
        train_images=record["trained_on"]["images"],
        reads=f"The test split was read {often}",
        scores=_scores(record),
        difference=difference,
        combination=_combination(record),
        recalls=_recalls(record["classes"], matrix),
        calibration=_calibration(record["calibration"]["test"]),
        training=table(("", "this model", "baseline"), _training(record)),
        model=table(("", ""), model),
        license="\n".join(_license(name, origin) for name, origin in origins.items()),
    )


def _what(record: Mapping[str, Any], plan: TrialPlan) -> str:
    """Say in a sentence without its end what the model is."""
    chosen, combination = record["chosen"], record.get("combination") or {}
    if combination.get("is_used"):
        compared = f"The single plan beside it is that of {chosen}"
        return f"{combination['name']}, trained by autotune. {compared}"
    how = f"trained by autotune with the plan of {chosen}"
    return f"{plan.backbone}, {how}:\n{plan.describe()}"


def _combination(record: Mapping[str, Any]) -> str:
    """List the members of a combination, and all models that were measured with it."""
    combination = record.get("combination")
    if not combination:
        return ""
    members = [
        (f"trial {each['trial']}", str(each["weight"]), escape(plan.backbone), plan.describe())
        for each in combination["members"]
        for plan in [TrialPlan.from_json(each["plan"])]
    ]
    metric = record["objective"]
    models = []
    for each in combination["models"]:
        gain, difference = "", each["difference_to_single"].get(metric)
        if difference:
            value, *ends = _objective(metric).gain_interval(difference)
            low, high = (_signed(metric, end) for end in ends)
            gain = f"{_signed(metric, value)} ({low} to {high})"
        scores = [_score(name, each["test"][name]) for name in dict.fromkeys((metric, "log_loss"))]
        costs = f"{each['parameters']:,}", f"{each['latency_ms']:.2f} ms"
        models.append((each["name"], *scores, gain, *costs))
    titles = [_METRICS[name] for name in dict.fromkeys((metric, "log_loss"))]
    costs = ("parameters", f"latency, {combination['device']}")
    head = ("", *titles, "gain over the single plan", *costs)
    return (
        f"## Combination\n\n{combination['decision']}\n\n"
        f"{table(('member', 'weight', 'backbone', 'plan'), members)}\n\n"
        "On the test split; the gain is paired, with its 95 % interval, and the latency is of one "
        f"image:\n\n{table(head, models)}\n\n"
    )


def describe_difference(metric: str, differences: Mapping[str, Mapping[str, float]]) -> str:
    """Say in a sentence whether the test split shows a difference to the baseline.

    Args:
        metric: The metric that the study optimizes.
        differences: ``value``, ``low`` and ``high`` of each metric, model minus baseline.
    """
    score = _objective(metric)
    gain, low, high = score.gain_interval(differences[metric])
    value, start, end = (_signed(metric, number) for number in (gain, low, high))
    unit = " points" if score.is_share else ""
    text = f"The gain in {_METRICS[metric]} over the baseline is {value}{unit} "
    text += f"(95 % interval {start} to {end})"
    if low <= 0.0 <= high:
        return (
            f"{text}. The interval includes 0: the test split does not show that one of the two "
            "is better."
        )
    return f"{text}: this model is {'better' if gain > 0 else 'worse'}."


def _objective(metric: str) -> Objective:
    return Objective("", StudyDirection.MAXIMIZE, decimals=2).with_name(metric)


def _scores(record: Mapping[str, Any]) -> str:
    intervals = record["intervals"]
    rows = []
    for name, label in _METRICS.items():
        if name not in record["test"]:
            continue
        cells = [
            f"{_score(name, record[scores][name])} "
            f"({' to '.join(_score(name, end) for end in intervals[key][name])})"
            for scores, key in (("test", "test"), ("baseline_test", "baseline"))
        ]
        gain = _objective(name).gain_interval(intervals["difference"][name])
        value, low, high = (_signed(name, number) for number in gain)
        rows.append((label, *cells, f"{value} ({low} to {high})"))
    return table(("", "this model", "baseline", "gain"), rows)


def _calibration(bins: Sequence[Mapping[str, Any]]) -> str:
    cells = "{low:.0%} to {high:.0%}", "{images}", "{probability:.1%}", "{accuracy:.1%}"
    rows = [tuple(cell.format(**b) for cell in cells) for b in bins if b["images"]]
    return table(("probability", "images", "mean probability", "correct"), rows)


def _training(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    formats: dict[str, tuple[str, Callable[[Any], str]]] = {
        "images": ("images (training and validation split)", str),
        "views": ("views of each image", lambda views: _VIEWS.get(views, str(views))),
        "epochs": ("epochs", str),
        "ema": ("average of the weights", lambda ema: f"decay {ema:.4f}" if ema else "none"),
        "part": ("images at a time", str),
        "seconds": ("seconds", lambda seconds: f"{seconds:.0f}"),
    }
    both = (record["trained_on"], record["baseline_trained_on"])
    return [
        (label, *(write(summary[key]) for summary in both))
        for key, (label, write) in formats.items()
    ]


def _recalls(classes: list[str], matrix: npt.NDArray[np.int64]) -> str:
    """List the recall of every class, worst first."""
    counts = matrix.sum(axis=1)
    recalls = matrix.diagonal() / np.maximum(1, counts)
    order = np.argsort(recalls, kind="stable")[:LISTED_CLASSES]
    rows = [(classes[i], str(counts[i]), f"{recalls[i]:.1%}") for i in order]
    more = len(classes) - len(rows)
    rest = f"\n\n{more} more classes are in `{MATRIX}`." if more else ""
    return table(("class", "images", "recall"), rows) + rest


def _license(name: str, pretrained: Mapping[str, str]) -> str:
    source = pretrained.get("source", "the hub")
    origins = {
        "none": "random weights",
        "file": f"the weights of a file (fingerprint {pretrained['hash']}) of unknown license",
        "shipped": "the weights that autotune ships (Apache-2.0)",
        "package": f"the weights of {source} (Apache-2.0)",
        "hub": f"the weights of {source}; timm states {pretrained.get('licence', 'no license')}",
    }
    return f"{name} started from {origins[pretrained['weights']]}."


def _draw_reliability(path: Path, bins: Sequence[Bin]) -> None:
    """Draw the share of correct predictions over the probability of the predicted class."""
    figure = Figure(figsize=(4.5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [b for b in bins if b.images]
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    x, y = [b.probability for b in filled], [b.accuracy for b in filled]
    upper.plot(x, y, marker="o", markersize=4, label="this model")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of correct predictions")
    upper.legend(loc="upper left")
    upper.grid(alpha=0.3)
    edges, heights = [b.low for b in bins], [b.images for b in bins]
    lower.bar(edges, heights, bins[0].high - bins[0].low, align="edge")
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def _score(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "log_loss" else f"{value:.2%}"


def _signed(name: str, value: float) -> str:
    text = f"{value:+.4f}" if name == "log_loss" else f"{100 * value:+.2f}"
    return text.replace("-", "−")
