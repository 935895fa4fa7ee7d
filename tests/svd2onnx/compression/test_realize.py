"""Forms become tensors of just those forms, whatever is realized beside them."""

import pytest
import torch

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.lowrank import factorize
from svd2onnx.compression.quantize import quantize
from svd2onnx.compression.realize import realize, realize_forms, realize_nearest
from svd2onnx.network.layers import discover, weight_of
from svd2onnx.values.schema import CompressionPlan, LayerForm, LayerSite, QuantSpec
from tests.svd2onnx.networks import Mlp, batches_of, seeded

FORMS = [
    LayerForm(QuantSpec(8, 64)),
    LayerForm(rank=32, factors=QuantSpec(4, 32)),
    LayerForm(QuantSpec(2, 32)),
    LayerForm(),
    LayerForm(QuantSpec(2, 64), 32, QuantSpec(4, 32)),
    LayerForm(QuantSpec(4, 128)),
]


@pytest.fixture(scope="module")
def calibrated() -> tuple[torch.Tensor, LayerStatistics]:
    network = seeded(Mlp)
    batches = batches_of(network)
    (first, _) = discover(network, batches[0])
    return weight_of(network, first), calibrate(network, [first], batches, "mse", batches)["first"]


@pytest.mark.parametrize("with_data", [True, False], ids=["data", "no data"])
def test_forms_are_realized_in_order_and_alike_alone(
    calibrated: tuple[torch.Tensor, LayerStatistics], with_data: bool
) -> None:
    weight, known = calibrated
    statistics = known if with_data else None
    layers = list(realize_forms(weight, FORMS, statistics, sweeps=1))
    assert [layer.form for layer in layers] == FORMS
    for form, layer in zip(FORMS[1:4], layers[1:4], strict=True):
        (alone,) = realize_forms(weight, [form], statistics, sweeps=1)
        assert torch.equal(alone.weight(), layer.weight())
        if with_data:
            lost = weight.double() - layer.weight().double()
            torch.testing.assert_close(layer.bias_shift.double(), lost @ known.mean, rtol=1e-5, atol=1e-6)
        else:
            assert layer.bias_shift is None


def test_the_article_rounds_the_truncated_decomposition_to_nearest() -> None:
    network = seeded(Mlp)
    batches = batches_of(network)
    sites = discover(network, batches[0])
    spec = QuantSpec(4, 32)
    plan = CompressionPlan("svd", {"first": LayerForm(rank=16, factors=spec), "second": LayerForm(spec)})
    layers = realize(network, sites, plan, calibrate(network, sites, batches))
    left, right = factorize(network.first.weight).truncate(16).quantize(spec)
    assert torch.equal(layers["first"].weight(), left.dequantize() @ right.dequantize())
    assert layers["second"].form == LayerForm(spec)


@pytest.mark.parametrize("kind", ["embedding", "stored"])
def test_a_table_and_a_stored_weight_are_rounded_to_nearest(kind: str) -> None:
    table = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    layer = realize_nearest(table, LayerSite("table", kind, (40, 48)), LayerForm(QuantSpec(4, 16)))
    assert torch.equal(layer.weight(), quantize(table, QuantSpec(4, 16)).dequantize())
    assert layer.kind == kind
    assert layer.bias_shift is None
