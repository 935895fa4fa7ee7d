"""Batches are parted by the bytes that a pass keeps, and stay whole where these are few."""

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration import passes
from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.passes import in_passes, kept_bytes
from svd2onnx.network.layers import discover


class Wide(nn.Module):
    """Few weights, large images: x [batch, 3, side, side], and labels that it ignores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sigmoid(self.first(x))).mean((2, 3))


def network_and_layers() -> tuple[nn.Module, set[nn.Module]]:
    network = Wide().eval()
    return network, {network.first, network.second}


def images(*rows: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(count, 3, 40, 40), "labels": torch.arange(count)} for count in rows]


def test_inputs_of_layers_and_activations_are_counted() -> None:
    network, layers = network_and_layers()
    (batch,) = images(2)
    pixels = 2 * 40 * 40 * 4
    # Copies of the inputs of both layers (3 and 32 channels); and what autograd saves: the images, and what
    # sigmoid gives, once though two nodes need it.
    assert kept_bytes(network, layers, batch) == pixels * (3 + 32 + 3 + 32)


def test_weights_are_not_counted() -> None:
    network = nn.Linear(2048, 2048).eval()
    assert kept_bytes(network, {network}, {"input": torch.randn(2, 2048)}) < 1 << 16


def test_batches_that_fit_stay_as_they_are() -> None:
    network, layers = network_and_layers()
    batches = images(7, 3)
    parts = in_passes(network, layers, batches, {"x": 0})
    assert all(part is batch for part, batch in zip(parts, batches, strict=True))


def test_a_pass_keeps_no_more_bytes_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    network, layers = network_and_layers()
    batches = images(7, 2)
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1_400_000)  # a row keeps 448,000
    parts = in_passes(network, layers, batches, {"x": 0})
    assert [len(part["x"]) for part in parts] == [3, 3, 1, 2]
    assert all(kept_bytes(network, layers, part) <= 1_400_000 for part in parts)
    assert [part["labels"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6], [0, 1]]


def test_a_row_that_is_too_large_is_passed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1)
    network, layers = network_and_layers()
    assert [len(part["x"]) for part in in_passes(network, layers, images(3), {"x": 0})] == [1, 1, 1]


def test_short_rows_are_passed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1)
    network = nn.Linear(64, 64)
    parts = in_passes(network, {network}, [{"input": torch.randn(20, 64)}], {"input": 0})
    assert [len(part["input"]) for part in parts] == [8, 8, 4]  # of 512 numbers


def test_without_an_axis_of_samples_nothing_is_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1)
    network, layers = network_and_layers()
    batches = images(3)
    assert in_passes(network, layers, batches, {"x": None}) == batches


def test_parts_give_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1)
    network, layers = network_and_layers()
    batches = images(3, 2)
    parts = in_passes(network, layers, batches, {"x": 0})
    sites = discover(network, {"x": batches[0]["x"]})
    together, alone = (calibrate(network, sites, own, "mse") for own in (batches, parts))
    assert len(together) == 2
    for name, expected in together.items():
        assert alone[name].count == expected.count
        torch.testing.assert_close(alone[name].mean, expected.mean)
        torch.testing.assert_close(alone[name].covariance, expected.covariance, rtol=1e-5, atol=1e-7)
