"""Every source comes in by one way: its network is traced, and what follows works on the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from svd2onnx.graph.export import infer_dynamic_shapes
from svd2onnx.network.decoder import Traced, traced_with_past
from svd2onnx.network.rewrite import with_parts_of
from svd2onnx.sources.model_file import Batch, DynamicShapes, arguments_of
from svd2onnx.sources.rows import named_axes
from svd2onnx.sources.source import Source
from svd2onnx.tracing.batchnorm import fold_batchnorm
from svd2onnx.tracing.names import Names
from svd2onnx.tracing.trace import fixed_axes, trace, trace_flat
from svd2onnx.values.errors import ExportError, SourceError

Axes = dict[str, dict[int, str]]


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
        return Traced(
            module,
            self.with_past.arguments,
            self.with_past.dynamic_shapes,
            self.with_past.inputs,
            self.with_past.outputs,
        )


def trace_source(source: Source, live: nn.Module, batches: Sequence[Batch], with_past: bool) -> TracedSource:
    """The graph of ``live``, the network of ``source``, with normalization folded.

    Axes in which batches differ, or that the source names, may have any size; where the network fixes one
    all the same, a warning says so.

    Raises:
        SourceError: see ``trace``.
        ExportError: see ``trace``; or the network fixes an axis in which batches differ.
    """
    arguments = [arguments_of(live, batch) for batch in batches]
    axes = {
        name: named_axes(source.dynamic_shapes or infer_dynamic_shapes(arguments), name)
        for name in arguments[0]
    }
    # The tracer takes a size of 1 for a constant.
    largest = max(arguments, key=lambda own: sum(tensor.numel() for tensor in own.values()))
    single = {name: [axis for axis in own if largest[name].shape[axis] == 1] for name, own in axes.items()}
    example = {name: _doubled(tensor, single[name]) for name, tensor in largest.items()}
    traced = _traced(live, example, axes, is_certain=not any(single.values()))
    if traced is None or any(axis in traced[1].get(name, {}) for name, own in single.items() for axis in own):
        example = largest
        narrow = {n: {axis: c for axis, c in own.items() if axis not in single[n]} for n, own in axes.items()}
        traced = _traced(live, example, narrow, is_certain=True)
        assert traced is not None
        for name, own in single.items():
            traced[1][name] = {**traced[1].get(name, {}), **dict.fromkeys(own, 1)}
    graph, fixed = traced
    warnings = tuple(_warnings(fixed, axes, arguments))
    free = {n: {a: c for a, c in own.items() if a not in fixed.get(n, {})} for n, own in axes.items()}
    past = None
    if with_past and source.with_past is not None:
        decoder = source.with_past(live)
        past = trace_flat(traced_with_past(decoder), Names.of(live, decoder))
    for own in (graph, *(() if past is None else (past.module,))):
        assert isinstance(own, fx.GraphModule)
        fold_batchnorm(own)
        for node in own.graph.nodes:
            node.meta = {}  # copies of the network would copy it too
    return TracedSource(graph, example, free, past, warnings, fixed)


def _traced(
    live: nn.Module, example: Batch, axes: Axes, *, is_certain: bool
) -> tuple[fx.GraphModule, dict[str, dict[int, int]]] | None:
    """The graph, and the axes that it fixes; None where an example is not taken and not ``is_certain``."""
    try:
        graph = trace(live, example, axes)
    except (ExportError, SourceError):
        if is_certain:
            raise
        return None
    return graph, fixed_axes(graph.graph, axes)


def _doubled(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def _warnings(fixed: dict[str, dict[int, int]], axes: Axes, batches: Sequence[Batch]) -> list[str]:
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
