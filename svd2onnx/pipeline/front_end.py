"""Every source comes in by one way: its network is traced, and what follows works on the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from svd2onnx.network.decoder import Traced, traced_with_past
from svd2onnx.network.rewrite import with_parts_of
from svd2onnx.sources.model_file import Batch, DynamicShapes, arguments_of
from svd2onnx.sources.rows import infer_dynamic_shapes, named_axes
from svd2onnx.sources.source import Source
from svd2onnx.tracing.batchnorm import fold_batchnorm
from svd2onnx.tracing.names import Names
from svd2onnx.tracing.trace import fixed_axes, trace, trace_flat
from svd2onnx.values.errors import ExportError, SourceError

Axes = dict[str, dict[int, str]]
Sizes = dict[str, dict[int, int]]


@dataclass(frozen=True)
class TracedSource:
    """The graph of a source's network, and what it was traced with.

    ``with_past`` is what is exported in its place, if that was asked for; ``warnings`` are for the report.
    ``fixed`` has the axes that may differ between batches, and have one size in the graph.
    """

    model: fx.GraphModule
    example: Batch
    dynamic_shapes: DynamicShapes
    with_past: Traced | None = None
    warnings: tuple[str, ...] = ()
    fixed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def check_sizes(self, batch: Batch) -> None:
        """Refuse a batch of evaluation that the graph does not take, for its size.

        Raises:
            ExportError: it has another one along a fixed axis.
        """
        for name, own in self.fixed.items():
            for axis, size in own.items():
                found = batch[name].shape[axis] if name in batch else size
                if found != size:
                    raise ExportError(
                        f"the file takes {name!r} with exactly {size} along axis {axis}, which forward fixes "
                        f"as it goes through samples one by one or names a size, and a batch of evaluation "
                        f"has {found}: let forward take its sizes from its inputs, or give evaluation in "
                        "batches of the size of those for calibration"
                    )

    def exported(self, network: nn.Module, outputs: Sequence[str]) -> Traced:
        """What is exported of ``network``, which is ``model`` or has its parts."""
        if self.with_past is None:
            return Traced(network, self.example, self.dynamic_shapes, outputs=outputs)
        module = with_parts_of(self.with_past.module, network)
        return replace(self.with_past, module=module)


def trace_source(source: Source, live: nn.Module, batches: Sequence[Batch], with_past: bool) -> TracedSource:
    """The graph of ``live``, the network of ``source``, with normalization folded.

    Axes in which batches differ, or that the source names, may have any size; where the network fixes one
    all the same, a warning says so.

    Raises:
        SourceError: see ``trace``.
        ExportError: see ``trace``; or the network fixes an axis in which batches differ.
    """
    arguments = [arguments_of(live, batch) for batch in batches]
    shapes = source.dynamic_shapes or infer_dynamic_shapes(arguments)
    axes = {name: named_axes(shapes, name) for name in arguments[0]}
    example = max(arguments, key=lambda own: sum(tensor.numel() for tensor in own.values()))
    graph, example, fixed = _traced(live, example, axes)
    warnings = tuple(_warnings(fixed, axes, arguments))
    past = None
    if with_past and source.with_past is not None:
        decoder = source.with_past(live)
        past = trace_flat(traced_with_past(decoder), Names.of(live, decoder))
    for own in (graph, *(() if past is None else (past.module,))):
        assert isinstance(own, fx.GraphModule)
        fold_batchnorm(own)
        for node in own.graph.nodes:
            node.meta = {}  # copies of the network would copy it too
    return TracedSource(graph, example, _without(axes, fixed), past, warnings, fixed)


def _traced(live: nn.Module, example: Batch, axes: Axes) -> tuple[fx.GraphModule, Batch, Sizes]:
    """The graph, the example that it was traced with, and the sizes of the axes that it fixes.

    The tracer takes a size of 1 for a constant: the example is doubled along such axes. Where forward takes
    it so no more, or fixes one of them then, they have size 1.
    """
    single: Sizes = {
        name: {axis: 1 for axis in own if example[name].shape[axis] == 1} for name, own in axes.items()
    }
    if any(single.values()):
        doubled = {name: _doubled(tensor, single[name]) for name, tensor in example.items()}
        try:
            graph = trace(live, doubled, axes)
        except (ExportError, SourceError):
            pass  # whether it takes the example itself is seen below
        else:
            fixed = fixed_axes(graph.graph, axes)
            if not any(axis in fixed.get(name, {}) for name, own in single.items() for axis in own):
                return graph, doubled, fixed
    graph = trace(live, example, _without(axes, single))
    fixed = fixed_axes(graph.graph, _without(axes, single))
    return graph, example, {name: {**fixed.get(name, {}), **own} for name, own in single.items()}


def _without(axes: Axes, fixed: Sizes) -> Axes:
    """``axes`` but for those that are ``fixed``."""
    return {
        name: {axis: called for axis, called in own.items() if axis not in fixed.get(name, {})}
        for name, own in axes.items()
    }


def _doubled(tensor: Tensor, axes: Iterable[int]) -> Tensor:
    for axis in axes:
        tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def _warnings(fixed: Sizes, axes: Axes, batches: Sequence[Batch]) -> list[str]:
    told = []
    for name, own in fixed.items():
        for axis, size in own.items():
            called = axes[name].get(axis, "")
            sizes = sorted({batch[name].shape[axis] for batch in batches})
            if sizes != [size]:
                raise ExportError(
                    f"forward takes {name!r} with {size} along axis {axis} ({called}) alone, and batches "
                    f"have {', '.join(map(str, sizes[:4]))}: let forward take its sizes from its inputs, "
                    "or give batches of one size"
                )
            told.append(
                f"the file takes {name!r} with exactly {size} along axis {axis} ({called}): forward fixes it"
            )
    return told
