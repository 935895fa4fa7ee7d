"""What each layer costs in each form on the target provider: measured with graphs of one layer alone.

Ranks between those measured are interpolated; with int8 activations the stored bits make no difference to the
time, because the weights are made int8 when the file is loaded.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from svd2onnx.compute.progress import Track, silent
from svd2onnx.latency.convolution_graphs import write_convolution_graph
from svd2onnx.latency.layer_graphs import write_layer_graph
from svd2onnx.values.schema import LayerForm, LayerSite, QuantSpec
from svd2onnx_runtime.latency_table import LatencyTable, LayerKey, LayerLatency, time_layers

FLOAT = "float"
_INT8 = QuantSpec(8, 128)
_ENOUGH = 1 << 24
"""Multiplications in one graph, so that the call of a session is small beside them."""
_MOST_COPIES = 8
_RANKS = 3
"""Ranks of each kind of pair that are measured, from the least to the largest."""
_CACHE = 1 << 25
"""Bytes that stay in the caches of today's processors and GPUs from one call to the next."""

Leading = tuple[int, ...]


def leading_axes(
    model: nn.Module, sites: Sequence[LayerSite], batch: Mapping[str, Tensor]
) -> dict[str, list[Leading]]:
    """The axes of each site's inputs before the last, one entry for each call.

    Of a table those of its ids; of a convolution all of them; none of a stored weight, which takes as long in
    every form, because its operator computes on floats.
    """
    seen: dict[str, list[Leading]] = defaultdict(list)
    handles = []
    for site in sites:
        for name in site.names if site.skip_reason is None and site.kind != "stored" else ():

            def note(_module: nn.Module, args: Any, site: LayerSite = site) -> None:
                shape = tuple(args[0].shape)
                seen[site.name].append(shape[:-1] if site.kind == "linear" else shape)

            handles.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return dict(seen)


def measure(
    table: LatencyTable,
    sites: Sequence[LayerSite],
    leading: Mapping[str, Sequence[Leading]],
    menu: Mapping[str, Sequence[LayerForm | None]],
    track: Track = silent,
) -> LatencyTable:
    """``table`` with all that is missing for predicting every form of ``menu``, by site name."""
    wanted: dict[tuple[LayerSite, Leading], dict[str, LayerForm | None]] = defaultdict(dict)
    alike: dict[tuple[str, tuple[int, ...]], LayerSite] = {}
    for site in sites:
        same = alike.setdefault((_kind(site), site.shape), site)
        for axes in set(leading.get(site.name, ())):
            for form in _measured(site, menu.get(site.name, ())):
                if _key(site, form, axes) not in table.entries:
                    wanted[same, axes][_label(site, form)] = form
    for group, forms in track(list(wanted.items()), "Timing layers", len(wanted)):
        # The float layer is timed anew beside each group, so that all of it has one moment's speed.
        table = table.extended(_timed(table, *group, {FLOAT: None, **forms}))
    return table


@dataclass(frozen=True)
class LayerTimes:
    """Looks up what a site costs in a form, in ms for all of its calls.

    Where the float weights of all layers, ``float_bytes``, are more than the caches hold, every layer takes
    its cold time; compressed ones may fit, but differences to the float graph are predicted best from times
    of one kind.
    """

    table: LatencyTable
    leading: Mapping[str, Sequence[Leading]]
    float_bytes: int

    def __call__(self, site: LayerSite, form: LayerForm | None) -> float:
        return sum(self._one(site, form, axes) for axes in self.leading.get(site.name, ()))

    def _one(self, site: LayerSite, form: LayerForm | None, axes: Leading) -> float:
        if form is not None and form.dense is None and form.factors:
            return self._pair(site, form, axes)
        return self._ms(site, form, axes)

    def _pair(self, site: LayerSite, form: LayerForm, axes: Leading) -> float:
        """Linear in the rank between those that were measured."""
        measured = {}
        for rank in range(1, min(site.shape) + 1):
            other = replace(form, rank=rank)
            if _key(site, other, axes) in self.table.entries:
                measured[rank] = self._ms(site, other, axes)
        return float(np.interp(form.rank, list(measured), list(measured.values())))

    def _ms(self, site: LayerSite, form: LayerForm | None, axes: Leading) -> float:
        latency = self.table.entries[_key(site, form, axes)]
        return latency.cold_ms if self.float_bytes > _CACHE else latency.hot_ms


def _measured(site: LayerSite, forms: Iterable[LayerForm | None]) -> list[LayerForm | None]:
    """Of the pairs of one kind, a few ranks; of the rest, one of those that run alike."""
    kept: dict[str, LayerForm | None] = {}
    pairs: dict[str, list[LayerForm]] = defaultdict(list)
    for form in forms:
        if form is not None and form.dense is None and form.factors:
            pairs[_label(site, replace(form, rank=1))].append(form)
        else:
            kept.setdefault(_label(site, form), form)
    for same in pairs.values():
        ranks = sorted(same, key=lambda form: form.rank)
        for place in np.linspace(0, len(ranks) - 1, _RANKS).round().astype(int):
            kept.setdefault(_label(site, ranks[place]), ranks[place])
    return list(kept.values())


def _timed(
    table: LatencyTable, site: LayerSite, axes: Leading, forms: Mapping[str, LayerForm | None]
) -> dict[LayerKey, LayerLatency]:
    rows, columns = site.shape
    # Of a convolution too: its positions, times what it multiplies at each.
    places = math.prod(axes) // (axes[1] if site.geometry else 1)
    copies = max(1, min(_MOST_COPIES, _ENOUGH // (places * rows * columns)))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(forms))]
        for path, form in zip(paths, forms.values(), strict=True):
            if site.geometry is not None:
                rank, int8 = (form.rank, form.activations == "int8") if form else (0, False)
                write_convolution_graph(path, site.geometry, (rows, columns), axes, rank, copies, int8=int8)
            else:
                write_layer_graph(path, site.kind, (rows, columns), axes, form, copies)
        conditions = table.conditions
        times = time_layers(paths, copies, conditions.provider, conditions.threads)
    keys = (LayerKey(_kind(site), label, site.shape, axes) for label in forms)
    return dict(zip(keys, times, strict=True))


def _key(site: LayerSite, form: LayerForm | None, axes: Leading) -> LayerKey:
    return LayerKey(_kind(site), _label(site, form), site.shape, axes)


def _kind(site: LayerSite) -> str:
    return site.kind if site.geometry is None else f"{site.kind} {site.geometry}"


def _label(site: LayerSite, form: LayerForm | None) -> str:
    """What a form is called in the table: the same for forms that run alike."""
    if form is None:
        return FLOAT
    if site.kind == "convolution":  # on floats or in int8, whatever is stored
        pair = f"rank {form.rank}" if form.factors else ""
        int8 = "int8" if form.activations == "int8" else ""
        return " ".join(filter(None, [pair, int8])) or FLOAT
    if form.activations == "int8":
        form = replace(form, dense=form.dense and _INT8, factors=form.factors and _INT8)
    return str(form)
