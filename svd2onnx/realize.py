"""Turn a layer's form into its stored tensors: quantize, or factorize and quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from svd2onnx.calibrate import LayerStatistics
from svd2onnx.layers import weight_of
from svd2onnx.lowrank import factorize
from svd2onnx.progress import Track, silent
from svd2onnx.rounding import round_second_order
from svd2onnx.schema import CompressedLayer, CompressionPlan, LayerForm, LayerSite


def realize(
    model: nn.Module,
    sites: Sequence[LayerSite],
    plan: CompressionPlan,
    statistics: Mapping[str, LayerStatistics],
    track: Track = silent,
) -> dict[str, CompressedLayer]:
    """The stored tensors of every layer in ``plan``, by site name."""
    chosen = [site for site in sites if site.name in plan.forms]
    return {
        site.name: realize_layer(
            weight_of(model, site),
            plan.forms[site.name],
            statistics.get(site.name),
            is_table=site.kind == "embedding",
        )
        for site in track(chosen, "Quantizing", len(chosen))
    }


def realize_layer(
    weight: Tensor,
    form: LayerForm,
    statistics: LayerStatistics | None = None,
    *,
    is_table: bool = False,
) -> CompressedLayer:
    """The stored tensors of one layer.

    Args:
        weight: float32 [out, in].
        form: a dense term or a low-rank pair.
        statistics: of the layer's inputs; None for a table, or where there is no data.
        is_table: the weight is an embedding.
    """
    rows, columns = weight.shape
    dense = left = right = None
    if form.dense:
        dense = round_second_order(weight, form.dense, statistics.covariance if statistics else None)
    if form.factors:
        left, right = factorize(weight).truncate(form.rank).quantize(form.factors)
    layer = CompressedLayer((rows, columns), dense, left, right, is_table=is_table)
    if statistics is None:
        return layer
    shift = (weight.double() - layer.weight().double()) @ statistics.mean
    return replace(layer, bias_shift=shift.float())
