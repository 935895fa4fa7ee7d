"""The samples of a batch: along which axis of each tensor they lie, and batches of fewer or more of them.

Inputs have them along the axis that is called "batch" or "batch_size" in ``dynamic_shapes``; edges of a
graph, or a scalar, have none and stay as they are. Labels, which no argument takes, have them along their
first axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from svd2onnx.sources.model_file import Batch, DynamicShapes
from svd2onnx_runtime.dimensions import BATCH, canonical

RowAxes = Mapping[str, int | None]
"""For each argument the axis of samples, or None where it has none."""


def row_axes(arguments: Batch, shapes: DynamicShapes, called: str = BATCH) -> dict[str, int | None]:
    """The axes of ``arguments`` that have the name ``called``, or the one that means the same."""
    return {
        name: next(
            (axis for axis, own in named_axes(shapes, name).items() if canonical(own) == canonical(called)),
            None,
        )
        for name in arguments
    }


def named_axes(shapes: DynamicShapes, argument: str) -> dict[int, str]:
    """The dynamic axes of ``argument``; a name may come as a ``torch.export.Dim``."""
    axes = shapes.get(argument) or {}
    return {axis: str(getattr(own, "__name__", own)) for axis, own in axes.items()}


def first_rows(batch: Batch, rows: int, axes: RowAxes) -> Batch:
    """At most ``rows`` samples; the batch itself where no argument has an axis of them."""
    return _taken(batch, torch.arange(min(rows, row_count(batch, axes))), axes)


def exact_rows(batch: Batch, rows: int, axes: RowAxes) -> Batch:
    """As many as ``rows`` samples, over again where there are fewer; or the batch itself, as above."""
    return _taken(batch, torch.arange(rows) % max(1, row_count(batch, axes)), axes)


def slices(batch: Batch, step: int, axes: RowAxes) -> list[Batch]:
    """The batch in parts of ``step`` samples, in order; or the batch itself, as above."""
    if not any(axis is not None for axis in axes.values()):
        return [batch]
    return [_taken(batch, part, axes) for part in torch.split(torch.arange(row_count(batch, axes)), step)]


def small(batch: Batch, numbers: int, axes: RowAxes) -> list[Batch]:
    """The batch in equal parts, of about ``numbers`` numbers in an input; or the batch itself, as above.

    No part has a single sample, which some networks do not take.
    """
    rows, largest = row_count(batch, axes), max(batch[name].numel() for name in axes)
    parts = rows // max(2, rows * numbers // max(1, largest))
    if parts < 2 or not any(axis is not None for axis in axes.values()):
        return [batch]
    return [_taken(batch, part, axes) for part in torch.tensor_split(torch.arange(rows), parts)]


def row_count(batch: Batch, axes: RowAxes) -> int:
    """The samples in ``batch``: where no argument has an axis of them, the length of the first."""
    for name, axis in axes.items():
        if axis is not None:
            return batch[name].shape[axis]
    first = batch[next(iter(axes))]
    return first.shape[0] if first.ndim else 1


def _taken(batch: Batch, samples: Tensor, axes: RowAxes) -> Batch:
    if not any(axis is not None for axis in axes.values()):
        return batch
    size = row_count(batch, axes)

    def of(name: str, tensor: Tensor) -> Tensor:
        axis = axes[name] if name in axes else 0 if tensor.shape[:1] == (size,) else None
        return tensor if axis is None else tensor.index_select(axis, samples.to(tensor.device))

    return {name: of(name, tensor) for name, tensor in batch.items()}


def infer_dynamic_shapes(
    batches: Sequence[Mapping[str, Tensor]], *, first: str = BATCH
) -> dict[str, dict[int, str]]:
    """Dimensions that differ between ``batches``, and every first one, by argument.

    Dimensions whose sizes agree in all batches share a name: ``first`` for the first, then "dim_1", ...
    """
    names: dict[tuple[int, ...], str] = {}
    shapes: dict[str, dict[int, str]] = {}
    for argument, tensor in batches[0].items():
        shapes[argument] = {}
        for dimension in range(tensor.ndim):
            sizes = tuple(batch[argument].shape[dimension] for batch in batches)
            if dimension == 0:
                shapes[argument][0] = names.setdefault(sizes, f"dim_{len(names)}" if names else first)
            elif len(set(sizes)) > 1:
                shapes[argument][dimension] = names.setdefault(sizes, f"dim_{max(1, len(names))}")
    return shapes
