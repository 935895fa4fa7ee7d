"""Predict the latency of a plan from its layers, and measure that of a file, both against the float32 graph.

    latency(plan) = latency(float) - sum_layers time(float) + sum_layers time(form)

What is not a compressible layer takes the time it takes in the float graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from svd2onnx.compute.progress import Track
from svd2onnx.latency.layer_times import LayerTimes, leading_axes, measure
from svd2onnx.planning.candidates import Candidate, forms_of
from svd2onnx.sources.model_file import arguments_of
from svd2onnx.values.errors import PlanError, one_line
from svd2onnx.values.schema import CompressionPlan, LayerForm, LayerSite
from svd2onnx.values.targets import parse_latency
from svd2onnx_runtime import open_session, synthetic_inputs, time_runs
from svd2onnx_runtime.errors import naming
from svd2onnx_runtime.latency_table import Conditions, LatencyTable, typical

_MOST_IN_LAYERS = 0.95
"""Of the float graph's time: layers timed at a slower moment of the machine cannot have taken more."""


@dataclass(frozen=True)
class LatencyModel:
    """The float graph at ``reference``, timed on ``inputs``, and its layers.

    ``float_ms`` is its latency, ``layers_ms`` what of it the compressible layers take, ``scale`` what
    the table's times are multiplied by, because they were measured at another moment.
    """

    reference: Path
    inputs: Mapping[str, np.ndarray]
    sites: Sequence[LayerSite]
    times: LayerTimes
    float_ms: float
    layers_ms: float
    scale: float

    def cost(self, site: LayerSite, form: LayerForm | None) -> float:
        """What ``site`` takes in ``form``, in ms."""
        return self.scale * self.times(site, form)

    def timed(self, menu: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Candidate]]:
        """``menu`` with the latency of every candidate."""
        sites = {site.name: site for site in self.sites}
        return {
            name: [replace(c, latency=self.cost(sites[name], c.form)) for c in options]
            for name, options in menu.items()
        }

    def predicted_ratio(self, plan: CompressionPlan) -> float:
        """The latency of ``plan`` over that of the float graph."""
        layers = sum(self.cost(site, plan.forms.get(site.name)) for site in self.sites)
        return 1 + (layers - self.layers_ms) / self.float_ms

    def measured_ratio(self, path: Path) -> float:
        """The latency of the file at ``path`` over that of the float graph, in turn in one process."""
        conditions = self.times.table.conditions
        timed = time_runs([self.reference, path], self.inputs, conditions.provider, conditions.threads)
        return float(timed.ratios[1])

    def corrected(self, error: float) -> LatencyModel:
        """A clock that gives what layers are not ``error`` (a share of the float graph's time) more."""
        return replace(self, layers_ms=self.layers_ms - error * self.float_ms)

    def allowed_ms(self, ratio: float) -> float:
        """What the layers may take for a latency of ``ratio`` of the float graph's."""
        return ratio * self.float_ms - (self.float_ms - self.layers_ms)


def measure_latency_model(
    model: nn.Module,
    sites: Sequence[LayerSite],
    reference: Path,
    table: LatencyTable,
    *,
    sizes: Mapping[str, int],
    activations: Sequence[str],
    track: Track,
) -> LatencyModel:
    """Time the float graph at ``reference`` and its layers in every form that they may get.

    Args:
        model: the float network.
        sites: its layers.
        reference: its float32 file.
        table: what is known already; its conditions are those to measure under.
        sizes: of the dynamic dimensions, by name.
        activations: what layers may compute with.
        track: shows the progress.
    """
    conditions = table.conditions
    inputs = synthetic_inputs(open_session(reference, conditions.provider), sizes)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    batch = arguments_of(model, tensors)  # without a past, which the graph alone takes
    sites = [site for site in sites if site.skip_reason is None]
    leading = leading_axes(model, sites, batch)
    menu = {site.name: [None, *_variants(site, activations)] for site in sites}
    table = measure(table, sites, leading, menu, track)
    times = LayerTimes(table, leading, sum(site.float_bytes for site in sites if site.kind != "embedding"))
    timed = time_runs([reference], inputs, conditions.provider, conditions.threads, repeats=20)
    float_ms = float(typical(timed.seconds[:, 0])) * 1e3
    layers_ms = sum(times(site, None) for site in sites)
    # Of stored weights alone there is no time.
    scale = min(1.0, _MOST_IN_LAYERS * float_ms / layers_ms) if layers_ms else 1.0
    return LatencyModel(reference, inputs, sites, times, float_ms, scale * layers_ms, scale)


def read_table(path: Path | None, provider: str, threads: int | None) -> LatencyTable:
    """The table in the JSON file at ``path``, or an empty one without a path.

    Raises:
        PlanError: the file cannot be read, or is of another machine, provider, or number of threads.
        InputsError: it is no latency table.
    """
    here = Conditions.here(provider, threads)
    if path is None:
        return LatencyTable(here, {})
    try:
        with naming(path):
            table = LatencyTable.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the latency table {path}: {one_line(error)}") from error
    if table.conditions != here:
        raise PlanError(
            f"the latency table {path} was measured on {table.conditions}, and this is {here}: "
            "leave --latency-table out to measure anew"
        )
    return table


def target_ratio(text: str, float_ms: float) -> float:
    """A latency such as "0.5x" (of the float32 graph) or "12ms", as a share of ``float_ms``.

    Raises:
        PlanError: the text is no latency.
    """
    number, is_share = parse_latency(text)
    return number if is_share else number / float_ms


def _variants(site: LayerSite, activations: Sequence[str]) -> list[LayerForm]:
    return [
        replace(form, activations=own)
        for form in forms_of(site)
        for own in (activations if site.computes_in_int8 and form.specs else ("float",))
    ]
