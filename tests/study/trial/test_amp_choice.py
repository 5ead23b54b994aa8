"""The precision of a study: compared once, remembered for all workers and reruns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.study import load_study

from autotune.data.cache.array_cache import ArrayCache
from autotune.errors import InsufficientSpaceError
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial import amp_choice
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import build_context
from autotune.training.compute.amp import AmpPolicy, is_kept_fp32
from autotune.training.compute.half_precision_check import Operation
from tests.support.commands.inline import run
from tests.support.models.backbones import CPU
from tests.support.study.small import open_small
from tests.training.compute.test_amp import pretend_card

pytestmark = pytest.mark.usefixtures("idle_machine")

BF16 = AmpPolicy(CPU, torch.bfloat16)


def small(folder: Path, amp: str = "auto") -> OpenStudy:
    return open_small(
        folder, space__trainable_layers=[0, 1], search__trials=2, training__precision=amp
    )


def remembered(handle: OpenStudy) -> Any:
    study = load_study(study_name=handle.name, storage=handle.storage)
    return study.user_attrs.get(attrs.PRECISION)


@pytest.mark.parametrize(("amp", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_given_is_not_compared(
    tmp_path: Path, amp: str, dtype: torch.dtype | None
) -> None:
    handle = small(tmp_path, amp)
    ctx = build_context(handle)
    assert build_trainer(ctx.space.baseline(), ctx).amp.dtype is dtype
    assert remembered(handle) is None


def test_it_is_compared_once_and_remembered_beside_others(tmp_path: Path) -> None:
    handle = small(tmp_path)
    known = {"test_resnet.letters": {"NVIDIA H200": "fp16"}, "other": {"cpu": "off"}}
    handle.study.set_user_attr(attrs.PRECISION, known)
    state = torch.get_rng_state()
    ctx = build_context(handle)
    first = build_trainer(ctx.space.baseline(), ctx).amp
    assert torch.equal(torch.get_rng_state(), state)
    known["test_resnet.letters"]["cpu"] = "off" if first.dtype is None else "bf16"
    assert remembered(handle) == known


@pytest.mark.parametrize(("word", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_what_a_study_remembers_holds_for_all(
    tmp_path: Path, word: str, dtype: torch.dtype | None
) -> None:
    """Whatever this machine would find: another one was first."""
    handle = small(tmp_path)
    known = {"test_resnet.letters": {"cpu": word, "NVIDIA H200": "fp16"}, "other": {"cpu": "off"}}
    handle.study.set_user_attr(attrs.PRECISION, known)
    ctx = build_context(handle)
    assert build_trainer(ctx.space.baseline(), ctx).amp.dtype is dtype
    assert remembered(handle) == known
    run(handle)
    assert [trial.state.name for trial in handle.study.trials] == ["COMPLETE", "COMPLETE"]


def test_networks_of_small_images_train_in_half_precision(tmp_path: Path) -> None:
    """A stage of maps of 1x1 has wrong gradients in bf16 (oneDNN of torch 2.15)."""
    handle = open_small(
        tmp_path,
        space__trainable_layers=2,
        space__layers={},
        search__trials=2,
        search__sampler="random",
        training__precision="bf16",
        training__batch_size=16,
    )
    run(handle)
    assert [trial.state.name for trial in handle.study.trials] == ["COMPLETE"] * 2
    trainable = handle.study.trials[1]
    plan = attrs.trial_plan(trainable)
    assert plan is not None and plan.depth == 2
    computed = trainable.user_attrs[attrs.COMPUTE]
    assert (computed["half"], computed["float32"]) == ("bf16", "ieee")


def test_an_operation_is_compared_once_for_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def compare(operation: Operation) -> bool:
        compared.append(operation.key)
        return "192, 3, 3)" in operation.key

    monkeypatch.setattr(amp_choice, "is_inaccurate", compare)
    handle = small(tmp_path, "bf16")
    kept = []
    for _ in range(2):  # two workers
        ctx = build_context(handle)
        for plan in (ctx.space.baseline(), ctx.space.baseline()):
            network = build_trainer(plan, ctx).network
            kept.append([name for name, one in network.named_modules() if is_kept_fp32(one)])
    assert len(kept[0]) == 1 and kept[0][0].endswith("conv1")
    assert kept == [kept[0]] * 4
    assert len(set(compared)) == len(compared) > 10


def test_a_cache_without_room_costs_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise InsufficientSpaceError("no room")

    ctx = build_context(small(tmp_path, "bf16"))
    monkeypatch.setattr(ArrayCache, "get_or_create", no_room)
    monkeypatch.setattr(amp_choice, "is_inaccurate", lambda operation: False)
    build_trainer(ctx.space.baseline(), ctx)
    assert ctx.wrong_in_half and not any(ctx.wrong_in_half.values())
    monkeypatch.setattr(amp_choice, "_compare", lambda *_: "bf16")
    (backbone,) = ctx.config.backbones
    assert amp_choice._fastest(ctx, ctx.resources.get(backbone), "cpu") == "bf16"


@pytest.mark.parametrize(("capability", "word"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_a_gpu_takes_half_precision_without_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], word: str
) -> None:
    handle = small(tmp_path)
    ctx = replace(build_context(handle), device=torch.device("cuda", 0))
    pretend_card(monkeypatch, "a card", capability)
    set_to: list[str] = []
    monkeypatch.setattr(
        amp_choice, "set_float32_precision", lambda device, word: set_to.append(word)
    )
    material = ctx.resources.get("test_resnet.letters")
    assert amp_choice.choose_precision(ctx, material).mode == word
    assert remembered(handle) == {"test_resnet.letters": {"a card": word}}
    assert handle.study.user_attrs[attrs.FLOAT32] == {"a card": "tf32"}
    # A study goes on with what it remembers.
    handle.study.set_user_attr(attrs.FLOAT32, {"a card": "ieee"})
    handle.study.set_user_attr(attrs.PRECISION, {"test_resnet.letters": {"a card": "off"}})
    assert amp_choice.choose_precision(ctx, material).mode == "off"
    assert set_to == ["tf32", "ieee"]


def test_a_comparison_that_does_not_fit_into_memory_takes_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def compare(network: torch.nn.Module, images: torch.Tensor) -> str:
        sizes.append(len(images))
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return "off"

    monkeypatch.setattr(amp_choice, "fastest_precision", compare)
    ctx = build_context(small(tmp_path))
    build_trainer(ctx.space.baseline(), ctx)
    assert sizes[-1] <= 16 < sizes[0]
