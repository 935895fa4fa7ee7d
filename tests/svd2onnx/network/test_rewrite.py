"""The rewritten network holds the dequantized codes bit for bit; the network it came from stays as it was."""

import copy

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.compression.quantize import quantize
from svd2onnx.compression.realize import realize_forms
from svd2onnx.network.modules import (
    CompressedConvolution,
    CompressedEmbedding,
    CompressedLinear,
    CompressedStored,
)
from svd2onnx.network.rewrite import rewrite
from svd2onnx.values.schema import CompressedLayer, LayerForm, LayerSite, QuantSpec
from tests.svd2onnx.networks import NETWORKS, TiedLinears, batches_of, compress, seeded
from tests.svd2onnx.stored_networks import Experts, stored_batches

SPEC = QuantSpec(4, 32)


@pytest.mark.parametrize("rank", [None, 16], ids=["dense", "pair"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_the_dequantized_codes_bit_for_bit(name: str, rank: int | None) -> None:
    network = seeded(NETWORKS[name])
    result = compress(network, batches_of(network), SPEC, rank)
    compressed = 0
    for site in result.sites:
        for module_name in site.names if site.name in result.layers else ():
            layer, module = result.layers[site.name], result.network.get_submodule(module_name)
            if site.kind == "embedding":
                assert isinstance(module, CompressedEmbedding)
                assert torch.equal(module.table, layer.dense.dequantize())
            else:
                assert isinstance(module, CompressedLinear)
                for factor in ("dense", "right", "left"):
                    stored, buffer = getattr(layer, factor), getattr(module, factor)
                    assert (stored is None) == (buffer is None)
                    assert stored is None or torch.equal(buffer, stored.dequantize().T)
            compressed += 1
    assert compressed >= 2 or name == "called_twice"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_stays_untouched(name: str) -> None:
    network = seeded(NETWORKS[name])
    before = copy.deepcopy(network.state_dict())
    batch = batches_of(network)[0]
    with torch.inference_mode():
        expected = network(**batch)
        result = compress(network, [batch], SPEC)
        assert torch.equal(network(**batch), expected)
        assert not torch.equal(result.network(**batch), expected)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(isinstance(m, CompressedLinear | CompressedEmbedding) for m in network.modules())
    # Large networks have no room for a second copy: what is not compressed is the very same tensor.
    old = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for module in result.network.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, CompressedLinear | CompressedEmbedding | CompressedConvolution):
            assert all(id(tensor) not in old for tensor in own if tensor.ndim > 1)
        else:
            assert all(id(tensor) in old for tensor in own)


@pytest.mark.parametrize("form", [LayerForm(dense=SPEC), LayerForm(rank=16, factors=SPEC)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_shift_of_the_bias_is_the_lost_weight_times_the_mean_input(form: LayerForm, bias: bool) -> None:
    """So the mean output of the layer over the calibration inputs stays what it was."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 80, bias=bias)).eval().requires_grad_(False)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    inputs = torch.randn(200, 64) + 3
    result = compress(Named(), [{"x": inputs}], SPEC, form.rank)
    layer = result.layers["body.0"]
    assert layer.form == form
    lost = network[0].weight.double() - layer.weight().double()
    shift = lost @ inputs.double().mean(0)
    torch.testing.assert_close(layer.bias_shift.double(), shift, rtol=0, atol=1e-5)
    before, after = network(inputs).mean(0), result.network(x=inputs).mean(0)
    assert float(shift.abs().max()) > 0.05
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_without_data_there_is_no_shift() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    (layer,) = realize_forms(weight, [LayerForm(SPEC)], None)
    assert layer.bias_shift is None


def test_tied_linears_keep_their_own_biases() -> None:
    network = seeded(TiedLinears)
    result = compress(network, batches_of(network), SPEC)
    shift = result.layers["first"].bias_shift
    for name in ("first", "second"):
        expected = network.get_submodule(name).bias + shift
        assert torch.equal(result.network.get_submodule(name).bias, expected)
    assert not torch.equal(result.network.first.bias, result.network.second.bias)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 3, 4)], ids=str)
def test_terms_add_up_over_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    """y = x D + (x R) L + b, with a dense term and a pair at once."""
    torch.manual_seed(0)
    layer = CompressedLayer(
        (40, 64),
        dense=quantize(torch.randn(40, 64), SPEC),
        left=quantize(torch.randn(40, 16), SPEC),
        right=quantize(torch.randn(16, 64), SPEC),
        bias_shift=torch.randn(40),
    )
    bias, x = torch.randn(40), torch.randn(*leading, 64)
    expected = x.double() @ layer.weight().double().T + bias + layer.bias_shift
    ours = CompressedLinear(layer, bias)(x)
    assert ours.shape == (*leading, 40)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_layer_of_rank_zero_gives_its_bias() -> None:
    bias = torch.arange(40.0)
    x = torch.ones(2, 3, 64)
    assert torch.equal(CompressedLinear(CompressedLayer((40, 64)), bias)(x), bias.expand(2, 3, 40))
    assert torch.equal(CompressedLinear(CompressedLayer((40, 64)), None)(x), torch.zeros(2, 3, 40))


def test_a_layer_deep_inside_is_replaced_where_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(64, 64)), nn.Linear(64, 64))
    site = LayerSite("0.1", "linear", (64, 64))
    (layer,) = realize_forms(network[0][1].weight.detach(), [LayerForm(SPEC)], None)
    result = rewrite(network, [site, LayerSite("1", "linear", (64, 64))], {"0.1": layer})
    assert isinstance(result[0][1], CompressedLinear)
    assert type(result[1]) is nn.Linear
    assert not result.training


def test_a_stored_weight_is_its_codes_in_the_shape_it_had() -> None:
    network = seeded(Experts)
    result = compress(network, stored_batches(network), SPEC)
    module = result.network.experts
    assert isinstance(module, CompressedStored)
    assert torch.equal(module(), result.layers["experts"].dense.dequantize().reshape(4, 32, 48))
    assert not torch.equal(module(), network.experts())


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (LayerForm(rank=16, factors=SPEC), "no pair"),
        (LayerForm(), "a dense term"),
        (LayerForm(SPEC, activations="int8"), "made a float"),
        (LayerForm(QuantSpec(2, 256)), None),
    ],
)
def test_forms_that_a_stored_weight_cannot_have(form: LayerForm, said: str | None) -> None:
    problem = form.problem_with(LayerSite("w", "stored", (35, 90)))
    assert problem is None if said is None else problem is not None and said in problem
