"""What is gathered of a convolution equals the definitions on its patches and on gradients of its weight."""

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration import accumulation as gathering
from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.layer_statistics import ProbedGammas
from svd2onnx.calibration.network_error import mean_error
from svd2onnx.network.convolution import patches
from svd2onnx.network.layers import discover
from svd2onnx.planning.prediction import ErrorPredictor
from svd2onnx.sources.model_file import Batch
from tests.svd2onnx.networks import Images, batches_of, seeded
from tests.svd2onnx.stored_networks import Bags, Experts, Recurrent, Upsampled, stored_batches


class Grid(nn.Module):
    """x [batch, 4, height, width] -> [batch, 16, *]; the input is changed in place behind the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        y = self.conv(x)
        x.zero_()
        return y.relu_()


def images(seed: int, size: int = 6) -> Batch:
    return {"x": torch.randn(size, 4, 9, 7, generator=torch.Generator().manual_seed(seed)) + 0.5}


def test_moments_are_those_of_all_patches() -> None:
    network, batches = seeded(Grid), [images(0), images(1, 3)]
    own = calibrate(network, discover(network, batches[0]), batches)["conv"]
    rows = torch.cat([patches(network.conv, batch["x"], 10**6) for batch in batches]).double()
    assert own.count == len(rows)
    torch.testing.assert_close(own.mean, rows.mean(0))
    torch.testing.assert_close(own.covariance, torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-6)
    assert own.samples is not None
    assert len(own.samples) <= gathering.SAMPLES


def test_few_patches_of_each_sample_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PATCHES", 5)
    network, batch = seeded(Grid), images(0)
    assert calibrate(network, discover(network, batch), [batch])["conv"].count == 30


def test_gradient_moments_are_those_of_the_definition() -> None:
    """Of the probe that was drawn, which is read at the convolution's output."""
    network, batch = seeded(Grid), images(0)
    probes: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        result = output.detach().requires_grad_().clone()
        result.register_hook(probes.append)
        return result

    sites = discover(network, batch)  # before the hook, for layers with hooks stay as they are
    handle = network.conv.register_forward_hook(keep)
    own = calibrate(network, sites, [batch], "mse")["conv"]
    handle.remove()
    rows = patches(network.conv, batch["x"], 10**6).unflatten(0, (6, -1)) - own.mean.float()
    (g,) = probes
    gammas = torch.einsum("bop,bpi->boi", g.flatten(2), rows)
    guided = torch.einsum("boi,boj->ij", gammas, gammas) / 6
    outer = torch.einsum("bop,bqp->oq", g.flatten(2), g.flatten(2)) / 6
    torch.testing.assert_close(own.gradient_moment, guided, rtol=1e-3, atol=1e-3 * float(guided.abs().max()))
    torch.testing.assert_close(own.output_moment, outer, rtol=1e-3, atol=1e-3 * float(outer.abs().max()))


def test_a_grouped_convolution_has_probes_alone() -> None:
    network = seeded(Images)
    batches = batches_of(network)
    own = calibrate(network, discover(network, batches[0]), batches, "mse", batches)["depthwise"]
    assert (own.mean, own.covariance, own.gradient_moment) == (None, None, None)
    assert [type(probes) for probes in own.probes] == [ProbedGammas] * 2
    assert own.probes[0].gammas.shape == (5, 32, 25)


@pytest.mark.parametrize("name", ["stem", "depthwise", "point", "wide"])
def test_small_changes_cost_what_is_predicted(name: str) -> None:
    network, changed = seeded(Images), seeded(Images)
    batches = batches_of(network)
    own = calibrate(network, discover(network, batches[0]), batches, "mse", batches, draws=400)[name]
    module = changed.get_submodule(name)
    change = 1e-3 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
    module.weight += change
    if own.mean is not None:
        shift = -change.flatten(1) @ own.mean.float()
        module.bias = nn.Parameter(shift if module.bias is None else module.bias + shift)
    (predicted,) = ErrorPredictor(own)([-change.flatten(1)])
    assert predicted == pytest.approx(mean_error(network, changed, batches, "mse"), rel=0.25)


def test_a_stored_weight_has_one_gamma_for_each_batch() -> None:
    network = seeded(Experts)
    batches = stored_batches(network)
    sites = discover(network, batches[0])
    own = calibrate(network, sites, batches, "mse", batches)["experts"]
    assert (own.mean, own.covariance, own.output_moment, own.gradient_moment) == (None,) * 4
    assert [(probes.gammas.shape, probes.count) for probes in own.probes] == [
        ((1, 128, 48), 12),
        ((1, 128, 48), 7),
    ]
    assert calibrate(network, sites, batches) == {}


def test_a_gamma_is_the_gradient_of_all_calls() -> None:
    """Of the probe that was drawn, which is read at the network's output."""
    network = seeded(Bags)
    batch = stored_batches(network)[0]
    probes: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        output.register_hook(probes.append)

    sites = discover(network, batch)
    handle = network.register_forward_hook(keep)
    own = calibrate(network, sites, [], "mse", [batch])["mix"]
    handle.remove()
    network.mix.weight.requires_grad_()
    network(**batch).backward(probes[0])
    torch.testing.assert_close(own.probes[0].gammas[0].float(), network.mix.weight.grad, rtol=1e-2, atol=1e-2)


def test_gammas_of_a_large_weight_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST_GAMMA_BYTES", 2 * 48 * 256)
    network = seeded(Experts)
    batches = stored_batches(network)
    own = calibrate(network, discover(network, batches[0]), batches, "mse", batches, draws=2)
    assert {name: len(statistics.probes) for name, statistics in own.items()} == {"experts": 2, "pairs": 1}


@pytest.mark.parametrize(
    ("kind", "name"), [(Upsampled, "up"), (Recurrent, "hidden.0"), (Experts, "experts"), (Bags, "mix")]
)
def test_small_changes_of_stored_weights_cost_what_is_predicted(kind: type[nn.Module], name: str) -> None:
    network, changed = seeded(kind), seeded(kind)
    batches = stored_batches(network)
    own = calibrate(network, discover(network, batches[0]), [], "mse", batches, draws=200)[name]
    weight = changed.get_submodule(name).weight
    change = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight += change
    (predicted,) = ErrorPredictor(own)([-change.reshape(own.probes[0].gammas.shape[1:])])
    assert predicted == pytest.approx(mean_error(network, changed, batches, "mse"), rel=0.25)
