"""In which precision the trials of a study train: found out once, and remembered."""

from __future__ import annotations

import hashlib
import logging
import socket
from typing import TYPE_CHECKING

import torch

from autotune.data.entry import Writer
from autotune.data.shelf import Shelf
from autotune.models.layers import layers_of
from autotune.models.network import build_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.storage.lock import study_lock
from autotune.study import record
from autotune.training.batches import in_channels_last
from autotune.training.precision import Autocast, faster

if TYPE_CHECKING:
    from autotune.study.material import Material
    from autotune.study.preparing import Workbench

logger = logging.getLogger(__name__)

#: Pixels that go through the network at a time where precisions are compared: eight images of
#: 224 x 224, which take a CPU core a second or two.
_PIXELS = 8 * 224**2
_FEWEST = 4
_FOUND = "precision"


def precision_of(bench: Workbench, material: Material) -> Autocast:
    """Return the precision in which a backbone trains on the device of a worker.

    With ``training.amp: auto`` the first worker that has such a device compares the precisions,
    once for all studies of the machine. The study remembers the outcome, so that all trials of a
    backbone on such devices, and their reruns, compute alike.

    Args:
        bench: What the worker has at hand.
        material: The backbone and its images.
    """
    mode, device = bench.config.training.amp, bench.device
    if mode != "auto":
        return Autocast.of(mode, device)
    study, backbone = bench.opened.study, material.backbone.name
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    known = study.user_attrs.get(record.PRECISION, {}).get(backbone, {}).get(kind)
    if known is None:
        found = _found(bench, material, kind)
        with study_lock(bench.opened.storage, bench.opened.url, bench.opened.name):
            remembered = study.user_attrs.get(record.PRECISION, {})
            known = remembered.get(backbone, {}).get(kind)
            if known is None:
                of_backbone = {**remembered.get(backbone, {}), kind: found}
                study.set_user_attr(record.PRECISION, {**remembered, backbone: of_backbone})
                known = found
    return Autocast.of(known, device)


def _found(bench: Workbench, material: Material, kind: str) -> str:
    """Compare the precisions, or take what was found on this machine before."""
    backbone, size = material.backbone, material.task.spec.size
    depth = min(bench.space.deepest, len(layers_of(backbone.fresh())))
    count = min(bench.config.training.batch_size, max(_FEWEST, _PIXELS // size**2))
    shape = (max(2, count), 3, size, size)
    identity = (socket.gethostname(), kind, torch.__version__, backbone.name, depth, shape)

    def make(_writer: Writer) -> dict[str, str]:
        found = _compare(bench, material, depth, shape)
        logger.info("%s trains in precision %s on %s", backbone.name, found, kind)
        return {_FOUND: found}

    key = hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
    shelf = Shelf(bench.opened.files.cache, bench.config.cache.disk_bytes)
    return str(shelf.open(f"precision/{key}", make, 0, "timings of precisions").record[_FOUND])


def _compare(
    bench: Workbench, material: Material, depth: int, shape: tuple[int, int, int, int]
) -> str:
    """Time the deepest plan of the study without changes of shape."""
    backbone, device = material.backbone, bench.device
    plan = TrialPlan(backbone.name, depth, (LayerPlan(),) * depth)
    network = build_network(backbone, plan, len(material.task.classes), seed=0)
    network.to(device).to(memory_format=torch.channels_last)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return faster(network, in_channels_last(torch.randn(shape, device=device)))
