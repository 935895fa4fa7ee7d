"""Choose the form of every layer: plain quantization, or the article's low rank with a fallback to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.lowrank import Decompose, factorize, smallest_rank
from svd2onnx.compute.progress import Track, silent
from svd2onnx.network.layers import bias_of, weight_of
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import BLOCK_SIZES, CompressionPlan, LayerForm, LayerSite, QuantSpec


def uniform_plan(sites: Sequence[LayerSite], spec: QuantSpec) -> CompressionPlan:
    """Every compressible layer quantized to ``spec``, or to the nearest that its shape allows."""
    forms: dict[str, LayerForm] = {}
    notes: dict[str, str] = {}
    for site in sites:
        if site.skip_reason is not None:
            continue
        own = fitting_spec(site, spec)
        form = LayerForm(dense=own)
        copies = site.copies
        if copies * form.stored_bytes(site.shape) >= site.float_bytes:
            notes[site.name] = f"kept float: {copies} calls would need {copies} copies of its codes"
            continue
        if own != spec:
            notes[site.name] = f"{own} in place of {spec}, which its shape {site.shape} does not allow"
        forms[site.name] = form
    return CompressionPlan("quantize", forms, notes)


def with_activations(plan: CompressionPlan, sites: Sequence[LayerSite], activations: str) -> CompressionPlan:
    """``plan`` with every layer that multiplies computing with ``activations``."""
    multiply = {site.name for site in sites if site.computes_in_int8}
    forms = {
        name: replace(form, activations=activations) if name in multiply and form.specs else form
        for name, form in plan.forms.items()
    }
    return replace(plan, forms=forms)


def article_plan(
    model: nn.Module,
    sites: Sequence[LayerSite],
    statistics: Mapping[str, LayerStatistics],
    spec: QuantSpec,
    epsilon: float,
    *,
    track: Track = silent,
    decompose: Decompose = factorize,
) -> CompressionPlan:
    """The article's rule: the smallest rank within ``epsilon``, or plain quantization where that is smaller.

    Raises:
        PlanError: ``epsilon`` is not positive.
    """
    if not epsilon > 0:
        raise PlanError(f"epsilon bounds a relative error and must be positive, not {epsilon}")
    plain = uniform_plan(sites, spec)
    forms, notes = dict(plain.forms), dict(plain.notes)
    factored = [site for site in sites if site.multiplies and site.name in forms]
    for site in track(factored, "Choosing ranks", len(factored)):
        dense = forms[site.name].dense
        assert dense is not None
        samples = statistics[site.name].samples
        assert samples is not None
        weight, bias = weight_of(model, site), bias_of(model, site.name)
        rank = smallest_rank(weight, samples, bias, dense, epsilon, decompose)
        if rank is None:
            notes[site.name] = f"dense: no smaller low-rank pair has relative error <= {epsilon}"
        else:
            forms[site.name] = LayerForm(rank=rank, factors=dense)
    return CompressionPlan("svd", forms, notes)


def fitting_spec(site: LayerSite, spec: QuantSpec) -> QuantSpec:
    """``spec``, or the nearest one that onnxruntime computes rightly for the shape of ``site``.

    In onnxruntime 1.31, int2 codes with a number of outputs that is no multiple of 4 give wrong
    results, so they become int4, and int2 has fast kernels for blocks of 32 to 128 alone. A table's
    rows must be whole blocks. The weight of a convolution and a stored one are made floats at load, and take
    any.
    """
    rows, columns = site.shape
    if site.kind == "embedding":
        block = max(size for size in BLOCK_SIZES if size <= spec.block_size and columns % size == 0)
        return QuantSpec(spec.bits, block)
    if spec.bits != 2 or site.kind in ("convolution", "stored"):
        return spec
    return QuantSpec(4 if rows % 4 else 2, min(max(spec.block_size, 32), 128))
