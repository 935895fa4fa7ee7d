"""Layers are timed once for each shape and form, and what was not timed follows from what was."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from svd2onnx.latency import layer_times as latency
from svd2onnx.latency.layer_times import LayerTimes, leading_axes, measure
from svd2onnx.network.layers import discover
from svd2onnx.values.schema import LayerForm, LayerSite, QuantSpec
from svd2onnx_runtime.latency_table import Conditions, LatencyTable, LayerKey, LayerLatency
from tests.svd2onnx.networks import CalledTwice, Images, TiedHead, TiedLinears, batches_of, seeded
from tests.svd2onnx.stored_networks import Experts, stored_batches

SPEC = QuantSpec(4, 32)
EMPTY = LatencyTable(Conditions.here("cpu", 1), {})
SITE = LayerSite("layer", "linear", (256, 256))
ROWS = (1, 7)


def pair(rank: int, activations: str = "float") -> LayerForm:
    return LayerForm(rank=rank, factors=SPEC, activations=activations)


def test_leading_axes_are_those_of_each_call() -> None:
    network = seeded(TiedHead)
    batch = {"ids": torch.ones(3, 5, dtype=torch.int64)}
    assert leading_axes(network, discover(network, batch), batch) == {
        "table": [(3, 5)],
        "middle": [(3, 5)],
        "head": [(3, 5)],
    }
    for kind, name in ((TiedLinears, "first"), (CalledTwice, "linear")):
        network, batch = seeded(kind), {"x": torch.ones(6, 64)}
        assert leading_axes(network, discover(network, batch), batch) == {name: [(6,), (6,)]}


def test_a_stored_weight_takes_no_time_of_its_own() -> None:
    network = seeded(Experts)
    batch = stored_batches(network)[0]
    sites = discover(network, batch)
    leading = leading_axes(network, sites, batch)
    assert leading == {}
    menu = {site.name: [None, LayerForm(SPEC)] for site in sites}
    assert measure(EMPTY, sites, leading, menu).entries == {}
    assert LayerTimes(EMPTY, leading, 0)(sites[0], LayerForm(SPEC)) == 0


def test_what_is_known_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def timed(
        _table: LatencyTable,
        site: LayerSite,
        axes: tuple[int, ...],
        forms: Mapping[str, object],
    ) -> dict[LayerKey, LayerLatency]:
        asked.append(list(forms))
        return {LayerKey(site.kind, label, site.shape, axes): LayerLatency(2.0, 1.0) for label in forms}

    monkeypatch.setattr(latency, "_timed", timed)
    twins = [SITE, replace(SITE, name="twin")]
    leading = {"layer": [ROWS, ROWS], "twin": [ROWS]}
    menu: dict[str, Sequence[LayerForm | None]] = {
        site.name: [None, LayerForm(SPEC), *(pair(rank) for rank in (32, 64, 96, 128, 160))] for site in twins
    }
    table = measure(EMPTY, twins, leading, menu)
    assert asked == [["float", "int4/32", "rank 32 int4/32", "rank 96 int4/32", "rank 160 int4/32"]]
    measure(table, twins, leading, menu)
    assert len(asked) == 1
    measure(table, twins, leading, {"layer": [LayerForm(QuantSpec(8, 32))]})
    assert asked[1] == ["float", "int8/32"]


def test_bits_make_no_difference_to_the_time_with_int8_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(latency, "_timed", lambda _t, _s, _a, forms: asked.append(list(forms)) or {})
    forms = [LayerForm(QuantSpec(bits, 32), activations="int8") for bits in (8, 4, 2)]
    measure(EMPTY, [SITE], {"layer": [ROWS]}, {"layer": forms})
    assert asked == [["float", "int8/128, int8 activations"]]


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_ranks_between_are_interpolated(activations: str) -> None:
    label = "int4/32" if activations == "float" else "int8/128, int8 activations"
    entries = {
        LayerKey("linear", f"rank {rank} {label}", SITE.shape, ROWS): LayerLatency(10.0, rank / 32)
        for rank in (32, 128)
    }
    times = LayerTimes(LatencyTable(EMPTY.conditions, entries), {"layer": [ROWS, ROWS]}, 0)
    assert times(SITE, pair(64, activations)) == pytest.approx(2 * 2.0)


def test_weights_beyond_the_caches_come_from_memory() -> None:
    entries = {
        LayerKey("linear", label, SITE.shape, ROWS): LayerLatency(cold, hot)
        for label, cold, hot in (("float", 8.0, 4.0), ("int4/32", 2.0, 1.0))
    }
    table = LatencyTable(EMPTY.conditions, entries)
    for size, expected in ((1 << 20, (4.0, 1.0)), (1 << 26, (8.0, 2.0))):
        times = LayerTimes(table, {"layer": [ROWS]}, size)
        assert (times(SITE, None), times(SITE, LayerForm(SPEC))) == expected


def test_real_layers_are_timed() -> None:
    """Of 256 times the arithmetic, the larger one takes longer on any machine."""
    large = LayerSite("large", "linear", (1024, 1024))
    small = LayerSite("small", "linear", (64, 64))
    leading, menu = {"large": [(64,)], "small": [(64,)]}, {"large": [None], "small": [None, pair(16)]}
    table = measure(EMPTY, [large, small], leading, menu)
    times = LayerTimes(table, leading, 0)
    assert 0 < times(small, None) < times(large, None)
    assert times(small, pair(16)) > 0


def test_convolutions_run_alike_in_all_dense_forms_and_pairs_of_any_bits() -> None:
    network = seeded(Images)
    (batch, _) = batches_of(network)
    sites = {site.name: site for site in discover(network, batch)}
    leading = leading_axes(network, list(sites.values()), batch)
    assert leading["wide"] == [(5, 64, 8, 7)]
    assert leading["head"] == [(5,)]
    dense = [LayerForm(QuantSpec(bits, 32)) for bits in (8, 4)]
    pairs = [LayerForm(rank=16, factors=QuantSpec(bits, 32)) for bits in (4, 2)]
    menu = {"wide": [None, *dense, *pairs], "depthwise": [None, *dense]}
    table = measure(EMPTY, list(sites.values()), leading, menu)
    kind = f"convolution {sites['wide'].geometry}"
    assert {key.form for key in table.entries if key.kind == kind} == {"float", "rank 16"}
    times = LayerTimes(table, leading, 0)
    assert len({times(sites["wide"], form) for form in (None, *dense)}) == 1
    assert len({times(sites["wide"], form) for form in pairs}) == 1
    assert times(sites["wide"], None) > times(sites["depthwise"], None) > 0
