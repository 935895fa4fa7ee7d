"""Convolutions that compute in int8: the ranges of what they take and give, and the network that rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from svd2onnx.calibration.activation_ranges import JudgedRange, inner_ranges, judged_ranges
from svd2onnx.calibration.calibrate import probe_draws
from svd2onnx.calibration.passes import in_passes
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.tracing.int8_network import input_ranges, with_rounding
from svd2onnx.tracing.int8_places import Place, int8_places
from svd2onnx.values.activation_range import ActivationRange, Int8Inputs
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, LayerSite

_FEW_BATCHES = 4


@dataclass(frozen=True)
class Int8Convolutions:
    """Knows a range for each value that may be rounded, calibrated when a plan first asks for one."""

    prepared: Prepared
    memoize: Memoize = no_memo

    @property
    def rounding(self) -> dict[str, float]:
        """The predicted error of rounding what a layer takes and gives, by site name."""
        errors: dict[str, float] = {}
        if not self._judged:
            return errors
        for place in self._places(_names(self.prepared.sites)):
            if place.range_of == place.node:
                for name in place.layers:
                    errors[name] = errors.get(name, 0.0) + self._judged[place.node].error / len(place.layers)
        return {
            site.name: sum(errors.get(name, 0.0) for name in site.names)
            for site in self.prepared.sites
            if site.fits_int8
        }

    def network(
        self, model: nn.Module, layers: Mapping[str, CompressedLayer], plan: CompressionPlan
    ) -> nn.Module:
        """``model`` with ``layers`` in the forms of ``plan``."""
        sites, store = self.prepared.sites, self.prepared.store
        integer = integer_convolutions(sites, plan)
        if not integer:
            return rewrite(model, sites, layers, store)
        if not self._judged:
            raise PlanError(
                "convolutions compute in int8 with ranges that were calibrated: use --calibration-samples, "
                "or --activations float"
            )
        names = _names(site for site in sites if site.name in integer)
        places = self._places(names)
        ranges = {place.range_of: self._judged[place.range_of].range for place in places}
        taken = input_ranges(self._model.graph, places, ranges)
        pairs = [n for site in sites if site.name in integer and layers[site.name].left for n in site.names]
        inner: Mapping[str, ActivationRange] = {}
        if pairs:
            floats = rewrite(model, sites, layers, store)
            inner = inner_ranges(floats, pairs, self.prepared.fit[:_FEW_BATCHES], self.prepared.settings.seed)
        inputs = {name: Int8Inputs(taken[name], inner.get(name)) for name in names}
        network = rewrite(model, sites, layers, store, inputs)
        assert isinstance(network, fx.GraphModule)
        return with_rounding(network, places, ranges)

    @cached_property
    def _judged(self) -> Mapping[str, JudgedRange]:
        """By the name of a node in the traced network; none without data, or without such a convolution."""
        prepared, model = self.prepared, self._model
        names = _names(prepared.sites)
        if not names or not prepared.calibrates:
            return {}
        nodes = [place.node for place in self._places(names)]
        modules = {model.get_submodule(name) for name in names}

        def gathered() -> dict[str, JudgedRange]:
            fit, judging = (
                in_passes(model, modules, own, prepared.row_axes) for own in (prepared.fit, prepared.judging)
            )
            return judged_ranges(
                model,
                nodes,
                prepared.track(fit, "Looking at activations", len(fit)),
                prepared.track(judging, "Choosing ranges", len(judging)),
                prepared.objective,
                place=prepared.judged,
                draws=probe_draws(judging),
                seed=prepared.settings.seed,
            )

        known: Mapping[str, JudgedRange] = self.memoize("ranges", (), gathered)
        return known

    @property
    def _model(self) -> fx.GraphModule:
        model = self.prepared.model
        assert isinstance(model, fx.GraphModule)
        return model

    def _places(self, names: Collection[str]) -> list[Place]:
        return int8_places(self._model.graph, names)


def integer_convolutions(sites: Sequence[LayerSite], plan: CompressionPlan) -> set[str]:
    """The sites of convolutions that compute in int8 in ``plan``."""
    own = {site.name for site in sites if site.kind == "convolution"}
    return {name for name, form in plan.forms.items() if name in own and form.activations == "int8"}


def _names(sites: Iterable[LayerSite]) -> list[str]:
    return [name for site in sites if site.fits_int8 and site.skip_reason is None for name in site.names]
