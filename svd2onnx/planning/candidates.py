"""What could replace a layer, each way priced in stored bytes and in predicted error of the network.

    form                       for
    float                      where nothing else is good enough
    dense 8 / 4 / 2 bits       blocks of 32, 64, 128
    pair of rank r             factors at 8, 4 and 2 bits, ranks in whole blocks, smaller than dense 4 bits
    dense + pair               2 + 4 and 4 + 4 bits: a dense term with a low-rank correction
    rank 0                     the bias alone

Tables (embeddings) are quantized by rounding to nearest, whole rows at a time, and have no low-rank forms.
Convolutions have dense forms and, without groups, pairs; corrections would cost them time. Stored weights
are quantized by rounding to nearest, and have dense forms only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.realize import TO_NEAREST, realize_forms, realize_nearest
from svd2onnx.compute.device import CPU
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.progress import Track, silent
from svd2onnx.compute.workers import finished_memoized
from svd2onnx.network.int8 import int8_weight
from svd2onnx.network.layers import weight_of
from svd2onnx.planning.fixed_rules import fitting_spec
from svd2onnx.planning.int8_error import rounding_errors
from svd2onnx.planning.prediction import ErrorPredictor, RelativeChange
from svd2onnx.planning.screening import realize_promising
from svd2onnx.values.schema import BITS, CompressedLayer, LayerForm, LayerSite, QuantSpec

Predictor = Callable[[Sequence[Tensor]], list[float]]
BLOCKS = (32, 64, 128)
FACTOR_BLOCK = 32
"""Ranks are whole blocks, so small blocks give a fine choice of ranks."""
CORRECTIONS = ((2, 32), (2, 64), (2, 96), (4, 32))
"""Bits of the dense term, and the rank of the 4-bit pair beside it."""
_PAIR_LIMIT = 0.85
_LARGE = 2048
_SWEEPS = 1
"""Of the descent: enough to compare forms; what is chosen is rounded with more care."""
_OTHER_OUTPUTS = 0.1
"""What the error of a layer counts that only outputs depend on which are not judged."""
_TOGETHER = 1 << 26
_MOST_OUTPUTS = 8192
"""A weight with more is a vocabulary's projection: of full rank, and slow to decompose."""


@dataclass(frozen=True)
class Candidate:
    """One way to store one layer: ``form`` is None for float32. ``size`` counts bytes of all copies.

    ``latency`` is the time of all its calls in ms, 0 where nothing asks for it.
    """

    form: LayerForm | None
    size: int
    error: float
    latency: float = 0.0


def candidates(
    model: nn.Module,
    sites: Sequence[LayerSite],
    statistics: Mapping[str, LayerStatistics],
    dropped: Mapping[str, float] | None = None,
    activations: Sequence[str] = ("float",),
    *,
    rounding: Mapping[str, float] | None = None,
    track: Track = silent,
    memoize: Memoize = no_memo,
    device: torch.device = CPU,
    only_promising: bool = True,
) -> dict[str, list[Candidate]]:
    """The priced candidates of every usable site, by its name.

    Args:
        model: the float network.
        sites: those that were found in it.
        statistics: with gradients, as ``calibrate`` gives them for an objective; for a site without, such as
            one that the judged output does not depend on, errors are relative errors of its weight.
        dropped: the measured errors of the network with the outputs of one site constant, as ``drop_errors``
            gives them: no small change, so its prediction is not to be trusted.
        activations: what a layer may compute with.
        rounding: the predicted error of rounding what a convolution in int8 takes and gives, by site name.
        track: shows the progress.
        memoize: may know prices from an earlier run.
        device: where they are computed.
        only_promising: leave out low-rank forms that no plan for a size or a fidelity would choose. One for
            a latency might: they may be faster than what has fewer bytes.
    """
    usable = [site for site in sites if site.skip_reason is None]

    kinds = tuple(activations)

    def least(site: LayerSite) -> float:
        return (dropped or {}).get(site.name, 0.0)

    results = finished_memoized(
        memoize,
        "prices",
        lambda site: (site.name, least(site), kinds, only_promising, (rounding or {}).get(site.name)),
        _priced,
        usable,
        lambda site: (
            weight_of(model, site),
            site,
            statistics.get(site.name),
            _Asked(least(site), (rounding or {}).get(site.name, 0.0), kinds, only_promising),
        ),
        device=device,
        weights=lambda site: site.weights,
    )
    menu = {site.name: options for site, options in track(results, "Pricing candidates", len(usable))}
    return {site.name: menu[site.name] for site in usable}


def forms_of(site: LayerSite) -> list[LayerForm]:
    """The compressed forms that suit ``site``, dense ones first, and take fewer bytes than float."""
    dense = {fitting_spec(site, QuantSpec(bits, block)): None for bits in BITS for block in BLOCKS}
    forms = [LayerForm(dense=spec) for spec in dense]
    if site.multiplies and site.shape[0] <= _MOST_OUTPUTS:
        forms += _pairs(site)
    if site.kind == "linear":
        if site.shape[0] <= _MOST_OUTPUTS:
            forms += _corrections(site.shape)
        forms.append(LayerForm())
    return [form for form in forms if form.stored_bytes(site.shape) * site.copies < site.float_bytes]


def least_bytes(sites: Sequence[LayerSite], float_bytes: int) -> int:
    """About the bytes of the smallest file, whose float32 original has ``float_bytes``."""
    for site in sites:
        if site.skip_reason is None:
            stored = [form.stored_bytes(site.shape) * site.copies for form in forms_of(site)]
            float_bytes += min(stored, default=site.float_bytes) - site.float_bytes
    return float_bytes


def priced(
    weight: Tensor,
    site: LayerSite,
    statistics: LayerStatistics | None,
    forms: Sequence[LayerForm],
    only_promising: bool = False,
) -> tuple[list[Candidate], list[CompressedLayer]]:
    """One site in each of ``forms``, priced as ``candidates`` says, and what is stored then."""
    predict = _predictor(weight, statistics)
    if site.kind in TO_NEAREST:
        layers = [realize_nearest(weight, site, form) for form in forms]
    else:
        made = realize_promising if only_promising else realize_forms
        layers = list(made(weight, forms, statistics, _SWEEPS))
    errors = _errors(predict, weight, layers)
    sizes = [layer.stored_bytes * site.copies for layer in layers]
    forms = [layer.form for layer in layers]
    return [Candidate(*one) for one in zip(forms, sizes, errors, strict=True)], layers


@dataclass(frozen=True)
class _Asked:
    """What is known of a site besides its statistics, and which forms are wanted; see ``candidates``."""

    dropped: float
    rounding: float
    activations: Sequence[str]
    only_promising: bool


def _predictor(weight: Tensor, statistics: LayerStatistics | None) -> Predictor:
    if statistics is None:
        return RelativeChange(weight)
    return ErrorPredictor(statistics) if statistics.probes else RelativeChange(weight, _OTHER_OUTPUTS)


def _priced(
    weight: Tensor,
    site: LayerSite,
    statistics: LayerStatistics | None,
    asked: _Asked,
) -> list[Candidate]:
    found, layers = priced(weight, site, statistics, forms_of(site), asked.only_promising)
    if found and found[-1].form == LayerForm():
        found[-1] = replace(found[-1], error=max(found[-1].error, asked.dropped))
    whole = Candidate(None, site.float_bytes, 0.0)
    if not site.computes_in_int8 or "int8" not in asked.activations:
        return [whole, *found]
    if site.kind == "linear":
        integer = _in_int8(found, rounding_errors(weight, layers, statistics))
    else:
        integer = _convolutions_in_int8(found, layers, _predictor(weight, statistics), weight, asked.rounding)
    if "float" not in asked.activations:
        found = [c for c in found if c.form == LayerForm()]
        if site.kind == "convolution" and integer:
            # One in float amid others in int8 costs two hops: it is made worth no plan.
            whole = replace(whole, error=max(candidate.error for candidate in integer))
    return [whole, *found, *integer]


def _in_int8(priced: Sequence[Candidate], rounding: Sequence[float]) -> list[Candidate]:
    """Those of ``priced`` that multiply, with int8 activations; rounding inputs adds to their errors."""
    return [
        Candidate(replace(c.form, activations="int8"), c.size, c.error + extra)
        for c, extra in zip(priced, rounding, strict=True)
        if c.form is not None and c.form.specs
    ]


def _convolutions_in_int8(
    priced: Sequence[Candidate],
    layers: Sequence[CompressedLayer],
    predict: Predictor,
    weight: Tensor,
    rounding: float,
) -> list[Candidate]:
    """Those of ``priced`` with their weights rounded to int8 too. A pair rounds once more between its two."""
    fit = [(c, layer) for c, layer in zip(priced, layers, strict=True) if not (layer.dense and layer.left)]
    errors = predict([weight - int8_weight(layer).to(weight.device) for _, layer in fit])
    return [
        Candidate(
            replace(c.form, activations="int8"), c.size, error + rounding * (1 if layer.left is None else 2)
        )
        for (c, layer), error in zip(fit, errors, strict=True)
        if c.form is not None
    ]


def _errors(predict: Predictor, weight: Tensor, layers: Sequence[CompressedLayer]) -> list[float]:
    """Some layers at a time, because their changes are as large as the weight."""
    together = max(1, _TOGETHER // weight.numel())
    parts = (layers[start : start + together] for start in range(0, len(layers), together))
    changes = ([weight - layer.weight().to(weight.device) for layer in part] for part in parts)
    return [error for part in changes for error in predict(part)]


def _pairs(site: LayerSite) -> Iterator[LayerForm]:
    """Ranks that grow by a third, as long as the pair is clearly smaller than 4 bits dense.

    In large layers, where each takes long to round, they grow faster.

    One of a convolution must save arithmetic besides: it is two convolutions where a float one is as fast.
    """
    shape = site.shape
    growth = 1.3 if min(shape) < _LARGE else 1.6
    limit = _PAIR_LIMIT * LayerForm(dense=QuantSpec(4, 128)).stored_bytes(shape)
    most = min(shape)
    if site.kind == "convolution":
        most = int(_PAIR_LIMIT * math.prod(shape) / sum(shape))
    for bits in BITS:
        spec, blocks = QuantSpec(bits, FACTOR_BLOCK), 1
        if site.kind == "linear" and bits == 2 and shape[0] % 4:
            continue  # int2 goes wrong in onnxruntime, see ``fitting_spec``
        while True:
            form = LayerForm(rank=blocks * FACTOR_BLOCK, factors=spec)
            if form.rank > most or form.stored_bytes(shape) > limit:
                break
            yield form
            blocks = max(blocks + 1, round(blocks * growth))


def _corrections(shape: tuple[int, ...]) -> Iterator[LayerForm]:
    for bits, rank in CORRECTIONS:
        if rank < min(shape) // 2 and (bits != 2 or shape[0] % 4 == 0):
            yield LayerForm(QuantSpec(bits, 64), rank, QuantSpec(4, FACTOR_BLOCK))
