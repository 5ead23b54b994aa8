"""Prefix and tail against the whole network, in every model family of timm.

    python benchmarks/split_exactness.py                  # all families, and a report
    python benchmarks/split_exactness.py resnet --show    # some of them, printed only

For the smallest classification model of every timm model module, with random weights and dropped
paths, at depth 0, 2 and 5: how far logits and the gradients of the trainable layers are from those
of the whole network on the same batch with the same random numbers, with the features as they are
and rounded to float16; what crosses; and what it costs to find the cut. Writes a dated report
under ``benchmarks/results/``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from families import each_family, image_size, stir
from reports import date_and_machine, write_report

from autotune.models.backbone import Backbone, data_config
from autotune.models.layers import list_layers
from autotune.models.network import Head, Network, feature_count
from autotune.models.prefix.split import split_network
from autotune.plan import HeadPlan
from autotune.text import error_line

DEPTHS = (0, 2, 5)
#: Images in a batch: another number than :func:`split` learns from or checks with.
COUNT = 4
#: Share of the residual branches that are left out in training, where a model has such.
DROP_PATH = 0.1


def check(family: str, name: str) -> dict[str, Any]:
    """Split one model at every depth."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, num_classes=0, drop_path_rate=DROP_PATH)
    except TypeError:  # it has no such rate
        model = timm.create_model(name, num_classes=0)
    stir(model)
    model.eval().requires_grad_(False)
    backbone = Backbone(name, model, data_config(model, image_size(model)), "")
    row: dict[str, Any] = {"family": family, "model": name, "depths": {}, "failures": []}
    for depth in DEPTHS:
        try:
            row["depths"][str(depth)] = _depth(backbone, depth)
        except Exception as error:
            row["failures"].append(f"depth {depth}: {error_line(error)}")
    return row


def _depth(backbone: Any, depth: int) -> dict[str, Any]:
    """Split a network at one depth and compare."""
    module = backbone.fresh()
    size = backbone.data_config["input_size"]
    layers = list_layers(module)
    head = Head(HeadPlan(), feature_count(module, size), 10)
    network = Network(module, layers, min(depth, len(layers)), head)
    images = torch.randn(COUNT, *size, generator=torch.Generator().manual_seed(1))
    before = _memory(reset=True)
    start, cpu = time.perf_counter(), time.process_time()
    found = split_network(network, images)
    took = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    memory = _memory() - before
    network.attach(found)
    prefix = found.prefix()
    assert prefix is not None
    features = prefix(images)
    rounded = tuple(one.half().to(one) if one.is_floating_point() else one for one in features)
    whole = outcome(network, images)
    bytes_of = [
        torch.Size(shape).numel() * dtype.itemsize
        for shape, dtype in zip(found.shapes, found.dtypes, strict=True)
    ]
    return {
        "layers": len(layers),
        "float32": differences(outcome(network, features), whole),
        "float16": differences(outcome(network, rounded), whole),
        "shapes": found.shapes,
        "bytes": sum(bytes_of),
        "image_bytes": torch.Size(size).numel(),
        "trivial": found.is_trivial,
        "memory_bytes": memory,
        **took,
    }


def _memory(reset: bool = False) -> int:
    """Return the memory of this process in bytes: the highest since the last reset, or now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS" if reset else "VmHWM"].split()[0]) * 1024


def outcome(network: Any, given: Any, autocast: Any = nullcontext) -> Mapping[str, Any]:
    """Evaluate and train on one batch; return logits, gradients and norm statistics.

    Args:
        network: The network; it is left as it was.
        given: Normalised images, or features of them.
        autocast: Makes the context in which the forward pass runs.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad(), autocast():
        logits = network.eval()(given).float()
    network.train()
    torch.manual_seed(2)
    goals = torch.arange(len(logits), device=logits.device) % 10
    with autocast():
        trained = network(given).float()
    torch.nn.functional.cross_entropy(trained, goals).backward()
    trainable = [
        parameter.grad.flatten()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not name.startswith("head.")
    ]
    buffers = [buffer.float().flatten() for buffer in network.buffers()]
    network.zero_grad()
    for one, value in zip(network.buffers(), before, strict=True):
        one.copy_(value)
    return {
        "logits": logits,
        "gradients": torch.cat(trainable) if trainable else torch.zeros(0),
        "statistics": torch.cat(buffers) if buffers else torch.zeros(0),
    }


def differences(found: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, float]:
    """Return relative differences (Frobenius norm)."""
    return {
        key: float((found[key] - value).norm() / value.norm().clamp_min(1e-30))
        for key, value in whole.items()
    }


def report(rows: list[dict[str, Any]], without: list[str]) -> str:
    """Make the page."""
    good = [row for row in rows if row["depths"]]
    found = [one for row in good for one in row["depths"].values()]
    deep = [one for row in good for depth, one in row["depths"].items() if depth != "0"]
    failing = [row for row in rows if row["failures"]]
    tensors = [len(one["shapes"]) for one in deep if not one["trivial"]]
    lines = [
        "# Prefix and tail against the whole network",
        "",
        date_and_machine("torch", "timm"),
        "",
        f"The smallest classification model of {len(rows)} timm model modules, random weights, a "
        f"tenth of the residual branches dropped where a model can; batches of {COUNT} images. "
        "Relative differences (Frobenius norm over all logits, and over the gradients of all "
        "trainable layers) from the whole network on the same batch with the same random numbers; "
        "float16: the crossing tensors rounded to it. Time is that of `split` on one core (CPU "
        "seconds), memory what the process needs beyond what it had before (a process checks "
        "several families, and what one gave back the next can have). Bytes are those of "
        "float32 features of one image, as a multiple of those of the image as it is stored "
        "(uint8).",
        "",
        f"- Split at all of the depths {', '.join(map(str, DEPTHS))}: "
        f"{len(rows) - len(failing)} of {len(rows)} families.",
        f"- Largest difference with float32 features: logits {_worst(found, 'float32', 'logits')},"
        f" gradients {_worst(found, 'float32', 'gradients')}, statistics of norms "
        f"{_worst(found, 'float32', 'statistics')}; equal bit by bit in "
        f"{sum(_exact(one) for one in found)} of {len(found)} cases.",
        f"- With float16 features, median and largest: logits {_median(found, 'logits')} and "
        f"{_worst(found, 'float16', 'logits')}, gradients {_median(deep, 'gradients')} and "
        f"{_worst(deep, 'float16', 'gradients')}.",
        f"- One tensor crosses in {tensors.count(1)} of {len(tensors)} cuts at depth 2 and 5, two "
        f"in {tensors.count(2)}, more in {sum(tensor > 2 for tensor in tensors)}.",
        f"- Time: median {_middle([one['cpu_s'] for one in found]):.2f} s, largest "
        f"{max(one['cpu_s'] for one in found):.2f} s. Memory: median "
        f"{_middle([one['memory_bytes'] for one in found]) / 1e6:.0f} MB, largest "
        f"{max(one['memory_bytes'] for one in found) / 1e6:.0f} MB.",
        f"- Modules of timm without a classification model: {', '.join(without)}.",
        "",
        "| family | model | depth | crosses | bytes | logits | gradients | logits, float16 | "
        "gradients, float16 | time, s | memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in good:
        for depth, one in row["depths"].items():
            shapes = " + ".join("x".join(map(str, shape)) for shape in one["shapes"])
            half = one["float16"]
            lines.append(
                f"| {row['family']} | {row['model']} | {min(int(depth), one['layers'])} of "
                f"{one['layers']} | {shapes}{' (images)' if one['trivial'] else ''} | "
                f"{one['bytes'] / one['image_bytes']:.2g} | {_shown(one['float32']['logits'])} | "
                f"{_shown(one['float32']['gradients'])} | {_shown(half['logits'])} | "
                f"{_shown(half['gradients'])} | {one['cpu_s']:.2f} | "
                f"{one['memory_bytes'] / 1e6:.0f} |"
            )
    if failing:
        lines += ["", "## What cannot be split", ""]
        lines += [
            f"- {row['family']} ({row['model']}): {one}"
            for row in failing
            for one in row["failures"]
        ]
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _worst(found: list[dict[str, Any]], features: str, what: str) -> str:
    return _shown(max(one[features][what] for one in found))


def _median(found: list[dict[str, Any]], what: str) -> str:
    return _shown(_middle([one["float16"][what] for one in found]))


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _exact(one: dict[str, Any]) -> bool:
    return not any(one["float32"].values())


def main() -> None:
    rows, without, show = each_family(__doc__, check, {"depths": {}})
    page = report(rows, without)
    print(page)
    if not show:
        write_report(page, "split-exactness")


if __name__ == "__main__":
    main()
