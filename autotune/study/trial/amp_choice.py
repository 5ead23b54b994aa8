"""In which precision the trials of a study train: found out once, and remembered."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import EntryWriter
from autotune.errors import InsufficientSpaceError
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.state import attrs, oom
from autotune.training.compute.amp import (
    FLOAT32_PRECISION,
    AmpPolicy,
    fastest_precision,
    half_precision_for,
    set_float32_precision,
)
from autotune.training.compute.half_precision_check import (
    Operation,
    is_inaccurate,
    keep_inaccurate_fp32,
    operation_id,
)
from autotune.training.inputs.batches import to_channels_last

if TYPE_CHECKING:
    from autotune.study.setup.resources import BackboneResources
    from autotune.study.trial.context import WorkerContext

logger = logging.getLogger(__name__)

#: Pixels that go through the network at a time where precisions are compared: eight images of
#: 224 x 224, which take a CPU core a second or two.
_PIXELS = 8 * 224**2
_FEWEST = 4


def choose_precision(ctx: WorkerContext, material: BackboneResources) -> AmpPolicy:
    """Return the precision in which a backbone trains on the device of a worker.

    With ``training.amp: auto`` a GPU takes half precision: bf16 where it has it in hardware, else
    fp16. On a CPU the first worker compares the precisions, once for all studies of the machine.
    The study remembers the outcome, so that all trials of a backbone on such devices, and their
    reruns, compute alike. What stays in float32 on a GPU is computed in TF32 from here on.

    Args:
        ctx: What the worker has at hand.
        material: The backbone and its images.
    """
    mode, device = ctx.config.training.amp, ctx.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cuda":
        single = _agreed(ctx, attrs.FLOAT32, (kind,), lambda: FLOAT32_PRECISION)
        set_float32_precision(device, single)
    if mode != "auto":
        return AmpPolicy.from_mode(mode, device)

    def find() -> str:
        # Steps of a few images on a GPU would be a matter of launching kernels, of which autocast
        # adds some: half precision would look slow that is several times as fast in a batch.
        return half_precision_for(device) if device.type == "cuda" else _found(ctx, material, kind)

    known = _agreed(ctx, attrs.PRECISION, (material.backbone.name, kind), find)
    return AmpPolicy.from_mode(known, device)


def _agreed(ctx: WorkerContext, name: str, keys: tuple[str, ...], find: Callable[[], str]) -> str:
    """Return what a study remembers under some keys of an attribute, or what is found first."""
    study = ctx.handle.study
    known = _below(study.user_attrs.get(name, {}), keys)
    if known is not None:
        return known
    found = find()
    with study_lock(ctx.handle.storage, ctx.handle.url, ctx.handle.name):
        remembered = study.user_attrs.get(name, {})
        known = _below(remembered, keys)
        if known is not None:  # another worker was first
            return known
        inner = remembered
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = found
        study.set_user_attr(name, remembered)
    return found


def _below(values: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys[:-1]:
        values = values.get(key, {})
    value = values.get(keys[-1])
    return None if value is None else str(value)


def keep_in_float32(
    network: Network, ctx: WorkerContext, material: BackboneResources, autocast: AmpPolicy
) -> AmpPolicy:
    """Leave in float32 what half precision gets wrong on this machine, see training/half.py.

    Each convolution and matrix product is compared once for all studies of the machine.

    Args:
        network: A network of the backbone, on its device.
        ctx: What the worker has at hand.
        material: The backbone and its images.
        autocast: The precision in which it is to train.

    Returns:
        The precision in which it can train.
    """
    size = material.task.spec.size
    return keep_inaccurate_fp32(
        network, (3, size, size), autocast, lambda operation: _is_wrong(operation, ctx)
    )


def _is_wrong(operation: Operation, ctx: WorkerContext) -> bool:
    """Compare an operation with float32, or take what was found on this machine before."""
    identity = operation_id(operation)
    if identity not in ctx.wrong:
        key, what = f"half/{identity}", "comparisons of precisions"
        wrong = _kept(ctx, key, "wrong", what, lambda: is_inaccurate(operation))
        ctx.wrong[identity] = bool(wrong)
    return ctx.wrong[identity]


def _found(ctx: WorkerContext, material: BackboneResources, kind: str) -> str:
    """Compare the precisions, or take what was found on this machine before."""
    backbone, size = material.backbone, material.task.spec.size
    depth = min(ctx.space.max_depth, len(list_layers(backbone.fresh())))
    count = min(ctx.config.training.batch_size, max(_FEWEST, _PIXELS // size**2))
    shape = (max(2, count), 3, size, size)
    identity = (socket.gethostname(), kind, torch.__version__, backbone.name, depth, shape)

    def find() -> str:
        found = _compare(ctx, material, depth, shape)
        logger.info("%s trains in precision %s on %s", backbone.name, found, kind)
        return found

    key = hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
    return str(_kept(ctx, f"precision/{key}", "precision", "timings of precisions", find))


def _kept(
    ctx: WorkerContext, key: str, name: str, what: str, find: Callable[[], str | bool]
) -> str | bool:
    """Return what is kept in the cache of the machine, or find it and keep it.

    Args:
        ctx: What the worker has at hand.
        key: Key of the entry.
        name: What it is called in the record of the entry.
        what: What is kept, for messages.
        find: Finds it.
    """
    shelf = ArrayCache(ctx.handle.files.cache, ctx.config.cache.disk_bytes)

    def make(_writer: EntryWriter) -> dict[str, str | bool]:
        return {name: find()}

    try:
        entry = shelf.get_or_create(key, make, 0, what)
    except InsufficientSpaceError:  # the next worker finds it again
        return find()
    value: str | bool = entry.record[name]
    return value


def _compare(
    ctx: WorkerContext, material: BackboneResources, depth: int, shape: tuple[int, int, int, int]
) -> str:
    """Time the deepest plan of the study without changes of shape."""
    backbone, device = material.backbone, ctx.device
    plan = TrialPlan(backbone.name, depth, (LayerPlan(),) * depth)
    network = build_network(backbone, plan, len(material.task.classes), seed=0)
    network.to(device).to(memory_format=torch.channels_last)

    def of_images(count: int) -> str:
        images = torch.randn((count, *shape[1:]), generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return fastest_precision(network, to_channels_last(images.to(device)))

    return oom.with_oom_backoff(of_images, shape[0], device)
