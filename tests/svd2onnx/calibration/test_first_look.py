"""Samples of usual size count as they did without a first look; outlying ones count no more than others."""

import torch
from torch import Tensor, nn

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.first_look import FirstLook, look
from svd2onnx.compute.device_store import DeviceStore
from svd2onnx.compute.tensor_store import TensorStore
from svd2onnx.network.convolution import patches
from svd2onnx.network.layers import discover
from svd2onnx.sources.model_file import Batch
from tests.svd2onnx.networks import Mlp, Sequences, seeded


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(network: nn.Module, name: str, *batches: Batch) -> FirstLook:
    own = FirstLook()
    look(
        network, {network.get_submodule(name): own}, batches, DeviceStore(torch.device("cpu"), TensorStore())
    )
    return own


def test_without_outliers_moments_are_the_same_to_the_bit() -> None:
    network, batch, judging = seeded(Mlp), {"x": normal(0, 40, 64)}, {"x": normal(1, 9, 64)}
    sites = discover(network, batch)
    plain = calibrate(network, sites, [batch], "mse")["first"]
    own = calibrate(network, sites, [batch], "mse", usual=[judging])["first"]
    assert torch.equal(own.mean, plain.mean)  # type: ignore[arg-type]
    assert torch.equal(own.covariance, plain.covariance)  # type: ignore[arg-type]


def test_an_outlier_has_the_weight_that_makes_it_as_large_as_the_largest_usual_one() -> None:
    network, x, judging = seeded(Mlp), normal(0, 40, 64), normal(1, 9, 64)
    x[3] *= 1000
    batches = [{"x": x[:10]}, {"x": x[10:]}]
    own = calibrate(network, discover(network, batches[0]), batches, "mse", usual=[{"x": judging}])["first"]
    limit = 4 * judging.double().square().mean(1).median()
    weights = (limit / x.double().square().mean(1)).clamp_max(1)
    assert (weights < 1).sum() == 1
    mean = weights @ x.double() / weights.sum()
    centred = x.double() - mean
    torch.testing.assert_close(own.mean, mean)
    expected = (weights[:, None] * centred).T @ centred / weights.sum()
    torch.testing.assert_close(own.covariance, expected, rtol=1e-4, atol=1e-4)
    assert own.count == 40
    torch.testing.assert_close(own.held_out, judging - mean.float())


def test_padding_has_no_size_and_is_not_kept() -> None:
    network, x = seeded(Sequences), normal(0, 5, 6, 112)
    mask = torch.ones(5, 6)
    mask[:, 4:] = 0
    x[:, 4:] *= 1e4
    own = seen(network, "first", {"x": x, "attention_mask": mask})
    sizes = x[:, :4].double().square().mean((1, 2))
    assert abs(own.limit - 4 * float(sizes.median())) < 1e-4
    kept = own.held_out(torch.zeros(112).double())
    assert kept is not None
    torch.testing.assert_close(kept, x[:, :4].reshape(-1, 112))


def test_the_size_of_a_sample_is_that_of_all_its_patches() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    x = normal(0, 3, 3, 5, 5) * torch.tensor([1.0, 2.0, 100.0]).reshape(3, 1, 1, 1)
    rows = patches(network[0], x, 10**6).reshape(3, -1, 27)  # type: ignore[arg-type]
    own = seen(network, "0", {"input": x})
    assert abs(own.limit - 4 * float(rows[1].double().square().mean())) < 1e-4
    kept = own.held_out(torch.zeros(27).double())
    assert kept is not None
    torch.testing.assert_close(float(kept[-25:].square().mean()), own.limit, rtol=1e-4, atol=0.0)


def test_where_most_samples_are_silent_none_is_an_outlier() -> None:
    x = normal(0, 5, 64)
    x[:3] = 0
    own = seen(seeded(Mlp), "first", {"x": x})
    assert own.limit == float("inf")
    kept = own.held_out(torch.zeros(64).double())
    assert kept is not None
    torch.testing.assert_close(kept, x)
