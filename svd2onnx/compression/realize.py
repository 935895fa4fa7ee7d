"""Turn the form of a layer into its stored tensors: round, factorize and round, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.factors import Corrections, Target, quantized_pair
from svd2onnx.compression.held_out import better_on
from svd2onnx.compression.lowrank import Decompose, Factorization, Weighting, factorize
from svd2onnx.compression.quantize import quantize
from svd2onnx.compression.rounding import SWEEPS, Curvature, round_second_order
from svd2onnx.compute.device import CPU
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.progress import Track, silent
from svd2onnx.compute.tensor_store import TensorStore
from svd2onnx.compute.workers import finished_memoized
from svd2onnx.network.layers import weight_of
from svd2onnx.values.schema import (
    CompressedLayer,
    CompressionPlan,
    LayerForm,
    LayerSite,
    QuantizedTensor,
    QuantSpec,
)

TO_NEAREST = ("embedding", "stored")
"""Kinds that are rounded to nearest: rows of a table that calibration does not meet count as well, and of a
stored weight the inputs are not known."""
_BATCHED = 1 << 26
"""Elements of all settings of a weight that are rounded in one pass."""
_ROWS = 4096


def realize(
    model: nn.Module,
    sites: Sequence[LayerSite],
    plan: CompressionPlan,
    statistics: Mapping[str, LayerStatistics],
    *,
    track: Track = silent,
    decompose: Decompose = factorize,
    store: TensorStore | None = None,
    memoize: Memoize = no_memo,
    device: torch.device = CPU,
) -> dict[str, CompressedLayer]:
    """The stored tensors of every layer in ``plan``, by site name; ``memoize`` may know them.

    They are computed on ``device``, and their codes lie in ``store``.
    """
    store = store or TensorStore()
    chosen = [site for site in sites if site.name in plan.forms]

    is_article = plan.method == "svd"

    def arguments(site: LayerSite) -> tuple[object, ...]:
        form, weight = plan.forms[site.name], weight_of(model, site)
        # The article's plan has decomposed what it gives a rank: here it is known.
        factors = decompose(weight).truncate(form.rank) if is_article and form.factors else None
        return weight, site, form, statistics.get(site.name), factors

    results = finished_memoized(
        memoize,
        "codes",
        lambda site: (site.name, plan.forms[site.name], is_article),
        _realized,
        chosen,
        arguments,
        device=device,
        weights=lambda site: site.weights,
    )
    shown = track(results, "Quantizing", len(chosen))
    layers = {site.name: _kept(layer, store) for site, layer in shown}
    return {site.name: layers[site.name] for site in chosen}


def _realized(
    weight: Tensor,
    site: LayerSite,
    form: LayerForm,
    statistics: LayerStatistics | None,
    factors: Factorization | None,
) -> CompressedLayer:
    """One layer in ``form``, which is the article's where there are ``factors``."""
    if site.kind in TO_NEAREST:
        return realize_nearest(weight, site, form)
    if factors is not None:
        layer = realize_article(weight, form, statistics, factors)
    else:
        layer = next(realize_forms(weight, [form], statistics))
    return replace(layer, kind=site.kind)


def realize_forms(
    weight: Tensor,
    forms: Sequence[LayerForm],
    statistics: LayerStatistics | None,
    sweeps: int = SWEEPS,
) -> Iterator[CompressedLayer]:
    """The stored tensors of a weight [out, in] that multiplies, in each of ``forms``, in their order."""
    realizer = Realizer(weight, forms, statistics, sweeps)
    return (realizer.layer(form) for form in forms)


class Realizer:
    """Makes the stored tensors of one weight [out, in] that multiplies.

    Dense forms share passes of rounding, and pairs one decomposition. Without statistics of the inputs,
    all are equal and independent.

    Args:
        weight: [out, in].
        forms: those that will be asked for, dense ones in this order.
        statistics: of its inputs and outputs.
        sweeps: see ``round_second_order``.
    """

    def __init__(
        self,
        weight: Tensor,
        forms: Sequence[LayerForm],
        statistics: LayerStatistics | None,
        sweeps: int = SWEEPS,
    ) -> None:
        self.shape = _shape(weight)
        self._statistics = statistics
        known = Curvature.of(statistics) if statistics and statistics.covariance is not None else None
        dense = [f.dense for f in forms if f.dense and not f.factors]
        held_out = statistics.held_out if statistics else None
        self._dense = _rounded(weight, dense, known, sweeps, held_out)
        self._target = Target(weight, known or Curvature.identity(weight.shape[1]))
        self._largest_pair = max((form.rank for form in forms if not form.dense), default=0)
        self._largest_correction = max((form.rank for form in forms if form.dense), default=0)

    def layer(self, form: LayerForm) -> CompressedLayer:
        """What is stored of it in ``form``."""
        layer = CompressedLayer(self.shape)
        if form.dense and form.factors:
            term, left, right = self._corrections.quantized(form)
            layer = replace(layer, dense=term, left=left, right=right)
        elif form.factors:
            left, right = quantized_pair(self._target, self._factors.truncate(form.rank), form.factors)
            layer = replace(layer, left=left, right=right)
        elif form.dense:
            layer = replace(layer, dense=next(self._dense))
        return _with_shift(layer, self._target.weight, self._statistics)

    def loss(self, layer: CompressedLayer) -> float:
        """What rounding minimises, of a layer that was made here (``Curvature.loss``)."""
        if not layer.form.specs:
            return self._target.loss
        if layer.left and layer.right and not layer.dense:
            return self._target.loss_with(layer.left.dequantize(), layer.right.dequantize())
        return self._target.curvature.loss(self._target.weight - layer.weight())

    def least_loss(self, form: LayerForm) -> float:
        """What hardly any rounding of the factors of ``form`` goes below."""
        if form.dense:
            return self._corrections.least_loss(form)
        return self._target.left_by(self._factors.truncate(form.rank))

    @cached_property
    def _weighting(self) -> Weighting:
        return Weighting(self._target.curvature.inputs, self._target.curvature.outputs)

    @cached_property
    def _factors(self) -> Factorization:
        return self._weighting.factorize(self._target.weight, self._largest_pair)

    @cached_property
    def _corrections(self) -> Corrections:
        return Corrections(self._target, self._weighting, self._largest_correction)


def realize_article(
    weight: Tensor, form: LayerForm, statistics: LayerStatistics | None, factors: Factorization
) -> CompressedLayer:
    """A pair as the article has it: ``factors``, the truncated SVD of the weight, rounded to nearest."""
    assert form.factors is not None
    left, right = factors.quantize(form.factors)
    return _with_shift(CompressedLayer(_shape(weight), left=left, right=right), weight, statistics)


def realize_nearest(weight: Tensor, site: LayerSite, form: LayerForm) -> CompressedLayer:
    """A table of embeddings or a stored weight, each block rounded to nearest with the best scale."""
    assert form.dense is not None
    return CompressedLayer(_shape(weight), quantize(weight, form.dense), kind=site.kind)


def _kept(layer: CompressedLayer, store: TensorStore) -> CompressedLayer:
    def kept(tensor: QuantizedTensor | None) -> QuantizedTensor | None:
        return None if tensor is None else replace(tensor, codes=store.keep(tensor.codes))

    return replace(layer, dense=kept(layer.dense), left=kept(layer.left), right=kept(layer.right))


def _rounded(
    weight: Tensor,
    specs: Sequence[QuantSpec],
    curvature: Curvature | None,
    sweeps: int,
    held_out: Tensor | None,
) -> Iterator[QuantizedTensor]:
    together = max(1, _BATCHED // weight.numel())
    for start in range(0, len(specs), together):
        for careful in round_second_order(weight, specs[start : start + together], curvature, sweeps):
            if curvature is None or held_out is None:
                yield careful
            else:
                yield better_on(held_out, weight, quantize(weight, careful.spec), careful)


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
