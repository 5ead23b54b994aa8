"""What autotune can change in every model family of timm; writes docs/coverage.md.

    python benchmarks/coverage.py                   # all families, about half an hour on two cores
    python benchmarks/coverage.py resnet vgg --show # some of them, printed only

For the smallest classification model of every timm model module, with random weights: every depth
is built and its frozen layers are checked, the head is tried, and every kind of change is applied
to all of the last 8 layers that can take it, one kind at a time, followed by a forward pass, a
backward pass and one optimizer step. Changes that claim to preserve the function must do so. Plans
go through JSON. Each family runs in its own process.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from families import each_family, image_size, stir
from torch import nn
from torch.nn import functional

from autotune.errors import PlanError
from autotune.models.backbone import Backbone, data_config
from autotune.models.layers import list_layers
from autotune.models.network import Head, Network, build_network, feature_count
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from autotune.text import error_line

LAST = 8
#: Largest relative change of the features by what should not change them.
TOLERANCE = 1e-4
#: Field of a layer plan -> its values, and whether each should leave the function as it is.
CHANGES: dict[str, dict[Any, bool]] = {
    "kernel": dict.fromkeys((1, 2, 3, 5, 7), False),
    "width": {0.5: False, 0.75: False, 64: False, 1.5: True},
    "bridge": {0.5: False, 1.5: True},
    "activation": {"elu": False},
    "pool": {"avg3": False, "max2": False},
    "dropout": {0.2: True},
    "drop_path": {0.2: True},
}


def check(family: str, name: str) -> dict[str, Any]:
    """Try everything on one model."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    stir(model)
    model.eval().requires_grad_(False)
    backbone = Backbone(name, model, data_config(model, image_size(model)), "")
    layers = list_layers(model)
    start = time.perf_counter()
    offers = cached_capabilities(backbone, layers, min(LAST, len(layers)))[:LAST]
    row: dict[str, Any] = {
        "family": family,
        "model": name,
        "layers": len(layers),
        "offer_s": time.perf_counter() - start,
        "spatial": _spatial(model, layers[:LAST]),
        "offered": {
            field: sum(field not in offer.reasons for offer in offers) for field in CHANGES
        },
        "reasons": {field: _reasons(offers, field) for field in CHANGES},
        "failures": [],
    }
    images = torch.randn(2, *backbone.data_config["input_size"])
    with torch.no_grad():
        features = model(images)
    for title, step in (
        ("depths", lambda: _depths(backbone, layers, images)),
        ("head", lambda: _heads(backbone, images)),
    ):
        try:
            row[title] = step()
        except Exception as error:
            row["failures"].append(f"{title}: {error_line(error)}")
    row["widened"] = None
    for field, changes in CHANGES.items():
        for value, same in changes.items():
            plan = _plan(name, offers, field, value)
            if plan is None:
                continue
            try:
                same = same or (field, value) == ("kernel", 7)
                off = _change(backbone, plan, images, features if same else None)
            except Exception as error:
                row["failures"].append(f"{field} {value}: {error_line(error)}")
                continue
            exact = same and (
                field != "width" or all(group.exact for offer in offers for group in offer.groups)
            )
            if (field, value) == ("kernel", 7):
                sides = [side for one in offers for k in one.convolutions.values() for side in k]
                exact = max(sides) <= 7
            if field == "width" and same:
                row["widened"] = off
            if exact and off is not None and off > TOLERANCE:
                row["failures"].append(f"{field} {value}: features differ by {off:.1e}")
    return row


def _spatial(model: Any, layers: Any) -> bool:
    return any(
        isinstance(module := model.get_submodule(name), nn.Conv2d) and max(module.kernel_size) > 1
        for layer in layers
        for name in layer.modules
    )


def _reasons(offers: Any, field: str) -> list[str]:
    found = [offer.reasons[field] for offer in offers if field in offer.reasons]
    return list(dict.fromkeys(found))


def _plan(name: str, offers: Any, field: str, value: Any) -> Any:
    """Make a plan that changes one field of every layer that can take the value."""
    layers = tuple(
        LayerPlan(**{field: value})
        if not offer.reason_unsupported(field, value) and not offer.is_noop(field, value)
        else LayerPlan()
        for offer in offers
    )
    plan = TrialPlan(name, len(layers), layers)
    if not plan.reshaped:
        return None
    again = TrialPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan, "the plan does not survive JSON"
    return again


def _step(network: Any, images: Any) -> None:
    """Do one optimizer step and check that it went well and touched the trainable part alone."""
    trainable = {name for name, value in network.named_parameters() if value.requires_grad}
    before = {
        name: value.clone()
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    own = {f"backbone.{name}" for layer in network.layers[: network.depth] for name in layer.names}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    loss = functional.cross_entropy(network(images), torch.tensor([0, 1]))
    assert torch.isfinite(loss), "the loss is not finite"
    loss.backward()
    optimizer.step()
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if name not in own and not name.startswith("head."):
            assert torch.equal(value, before[name]), f"{name} is frozen but changed"
    parameters = dict(network.named_parameters())
    assert any(not torch.equal(parameters[name], before[name]) for name in trainable), (
        "no training"
    )


def _depths(backbone: Any, layers: Any, images: Any) -> int:
    """Build every depth; train a step at 0, 1, a middle one and all; return how many there are."""
    features = feature_count(backbone.pretrained, backbone.data_config["input_size"])
    for depth in range(len(layers) + 1):
        module = backbone.fresh() if depth in _trained(layers) else backbone.pretrained
        network = Network(module, list_layers(module), depth, Head(HeadPlan(), features, 3))
        trainable = {n for n, p in network.backbone.named_parameters() if p.requires_grad}
        parameters = dict(network.backbone.named_parameters())
        wanted = {n for layer in layers[:depth] for n in layer.names if n in parameters}
        assert trainable == wanted, f"depth {depth} trains other parameters than its layers have"
        if depth in _trained(layers):
            if 0 < depth < len(layers):
                _prefix(network, images)
            _step(network, images)
    backbone.pretrained.requires_grad_(False)
    backbone.pretrained.eval()
    torch.set_grad_enabled(True)
    return len(layers)


def _trained(layers: Any) -> set[int]:
    return {0, 1, len(layers) // 2, len(layers)}


def _prefix(network: Any, images: Any) -> None:
    """Check that the frozen part gives the same in training as in evaluation, bit by bit."""
    outputs: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    frozen = [
        (name, network.backbone.get_submodule(name))
        for layer in network.layers[network.depth :]
        for name in layer.modules
    ]
    for training, output in outputs.items():
        network.train(training)
        hooks = [
            module.register_forward_hook(_note(name, output))
            for name, module in frozen
            if any(True for _ in module.parameters(recurse=False))
        ]
        with torch.no_grad():
            network(images)
        for hook in hooks:
            hook.remove()
    for name, value in outputs[True].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, outputs[False][name]), f"{name} differs while it is frozen"


def _note(name: str, found: dict[str, Any]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        found.setdefault(name, output.clone() if hasattr(output, "clone") else output)

    return hook


def _heads(backbone: Any, images: Any) -> list[str]:
    """Try heads and poolings; return the poolings that work."""
    works = []
    for pool in ("keep", "avg", "max", "avgmax"):
        hidden = (HiddenLayer(16, 0.1),) * (0 if pool == "keep" else 2)
        plan = TrialPlan(backbone.name, head=HeadPlan(hidden, pool, "gelu", pool != "max"))
        try:
            network = build_network(backbone, plan, 3, 0)
            with torch.no_grad():
                network.eval()(images)
        except PlanError:
            continue
        works.append(pool)
    network = build_network(
        backbone, TrialPlan(backbone.name, head=HeadPlan((HiddenLayer(16),) * 3)), 3, 0
    )
    _step(network, images)
    return works


def _change(backbone: Any, plan: Any, images: Any, features: Any) -> float | None:
    """Apply a plan and train a step; return by how much the features have changed before it."""
    network = build_network(backbone, plan, 3, 0).eval()
    off = None
    if features is not None:
        with torch.no_grad():
            changed = network.backbone(images)
        if changed.shape == features.shape:
            off = float((changed - features).norm() / features.norm())
        if off is not None and off > TOLERANCE:  # rounding, or a mistake?
            doubled = copy.deepcopy(network.backbone).double()
            with torch.no_grad():
                exact = backbone.fresh().double()(images.double())
                off = min(off, float((doubled(images.double()) - exact).norm() / exact.norm()))
    _step(network, images)
    return off


def write(rows: list[dict[str, Any]], without: list[str], path: Path | None) -> str:
    """Make the page."""
    fields = list(CHANGES)
    good = [row for row in rows if "offered" in row]
    works = {field: sum(row["offered"][field] > 0 for row in good) for field in fields}
    spatial = [row for row in good if row["spatial"]]
    failing = [row for row in rows if row["failures"]]
    lines = [
        "# What can be changed in which model",
        "",
        "Made by `python benchmarks/coverage.py` with "
        f"timm {timm.__version__} and torch {torch.__version__.partition('+')[0]}: the smallest "
        "classification model of every",
        "timm model module, random weights. A number says for how many of the "
        f"last {LAST} layers (or",
        "of all, where there are fewer) the change is offered; everything offered was applied, "
        "run forward and backward, and",
        "trained one step. `autotune layers BACKBONE --why` says for any model what each layer "
        "can become, and why not.",
        "",
        f"- Depth 0 to all, freezing (bit by bit, norm statistics included) and the head: "
        f"{sum('depths' in row and 'head' in row for row in rows)} of {len(rows)} families.",
        f"- Width: {works['width']} families. Kernel: {works['kernel']} families, of "
        f"{len(spatial)} that have a spatial convolution in these layers. Bridge: "
        f"{works['bridge']}.",
        f"- Activation: {works['activation']}. Pooling: {works['pool']}. Dropout: "
        f"{works['dropout']}. Drop path: {works['drop_path']}.",
        f"- Something offered that failed: {len(failing)} families.",
        "",
        "*Widened* is the relative change of the features when all these layers get 1.5 times "
        "their channels with inherited",
        "weights: rounding where the function is preserved, more where a norm or a mean over the "
        "changed channels sees other",
        "statistics (~), a dash where the number of features itself changes. Where float32 alone "
        "is off by more than 1e-4, it was",
        "computed again in float64 (halonet amplifies rounding). Modules of timm without a "
        f"classification model: {', '.join(without)}.",
        "",
        f"| family | model | layers | {' | '.join(fields)} | widened | pooling of the head |",
        f"| --- | --- | --- | {' | '.join('---' for _ in fields)} | --- | --- |",
    ]
    for row in rows:
        if "offered" not in row:
            lines.append(f"| {row['family']} | {row['model']} | " + " | " * (len(fields) + 2))
            continue
        of = min(LAST, row["layers"])
        cells = [
            f"{row['offered'][field]}/{of}" if row["offered"][field] else "" for field in fields
        ]
        widened = "" if not row["offered"]["width"] else "-"
        if row["widened"] is not None:
            widened = f"{'' if row['widened'] < TOLERANCE else '~'}{row['widened']:.0e}"
        heads = " ".join(row.get("head", ["failed"]))
        lines.append(
            f"| {row['family']} | {row['model']} | {row['layers']} | {' | '.join(cells)} | "
            f"{widened} | {heads} |"
        )
    lines += ["", "## Why some layers keep their width or kernel", ""]
    for row in good:
        of = min(LAST, row["layers"])
        for field in ("width", "kernel"):
            reasons = row["reasons"][field]
            missing = [one for one in reasons if one != "it has no spatial convolution"]
            if missing and row["offered"][field] < of:
                lines.append(f"- {row['family']}, {field}: {'; '.join(missing[:3])}")
    if failing:
        lines += ["", "## What failed", ""]
        lines += [
            f"- {row['family']} ({row['model']}): {one}"
            for row in failing
            for one in row["failures"]
        ]
    text = "\n".join(lines) + "\n"
    if path is not None:
        path.write_text(text, encoding="utf-8")
    return text


def main() -> None:
    rows, without, show = each_family(__doc__, check, {})
    page = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
    print(write(rows, without, None if show else page))


if __name__ == "__main__":
    main()
