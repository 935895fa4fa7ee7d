"""Candidates are what onnxruntime can compute, at the bytes that they really take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.network_error import drop_errors
from svd2onnx.compression.realize import realize
from svd2onnx.network.layers import discover, weight_of
from svd2onnx.planning.candidates import _OTHER_OUTPUTS, BLOCKS, candidates, forms_of
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.values.schema import BITS, CompressionPlan, LayerForm, LayerSite, QuantSpec
from tests.svd2onnx.networks import Embedded, Mlp, Tokens, batches_of, seeded
from tests.svd2onnx.stored_networks import Experts, stored_batches

sites = st.one_of(
    st.builds(
        LayerSite,
        st.just("a"),
        st.just("linear"),
        st.tuples(st.integers(1, 700), st.integers(1, 700)),
        calls=st.integers(1, 9),
    ),
    st.builds(
        LayerSite,
        st.just("a"),
        st.just("embedding"),
        st.tuples(st.integers(1, 700), st.integers(1, 20).map(lambda n: 16 * n)),
        calls=st.integers(1, 3),
    ),
    st.builds(
        LayerSite,
        st.just("a"),
        st.just("stored"),
        st.tuples(st.integers(1, 700), st.integers(1, 700)),
        calls=st.integers(1, 9),
    ),
)


@settings(deadline=None, max_examples=200)
@given(sites)
def test_every_form_can_be_stored_and_is_smaller_than_float(site: LayerSite) -> None:
    forms = forms_of(site)
    assert len(set(forms)) == len(forms)
    for form in forms:
        assert form.problem_with(site) is None
        assert form.stored_bytes(site.shape) * site.copies < site.float_bytes
        assert form.rank <= min(site.shape)


@settings(deadline=None, max_examples=200)
@given(sites)
def test_every_uniform_plan_is_among_the_candidates(site: LayerSite) -> None:
    """The goals price plain quantization by them."""
    forms = {None, *forms_of(site)}
    for bits in BITS:
        for block in BLOCKS:
            assert uniform_plan([site], QuantSpec(bits, block)).forms.get("a") in forms


def test_large_linears_have_all_kinds_of_forms_and_vocabularies_have_no_pairs() -> None:
    forms = forms_of(LayerSite("a", "linear", (512, 512)))
    assert LayerForm() in forms
    assert LayerForm(QuantSpec(2, 64), 64, QuantSpec(4, 32)) in forms
    pairs = [form for form in forms if form.factors and not form.dense]
    assert {form.factors.bits for form in pairs if form.factors} == {8, 4, 2}
    assert all(form.rank % 32 == 0 for form in pairs)
    assert not any(form.factors for form in forms_of(LayerSite("a", "linear", (9000, 512))))
    assert not any(form.factors for form in forms_of(LayerSite("a", "embedding", (512, 512))))


@pytest.fixture(scope="module")
def priced() -> tuple:
    network = seeded(Embedded)
    batches = batches_of(network)
    found = discover(network, batches[0])
    statistics = calibrate(network, found, batches, "mse", batches, draws=3)
    return network, found, statistics, candidates(network, found, statistics)


def test_sizes_are_those_of_what_is_stored(priced: tuple) -> None:
    network, found, statistics, menu = priced
    assert set(menu) == {"table", "linear"}
    for site in found:
        options = menu[site.name]
        assert (options[0].form, options[0].size, options[0].error) == (None, site.float_bytes, 0)
        for option in options[1:]:
            plan = CompressionPlan("auto", {site.name: option.form})
            layer = realize(network, found, plan, statistics)[site.name]
            assert layer.form == option.form
            assert layer.stored_bytes == option.size


def test_more_bits_are_predicted_to_err_less(priced: tuple) -> None:
    for options in priced[3].values():
        errors = {option.form: option.error for option in options}
        for block in BLOCKS:
            known = [errors[f] for bits in (8, 4, 2) if (f := LayerForm(QuantSpec(bits, block))) in errors]
            assert known == sorted(known)
            assert all(error > 0 for error in known)
    linear = {option.form: option.error for option in priced[3]["linear"]}
    assert linear[LayerForm()] > 5 * linear[LayerForm(QuantSpec(4, 32))]


def test_a_drop_costs_what_was_measured_at_least() -> None:
    network = seeded(Mlp)
    batches = batches_of(network)
    found = discover(network, batches[0])
    statistics = calibrate(network, found, batches, "mse", batches)
    plain = candidates(network, found, statistics)
    measured = drop_errors(network, {n: s.mean for n, s in statistics.items()}, batches[0], "mse")
    for dropped in (measured, dict.fromkeys(measured, 1e9)):
        for name, options in candidates(network, found, statistics, dropped).items():
            by_form = {option.form: option.error for option in options}
            before = {option.form: option.error for option in plain[name]}
            assert by_form[LayerForm()] == max(before.pop(LayerForm()), dropped[name])
            assert {form: by_form[form] for form in before} == before


@pytest.mark.parametrize("calibrated", [True, False], ids=["no gradient", "no data"])
def test_layers_without_gradients_are_priced_by_their_weights(calibrated: bool) -> None:
    """The second output of this network depends on the tied layers, and the first does not."""
    network = seeded(Tokens)
    batches = batches_of(network)
    found = [site for site in discover(network, batches[0]) if site.name == "tied.middle" or calibrated]
    statistics = calibrate(network, found, batches, "mse", batches) if calibrated else {}
    menu = candidates(network, found, statistics)
    (site,) = (site for site in found if site.name == "tied.middle")
    errors = {option.form: option.error for option in menu["tied.middle"]}
    share = _OTHER_OUTPUTS if calibrated else 1.0
    assert errors[LayerForm()] == pytest.approx(share)
    layers = realize(
        network, [site], CompressionPlan("auto", {site.name: LayerForm(QuantSpec(4, 32))}), statistics
    )
    weight = weight_of(network, site)
    change = weight - layers[site.name].weight()
    expected = float(change.square().sum() / weight.square().sum())
    assert errors[LayerForm(QuantSpec(4, 32))] == pytest.approx(share * expected, rel=1e-4)
    assert torch.isfinite(torch.tensor(list(errors.values()))).all()


def test_stored_weights_have_dense_forms_of_all_widths_and_are_stored_once() -> None:
    forms = forms_of(LayerSite("a", "stored", (96, 41), calls=3))
    assert {form.dense.bits for form in forms if form.dense} == set(BITS)
    assert not any(form.factors for form in forms)
    assert LayerForm() not in forms


def test_stored_weights_are_priced_by_their_gradients() -> None:
    network = seeded(Experts)
    batches = stored_batches(network)
    sites = discover(network, batches[0])
    menu = candidates(network, sites, calibrate(network, sites, batches, "mse", batches, draws=4))
    assert set(menu) == {"experts", "pairs"}
    for options in menu.values():
        errors = {c.form.dense.bits: c.error for c in options if c.form and c.form.dense.block_size == 64}
        assert 0 < errors[8] < errors[4] < errors[2]
    (by_weight,) = [c for c in candidates(network, sites, {})["pairs"] if c.form == options[1].form]
    assert by_weight.error != options[1].error
