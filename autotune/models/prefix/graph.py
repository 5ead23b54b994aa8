"""Trace what a network computes with torch.fx, and give each node of the graph a digest.

torch.fx records every call of a module of torch or of one that timm wants left whole, and every
function between them. What depends on the mode is fixed in the graph, so each mode has a graph of
its own; what depends on the number of images is a node like any other.

A digest identifies what a node computes: its operation, the settings of its module, and the
digests of its arguments down to the images. It is the same in every process and for every network
that computes the same up to there. Parameters and buffers enter by name and shape: their values
are those of the backbone, which has its own fingerprint.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.fx import Node

from autotune.errors import SplitError
from autotune.models.device_errors import is_device_error
from autotune.models.network import Network
from autotune.text import error_line

#: Files of torch whose modules without tensors do the same in both modes, except random ones.
_MODELESS = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("activation", "channelshuffle", "flatten", "fold", "linear", "padding")
) | {"torch.nn.modules.pixelshuffle", "torch.nn.modules.pooling", "torch.nn.modules.upsampling"}
_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
#: Functions and methods, by name, that cost too much to be computed anew in every epoch.
_PRODUCTS = frozenset(
    {
        *("addmm", "baddbmm", "bilinear", "bmm", "einsum", "linear", "matmul", "mm"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
        *("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"),
        *("multi_head_attention_forward", "scaled_dot_product_attention"),
    }
)
#: A function of a network and tensors.
Function = Callable[..., Any]


class TraceClone(nn.Module):
    """A copy of a network's backbone for tracing and trial runs.

    It shares the network's parameters, but not modes and buffers, so that nothing done with it
    changes the network. Names are those of the network; modes are those of :meth:`Network.train`
    or of evaluation.
    """

    def __init__(self, network: Network, training: bool) -> None:
        super().__init__()
        shared = {id(parameter): parameter for parameter in network.backbone.parameters()}
        self.backbone: nn.Module = copy.deepcopy(network.backbone, shared)
        self.train()  # drops what some attention layers cache in evaluation mode
        if training:
            frozen = {id(module) for module in network.frozen}
            for name, module in network.backbone.named_modules():
                if id(module) in frozen:
                    self.backbone.get_submodule(name).training = False
        else:
            self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features ``(N, F)`` of images ``(N, C, H, W)``."""
        features: Tensor = self.backbone(images)
        return features


class _Tracer(fx.Tracer):
    """Leaves whole what timm declares untraceable, and reads buffers anew like parameters."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        functions = get_notrace_functions()  # type: ignore[no-untyped-call]
        super().__init__(autowrap_modules=(math,), autowrap_functions=tuple(functions))
        self._leaves = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)


def trace(clone: TraceClone) -> fx.Graph:
    """Trace a network in the mode that its clone has.

    torch changes how modules are called while it traces: no other thread may run one meanwhile.

    Raises:
        SplitError: When it cannot be traced, or draws random numbers while it is.
    """
    before = torch.get_rng_state()
    try:
        graph = _Tracer().trace(clone)
    except Exception as error:  # each architecture fails in its own way
        if is_device_error(error):
            raise
        raise SplitError(f"the backbone cannot be traced ({error_line(error)})") from error
    if not torch.equal(before, torch.get_rng_state()):
        raise SplitError("the backbone draws random numbers that no graph can hold")
    return graph


def same_graphs(
    first: fx.Graph, first_root: nn.Module, second: fx.Graph, second_root: nn.Module
) -> bool:
    """Return whether two traced graphs have the same nodes and constants."""
    return first.python_code("self").src == second.python_code("self").src and all(
        torch.equal(get_target(first_root, node.target), get_target(second_root, node.target))
        for node in first.nodes
        if node.op == "get_attr" and not is_backbone_attr(node)
    )


def get_target(root: nn.Module, target: Any) -> Any:
    """Return the attribute of a module with a dotted name."""
    return functools.reduce(getattr, str(target).split("."), root)


def is_backbone_attr(node: Node) -> bool:
    """Return whether a ``get_attr`` node reads from the backbone, not a constant of the trace."""
    return str(node.target).startswith("backbone.")


def execute_node(node: Node, root: nn.Module, args: Any, kwargs: Any) -> Any:
    """Return the value of a node for the values of its arguments."""
    match node.op:
        case "get_attr":
            return get_target(root, node.target)
        case "call_module":
            return get_target(root, node.target)(*args, **kwargs)
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def is_expensive(node: Node, root: nn.Module) -> bool:
    """Return whether a node has its own parameters, or multiplies matrices."""
    if node.op == "call_module":
        return any(True for _ in get_target(root, node.target).parameters())
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op.startswith("call_") and str(name).strip("_") in _PRODUCTS


def reads_trainable_state(node: Node, root: nn.Module, trainable: frozenset[str]) -> bool:
    """Return whether a node reads one of the ``trainable`` parameters and buffers."""
    target = str(node.target)
    if node.op == "get_attr":
        return target in trainable
    if node.op != "call_module":
        return False
    module = get_target(root, target)
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    return any(f"{target}.{name}" in trainable for name in names)


def digest(
    node: Node, root: nn.Module, digests: Mapping[Node, str], images: tuple[int, ...]
) -> str:
    """Return the digest of a node, 32 hexadecimal digits, from those of its arguments.

    Raises:
        SplitError: When an argument has no text that is the same in every process.
    """
    words: list[str] = [node.op]
    if node.op == "placeholder":
        words.append(str(tuple(images)))
    elif node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        module, tensor = get_target(root, owner) if owner else root, get_target(root, node.target)
        is_saved = is_backbone_attr(node) and name not in module._non_persistent_buffers_set
        words.append(f"{node.target} {_form(tensor)}" if is_saved else _content(tensor))
    elif node.op == "call_module":
        words += [str(node.target), *_settings(get_target(root, node.target))]
    elif node.op == "call_method":
        words.append(str(node.target))
    elif node.op == "call_function":
        words.append(_qualified_name(node.target))
    words += [_spell(node.args, digests), _spell(node.kwargs, digests)]
    return _hash("\n".join(words).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _content(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{_form(tensor)} {_hash(data)}"


def _qualified_name(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise SplitError(f"a {type(function).__name__} has no name that other processes know")
    return f"{getattr(function, '__module__', '')}.{name}"


def _settings(module: nn.Module) -> Iterable[str]:
    """Yield the type of a module, all its settings and the shapes of its tensors.

    The mode is one of them where it could matter. Buffers that are not saved are not part of a
    backbone's fingerprint: they enter with their values.
    """
    for name, part in module.named_modules():
        yield f"{name}: {_qualified_name(type(part))}"
        for key, value in sorted(vars(part).items()):
            if key != "training" and _is_plain(value):
                yield f"{key}={_spell(value, {})}"
        for key, value in part.named_parameters(recurse=False):
            yield f"{key} {_form(value)}"
        for key, value in part.named_buffers(recurse=False):
            is_saved = key not in part._non_persistent_buffers_set
            yield f"{key} {_form(value) if is_saved else _content(value)}"
        if not _is_modeless(part):
            yield f"training={part.training}"


def _is_modeless(module: nn.Module) -> bool:
    """Return whether a module surely does the same in training as in evaluation."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p == 0
    return type(module).__module__ in _MODELESS and not isinstance(module, _RANDOM)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _spell(value: Any, digests: Mapping[Node, str]) -> str:
    """Write an argument so that it reads the same in every process."""
    match value:
        case Node():
            return digests[value]
        case tuple() | list():
            inner = ", ".join(_spell(item, digests) for item in value)
            return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
        case Mapping():
            return str({str(key): _spell(item, digests) for key, item in value.items()})
        case slice():
            return f"slice{_spell((value.start, value.stop, value.step), digests)}"
        case Tensor():
            return _content(value)
        case torch.device():
            return "device"
    printed = (bool, int, float, complex, str, range, torch.dtype, torch.memory_format)
    if value is None or value is ... or isinstance(value, (*printed, torch.layout)):
        return repr(value)
    return _qualified_name(value)


def compile_graph(graph: fx.Graph) -> tuple[Function, str]:
    """Turn a graph into a function whose first argument owns the modules, and its source."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    return names["forward"], code.src
