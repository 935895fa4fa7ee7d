"""What a network is made of, and what its layers would gain, before anything is done to it.

The spectrum of W says how well W itself has a low rank. What counts is the layer's output, whose spectrum is
that of W A^1/2, with A the covariance of the inputs: directions that inputs never take cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.moments import root, times
from svd2onnx.compute.progress import Track, silent
from svd2onnx.compute.workers import finished
from svd2onnx.network.layers import weight_of
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.planning.candidates import forms_of, priced
from svd2onnx.planning.fixed_rules import fitting_spec
from svd2onnx.values.schema import LayerForm, LayerSite, QuantSpec
from svd2onnx.values.settings import DEFAULT_BLOCKS, Settings

ENERGIES = (0.9, 0.99)
_FLOOR = 1e-8
"""Of the spectrum of A: as good as nothing."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values, the largest first, and the ranks that hold ENERGIES of the sum of their squares."""

    values: tuple[float, ...]
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, matrix: Tensor) -> Spectrum:
        values = torch.linalg.svdvals(matrix)
        energy = values.double().square()
        held, whole = energy.cumsum(0), energy.sum()
        ranks = (int((held < part * whole).sum()) + 1 if whole > 0 else 0 for part in ENERGIES)
        return cls(tuple(values.tolist()), tuple(ranks))


@dataclass(frozen=True)
class Gain:
    """What one form of a layer would take, and its predicted error of the network (see ``candidates``)."""

    form: str
    stored_bytes: int
    predicted_error: float


@dataclass(frozen=True)
class LayerInspection:
    """One layer; what does not apply to it, or is not known without data, is None or empty.

    Attributes:
        spectrum: of its weight.
        used_spectrum: of its weight times its inputs.
        gains: of "8 bits", "4 bits" and "pair", the best low-rank pair clearly smaller than 4 bits.
        note: why it would stay float.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    float_bytes: int
    spectrum: Spectrum | None = None
    used_spectrum: Spectrum | None = None
    gains: dict[str, Gain] = field(default_factory=dict)
    note: str | None = None


def inspect_layers(
    source: Path, settings: Settings, data: Path | None = None, track: Track = silent
) -> list[LayerInspection]:
    """Every layer of the network of ``source`` that has parameters.

    Raises:
        Svd2OnnxError: the source cannot be loaded or a pattern matches nothing.
    """
    prepared = prepare(source, settings, data, track)
    statistics = gather_statistics(prepared)

    def arguments(site: LayerSite) -> tuple[object, ...]:
        weight = None if site.skip_reason else weight_of(prepared.model, site)
        return weight, site, statistics.get(site.name)

    results = track(
        finished(_inspected, prepared.sites, arguments, device=prepared.device),
        "Decomposing",
        len(prepared.sites),
    )
    inspected = {site.name: layer for site, layer in results}
    return [inspected[site.name] for site in prepared.sites]


def _inspected(weight: Tensor | None, site: LayerSite, statistics: LayerStatistics | None) -> LayerInspection:
    layer = LayerInspection(site.name, site.kind, site.shape, site.float_bytes, note=site.skip_reason)
    if weight is None:
        return layer
    spectrum = used = None
    if site.kind not in ("embedding", "stored"):
        spectrum = Spectrum.of(weight)
        if statistics is not None and statistics.covariance is not None:
            inputs = root(statistics.covariance.double(), _FLOOR)
            used = Spectrum.of(times(weight, inputs.float()))
    gains = _gains(weight, site, statistics)
    many = f": its {site.copies} calls need a copy of its codes each" if site.copies > 1 else ""
    note = None if gains else f"no other form is smaller{many}"
    return LayerInspection(site.name, site.kind, site.shape, site.float_bytes, spectrum, used, gains, note)


def _gains(weight: Tensor, site: LayerSite, statistics: LayerStatistics | None) -> dict[str, Gain]:
    dense = {
        f"{bits} bits": LayerForm(dense=fitting_spec(site, QuantSpec(bits, DEFAULT_BLOCKS[bits])))
        for bits in (8, 4)
    }
    forms = forms_of(site)
    # Of each width of factors the largest rank, which comes last.
    pairs = {form.factors: form for form in forms if form.factors and not form.dense}
    named = [(name, form) for name, form in dense.items() if form in forms]
    named += [("pair", form) for form in pairs.values()]
    found, _ = priced(weight, site, statistics, [form for _, form in named])
    gains: dict[str, Gain] = {}
    for (name, form), candidate in zip(named, found, strict=True):
        gain = Gain(str(form), candidate.size, candidate.error)
        if name not in gains or gain.predicted_error < gains[name].predicted_error:
            gains[name] = gain
    return gains


def total_bytes(rows: Sequence[LayerInspection], gain: str) -> int:
    """Bytes of all layers where each that can takes this gain and the others stay float."""
    return sum(row.gains[gain].stored_bytes if gain in row.gains else row.float_bytes for row in rows)
