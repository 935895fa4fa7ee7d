"""Turn the form of a layer into its stored tensors: round, factorize and round, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from svd2onnx.device import CPU, map_on, on
from svd2onnx.factors import quantized_correction, quantized_pair
from svd2onnx.layer_statistics import LayerStatistics
from svd2onnx.layers import weight_of
from svd2onnx.lowrank import Decompose, Factorization, Weighting, factorize
from svd2onnx.once import Once, anew
from svd2onnx.progress import Track, silent
from svd2onnx.quantize import quantize
from svd2onnx.rounding import SWEEPS, Curvature, round_second_order
from svd2onnx.schema import CompressedLayer, CompressionPlan, LayerForm, LayerSite, QuantizedTensor, QuantSpec
from svd2onnx.spill import Shelf

_BATCHED = 1 << 26
"""Elements of all settings of a weight that are rounded in one pass."""
_ROWS = 4096


def realize(
    model: nn.Module,
    sites: Sequence[LayerSite],
    plan: CompressionPlan,
    statistics: Mapping[str, LayerStatistics],
    track: Track = silent,
    decompose: Decompose = factorize,
    shelf: Shelf | None = None,
    once: Once = anew,
    device: torch.device = CPU,
) -> dict[str, CompressedLayer]:
    """The stored tensors of every layer in ``plan``, by site name; ``once`` may know them.

    They are computed on ``device``, and their codes lie on ``shelf``.
    """
    shelf = shelf or Shelf()
    chosen = [site for site in sites if site.name in plan.forms]

    def work(site: LayerSite) -> CompressedLayer:
        form, is_article = plan.forms[site.name], plan.method == "svd"

        def made() -> CompressedLayer:
            weight, own = weight_of(model, site), statistics.get(site.name)
            if site.kind == "embedding":
                return realize_table(weight, form)
            if is_article and form.factors:
                layer = realize_article(weight, form, own, decompose)
            else:
                weight, own = on(device, (weight, own))
                layer = on(CPU, next(realize_forms(weight, [form], own)))
            return replace(layer, kind=site.kind)

        return _kept(once("codes", (site.name, form, is_article), made), shelf)

    results = track(map_on(device, work, chosen), "Quantizing", len(chosen))
    return {site.name: layer for site, layer in zip(chosen, results, strict=True)}


def realize_forms(
    weight: Tensor,
    forms: Sequence[LayerForm],
    statistics: LayerStatistics | None,
    sweeps: int = SWEEPS,
) -> Iterator[CompressedLayer]:
    """The stored tensors of a weight [out, in] that multiplies, in each of ``forms``, in their order.

    Dense forms share passes of rounding, and pairs one decomposition. Without statistics of the inputs,
    all are equal and independent.
    """
    curvature = Curvature.of(statistics) if statistics and statistics.covariance is not None else None
    specs = [form.dense for form in forms if form.dense and not form.factors]
    dense = iter(_rounded(weight, specs, curvature, sweeps))
    weighting: Weighting | None = None
    factors: Factorization | None = None
    whole = curvature or Curvature.identity(weight.shape[1])
    for form in forms:
        layer = CompressedLayer(_shape(weight))
        if form.dense and form.factors:
            weighting = weighting or Weighting(whole.inputs, whole.outputs)
            term, left, right = quantized_correction(weight, form, whole, weighting)
            layer = replace(layer, dense=term, left=left, right=right)
        elif form.factors:
            weighting = weighting or Weighting(whole.inputs, whole.outputs)
            factors = factors or weighting.factorize(weight)
            left, right = quantized_pair(weight, factors.truncate(form.rank), form.factors, whole)
            layer = replace(layer, left=left, right=right)
        elif form.dense:
            layer = replace(layer, dense=next(dense))
        yield _with_shift(layer, weight, statistics)


def realize_article(
    weight: Tensor, form: LayerForm, statistics: LayerStatistics | None, decompose: Decompose = factorize
) -> CompressedLayer:
    """A pair as the article has it: the truncated SVD of the weight itself, rounded to nearest."""
    assert form.factors is not None
    left, right = decompose(weight).truncate(form.rank).quantize(form.factors)
    return _with_shift(CompressedLayer(_shape(weight), left=left, right=right), weight, statistics)


def realize_table(table: Tensor, form: LayerForm) -> CompressedLayer:
    """A table of embeddings, rounded to nearest: rows that calibration does not meet count as well."""
    assert form.dense is not None
    return CompressedLayer(_shape(table), quantize(table, form.dense), kind="embedding")


def _kept(layer: CompressedLayer, shelf: Shelf) -> CompressedLayer:
    def kept(tensor: QuantizedTensor | None) -> QuantizedTensor | None:
        return None if tensor is None else replace(tensor, codes=shelf.keep(tensor.codes))

    return replace(layer, dense=kept(layer.dense), left=kept(layer.left), right=kept(layer.right))


def _rounded(
    weight: Tensor, specs: Sequence[QuantSpec], curvature: Curvature | None, sweeps: int
) -> Iterator[QuantizedTensor]:
    together = max(1, _BATCHED // weight.numel())
    for start in range(0, len(specs), together):
        yield from round_second_order(weight, specs[start : start + together], curvature, sweeps)


def _with_shift(
    layer: CompressedLayer, weight: Tensor, statistics: LayerStatistics | None
) -> CompressedLayer:
    """``layer`` with the correction D E[x] of its bias."""
    if statistics is None or statistics.mean is None:
        return layer
    kept = layer.weight().to(weight.device)
    parts = zip(torch.split(weight, _ROWS), torch.split(kept, _ROWS), strict=True)
    shift = torch.cat([(own.double() - stored.double()) @ statistics.mean for own, stored in parts])
    return replace(layer, bias_shift=shift.float())


def _shape(weight: Tensor) -> tuple[int, int]:
    rows, columns = weight.shape
    return rows, columns
