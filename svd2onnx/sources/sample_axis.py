"""Do samples lie along an axis of a program's inputs, or nodes of a graph, points, or steps in time?

Programs keep no names of axes. Samples are independent: the network gives for one the same, whatever the
others are. So it is run on random inputs, and once more where each sample is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from svd2onnx.sources.inputs import InputSpec, random_batch

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_COARSE = 1e-2
"""Of the largest number of an output: of two runs on the same sample, in types of half precision."""


def are_samples(model: fx.GraphModule, specs: Sequence[InputSpec], symbol: Any) -> bool:
    """Whether samples lie along the axes of size ``symbol``.

    Args:
        model: flat; its nodes have their stand-ins in ``meta["val"]``.
        specs: of its inputs, which random ones are made by.
        symbol: of sympy; the size of the axes.
    """
    if not symbol.is_Symbol:
        return False  # such as 4 * s: fewer rows could not be taken
    places = {str(node.target): node.meta["val"] for node in model.graph.nodes if node.op == "placeholder"}
    inputs = {name: _axes(value, symbol) for name, value in places.items()}
    # Where one input has several, or has others alone, samples are not what they count.
    if any(len(own) > 1 for own in inputs.values()):
        return False
    if any(spec.dynamic and not inputs[spec.name] for spec in specs):
        return False
    leaves = tree_leaves(model.graph.output_node().args[0])
    outputs = [_axes(leaf.meta["val"], symbol) if isinstance(leaf, fx.Node) else [] for leaf in leaves]
    if any(len(own) > 1 for own in outputs) or not any(outputs):
        return False
    return _is_independent(model, random_batch(specs, 0), inputs, outputs)


def _axes(value: object, symbol: Any) -> list[int]:
    """The axes whose sizes depend on ``symbol``."""
    if not isinstance(value, Tensor):
        return []
    return [
        axis
        for axis, size in enumerate(value.shape)
        if isinstance(size, torch.SymInt) and symbol in size.node.expr.free_symbols
    ]


def _is_independent(
    model: fx.GraphModule,
    batch: Mapping[str, Tensor],
    inputs: Mapping[str, list[int]],
    outputs: Sequence[list[int]],
) -> bool:
    """Whether what is given for the sample in the middle stays the same where all are that one.

    One in the middle, as the first may be free of those behind it, and the last of those before.
    """
    rows = next(batch[name].shape[own[0]] for name, own in inputs.items() if own)
    chosen = torch.full((rows,), rows // 2)
    copies = {
        name: tensor.index_select(inputs[name][0], chosen) if inputs[name] else tensor
        for name, tensor in batch.items()
    }
    try:
        with torch.no_grad():
            results, repeated = tree_leaves(model(**batch)), tree_leaves(model(**copies))
    except Exception:  # random inputs need not be in range; what fits them says nothing of the axis
        return True
    return all(
        _agree(_of_sample(result, own, rows, chosen), other)
        for result, other, own in zip(results, repeated, outputs, strict=True)
        if isinstance(result, Tensor)
    )


def _of_sample(result: Tensor, axes: Sequence[int], rows: int, chosen: Tensor) -> Tensor | None:
    """``result`` with what it has for one sample in the place of all; None where rows are no part of it."""
    if not axes:
        return result
    (axis,) = axes
    if result.shape[axis] % rows:
        return None
    each = result.shape[axis] // rows  # such as the tokens of a text, one behind the other
    places = (chosen[:, None] * each + torch.arange(each)).flatten()
    return result.index_select(axis, places)


def _agree(expected: Tensor | None, found: Tensor) -> bool:
    if expected is None or expected.shape != found.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    most = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    close = _TOLERANCE.get(expected.dtype, _COARSE) * most
    return torch.allclose(found, expected, rtol=0, atol=close, equal_nan=True)
