"""A live network becomes a graph: ``torch.export`` follows its forward once, on an example."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from svd2onnx.compute.quiet import quiet
from svd2onnx.network.decoder import Traced
from svd2onnx.network.first_batch import first_batch
from svd2onnx.network.outputs import expected_tensors, is_named, names_of
from svd2onnx.tracing.graph_network import as_network, flattened, unlifted
from svd2onnx.tracing.names import Names
from svd2onnx.tracing.recurrent import any_length
from svd2onnx.values.errors import ExportError, one_line

_TORCH = Path(torch.__file__).parent
_OWN = Path(__file__).parents[1]
_DATA_DEPENDENT = ("data-dependent", "DataDependent", "GuardOnDataDependent")
_ASSIGNED = "assigned during export"
LOGGERS = ("torch.export", "torch._export", "torch.fx", "torch.fx.experimental.symbolic_shapes")
"""What torch.export tells of itself."""


def trace(
    network: nn.Module,
    arguments: Mapping[str, Any],
    axes: Mapping[str, Any],
    names: Names | None = None,
) -> fx.GraphModule:
    """The graph of ``network``, with the same tensors; ``network`` itself stays as it is.

    Args:
        network: in eval mode.
        arguments: an example of forward's arguments, by name.
        axes: those that may differ, {argument: {axis: name}}, or nested as an argument is; no example may
            have size 1 there. Where the network fixes one all the same, it has that size in the graph.
        names: of its tensors and modules, if they are not its own.

    Raises:
        SourceError: forward fails.
        ExportError: torch.export cannot follow forward.
    """
    found: list[str] = []

    def flatten(_module: nn.Module, _arguments: Any, result: Any) -> tuple[Tensor, ...]:
        tensors = expected_tensors(result)
        found[:] = names_of(result)
        return tuple(tensors)

    handle = network.register_forward_hook(flatten)
    try:
        with quiet(LOGGERS, logging.CRITICAL):
            program = _exported(network, arguments, axes)
            if not found:  # the bytecode of forward was analysed, and nothing was run
                _run(network, arguments)
            module = flattened(unlifted(program), found if is_named(found) else ())
            return as_network(module, names or Names.of(network))
    finally:
        handle.remove()


def trace_flat(traced: Traced, names: Names) -> Traced:
    """``traced`` with the graph of its module, whose arguments are no lists but tensors."""
    graph = trace(traced.module, traced.arguments, traced.dynamic_shapes, names)
    places = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    tensors = tree_leaves(dict(traced.arguments))
    axes = tree_leaves(dict(traced.dynamic_shapes), is_leaf=lambda own: isinstance(own, dict) and 0 in own)
    return replace(
        traced,
        module=graph,
        arguments=dict(zip(places, tensors, strict=True)),
        dynamic_shapes=dict(zip(places, axes, strict=True)),
    )


def fixed_axes(graph: fx.Graph, axes: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, int]]:
    """The size of each of ``axes`` that the graph takes in this size alone, by argument."""
    fixed: dict[str, dict[int, int]] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            sizes = {axis: _known_size(value.shape[axis]) for axis in axes.get(str(node.target)) or {}}
            fixed[str(node.target)] = {axis: size for axis, size in sizes.items() if size is not None}
    return {name: own for name, own in fixed.items() if own}


def _known_size(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _exported(network: nn.Module, arguments: Mapping[str, Any], axes: Mapping[str, Any]) -> ExportedProgram:
    """By running forward on stand-ins for tensors; or by its bytecode, where only that leaves axes free.

    ``len(x)``, for one, is a number in Python, and fixes an axis where forward is run.
    """
    try:
        program = _followed(network, arguments, axes, strict=False)
    except Exception as error:
        if isinstance(error, ExportError):
            raise
        _run(network, arguments)
        analysed = _analysed(network, arguments, axes)
        if analysed is None:
            raise ExportError(_told(error, network)) from error
        return analysed
    fixed = fixed_axes(program.graph, axes)
    if fixed:
        analysed = _analysed(network, arguments, axes)
        if analysed is not None and _count(fixed_axes(analysed.graph, axes)) < _count(fixed):
            return analysed
    return program


def _analysed(
    network: nn.Module, arguments: Mapping[str, Any], axes: Mapping[str, Any]
) -> ExportedProgram | None:
    try:
        return _followed(network, arguments, axes, strict=True)
    except Exception:  # it takes less of Python than running forward does: that failure is told
        return None
    finally:
        torch.compiler.reset()


def _followed(
    network: nn.Module, arguments: Mapping[str, Any], axes: Mapping[str, Any], *, strict: bool
) -> ExportedProgram:
    shapes = {name: _dimensions(value, axes.get(name)) for name, value in arguments.items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Around the modules of an encoder PyTorch has one operator, which hides their layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), any_length():
            return torch.export.export(network, (), dict(arguments), dynamic_shapes=shapes, strict=strict)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _count(axes: Mapping[str, Mapping[int, int]]) -> int:
    return sum(len(own) for own in axes.values())


def _dimensions(value: Any, axes: Any) -> Any:
    """Any size where an axis has a name, nested as ``value`` is."""
    if isinstance(value, Tensor):
        return dict.fromkeys(axes or {}, Dim.AUTO)
    if isinstance(value, list | tuple):
        return type(value)(_dimensions(own, part) for own, part in zip(value, axes, strict=True))
    raise TypeError(f"an argument of a network is a tensor or a list of them, not {type(value).__name__}")


def _run(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Whatever the tracer says, a forward that fails on its own fails for a reason of its own."""
    with first_batch(), torch.no_grad():
        network(**arguments)


def _told(error: Exception, network: nn.Module) -> str:
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{name!r} is a TorchScript module, which cannot be traced: use the module it was made from"
            )
    text = f"{type(error).__name__}: {one_line(error)}"
    if any(own in text for own in _DATA_DEPENDENT):
        what, remedy = "decides by the values of a tensor", "use torch.where, or torch.cond, in its place"
    elif _ASSIGNED in text:
        what, remedy = "keeps tensors in its attributes", "return them, or leave that out"
    else:
        what, remedy = "cannot be followed by torch.export", "write that part with tensor operations alone"
    return f"forward {what}{_place(error)} ({text[:300]}): {remedy}"


def _place(error: BaseException) -> str:
    """Where the user's code was: the innermost line that is none of torch or of this package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and _TORCH not in path.parents and _OWN not in path.parents:
            return f" at {path}:{frame.lineno} ({frame.line})"
    return ""
