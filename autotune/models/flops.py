"""Count what the layers of a backbone compute and write, in one pass on the meta device."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from autotune.errors import BackboneError
from autotune.models.layers import Layer
from autotune.models.meta_device import MetaShapes
from autotune.text import error_line

#: Stands for the index of a layer: operations that belong to none.
UNASSIGNED = -1


class FlopsProfile:
    """One pass of one image on the meta device: what each layer computes and writes.

    An operation belongs to the layer whose parameter it reads, wherever it runs; one that reads
    none (the products of attention) to the innermost running module that lies in a layer.

    Raises:
        BackboneError: When the backbone does not run on the meta device.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, int, int]
    ) -> None:
        # Parameters that ask for gradients would make torch's counter follow the graph.
        model = copy.deepcopy(model).eval().requires_grad_(False)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._place = {name: layer.index for layer in layers for name in layer.modules}
        self._owner = {
            tensors[name].untyped_storage()._cdata: layer.index
            for layer in layers
            for name in layer.names
        }
        self._input_size = input_size
        self._nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._running = [UNASSIGNED]
        self._flops: Counter[int] = Counter()
        #: Shapes that the largest modules of each layer wrote, and those of modules inside them.
        self._outputs: dict[int, tuple[int, ...]] = {}
        self._inner: dict[int, tuple[int, ...]] = {}
        counter = FlopCounterMode(
            display=False,
            custom_mapping={
                operation: self._counting(formula) for operation, formula in flop_registry.items()
            },
        )
        with ExitStack() as stack:
            for name, module in model.named_modules():
                place = self._place.get(name)
                is_top = place != self._place.get(name.rpartition(".")[0])
                enter, leave = self._hooks(place, self._outputs if is_top else self._inner)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            try:
                with torch.no_grad(), torch.device("meta"), MetaShapes(), counter:
                    output = model(torch.zeros(1, *input_size))
            except Exception as error:  # each architecture fails in its own way
                raise BackboneError(
                    f"the backbone cannot be inspected without its weights ({error_line(error)})"
                ) from error
        self.total = counter.get_total_flops() // 2
        self.features = int(output.shape[-1])

    @property
    def macs(self) -> Counter[int]:
        """Multiply-accumulates by layer, those of no layer under ``UNASSIGNED``."""
        return Counter({index: flops // 2 for index, flops in self._flops.items()})

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Shapes of the layers' outputs, see :class:`InspectedLayer`."""
        shapes = self._inner | self._outputs
        return {index: self._without_batch(shape) for index, shape in shapes.items()}

    def _counting(self, formula: Callable[..., int]) -> Callable[..., int]:
        """Make a formula of torch note the layer of every operation that it counts."""

        def count(*args: Any, **kwargs: Any) -> int:
            flops = formula(*args, **kwargs)
            storages = (
                operand.untyped_storage()._cdata for operand in args if isinstance(operand, Tensor)
            )
            owners = (self._owner[storage] for storage in storages if storage in self._owner)
            self._flops[next(owners, self._running[-1])] += flops
            return flops

        count._get_raw = True  # type: ignore[attr-defined]  # tensors, not shapes
        return count

    def _hooks(
        self, place: int | None, outputs: dict[int, tuple[int, ...]]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return the hooks before and after a module that lies in the layer ``place``."""

        def enter(module: nn.Module, args: Any) -> None:
            self._running.append(self._running[-1] if place is None else place)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(output, list | tuple):
                output = next((part for part in output if isinstance(part, Tensor)), None)
            if place is None or not isinstance(output, Tensor) or output.ndim < 2:
                return
            shape = tuple(output.shape)
            # Pooling at the end of a layer belongs to the head, unless the layer only pools.
            if self._positions(shape) > 1 or self._positions(outputs.get(place, ())) <= 1:
                outputs[place] = shape

        return enter, leave

    def _without_batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) == 4 and self._is_channels_last(shape):
            return shape[3], shape[1], shape[2]
        return shape[1:]

    def _positions(self, shape: tuple[int, ...]) -> int:
        """Count the pixels or tokens of an output."""
        single = self._without_batch(shape)
        return math.prod(single[1:] if len(single) == 3 else single[:-1])

    def _is_channels_last(self, shape: tuple[int, ...]) -> bool:
        """Return whether the sides in the image's proportions come before the channels."""
        _, height, width = self._input_size
        first = shape[2] * width == shape[3] * height
        last = shape[1] * width == shape[2] * height
        return last and (self._nhwc or not first)
