"""Errors measured in PyTorch are those of the runtime; a dropped layer is one with constant outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration.network_error import drop_errors, error_count, judged_output, mean_error
from svd2onnx_runtime import sample_errors
from tests.svd2onnx.networks import CalledTwice, Mlp, Tokens, batches_of, seeded


def perturbed() -> torch.nn.Module:
    network = seeded(Mlp)
    network.second.weight += 0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    return network


@pytest.mark.parametrize("objective", ["cosine", "kl", "mse"])
def test_the_mean_is_over_all_samples(objective: str) -> None:
    """Batches of 12 and 7 rows: not the mean of their means."""
    network, other = seeded(Mlp), perturbed()
    batches = batches_of(network)
    errors = [sample_errors(objective, network(b["x"]).numpy(), other(b["x"]).numpy()) for b in batches]
    expected = np.concatenate(errors).mean()
    assert mean_error(network, other, batches, objective) == pytest.approx(expected, rel=1e-5)
    assert mean_error(network, network, batches, objective) == 0


def test_the_first_output_of_several_is_compared() -> None:
    network = seeded(Tokens)
    (batch, *_) = batches_of(network)
    assert torch.equal(judged_output(network, batch), network(batch["ids"])[0])


def test_errors_are_counted_by_the_token_where_the_objective_is_so() -> None:
    network = seeded(Tokens)
    (batch, *_) = batches_of(network)
    rows, length = batch["ids"].shape
    assert error_count(network, batch, "mse") == rows
    assert error_count(network, batch, "kl") == rows * length


@pytest.mark.parametrize("objective", ["cosine", "mse"])
def test_a_dropped_layer_gives_its_bias_and_mean(objective: str) -> None:
    network = seeded(Mlp)
    (batch, *_) = batches_of(network)
    means = {"first": batch["x"].mean(0).double(), "second": torch.zeros(96).double()}
    dropped = drop_errors(network, means, batch, objective)
    hidden = torch.relu(network.first(batch["x"].mean(0)))
    outputs = {
        "first": network.second(hidden).expand(12, 64),
        "second": network.second.bias.expand(12, 64),
    }
    whole = network(batch["x"])
    for name, output in outputs.items():
        expected = sample_errors(objective, whole.numpy(), output.numpy()).mean()
        assert dropped[name] == pytest.approx(expected, rel=1e-4)
    # The network is as it was.
    assert torch.equal(network(batch["x"]), whole)
    assert not network.first._forward_hooks


def test_every_call_of_a_dropped_layer_is_constant() -> None:
    network = seeded(CalledTwice)
    (batch, *_) = batches_of(network)
    mean = torch.ones(64)
    (error,) = drop_errors(network, {"linear": mean.double()}, batch, "mse").values()
    constant: Tensor = network.linear(mean).expand(12, 64)
    expected = sample_errors("mse", network(batch["x"]).numpy(), constant.numpy()).mean()
    assert error == pytest.approx(expected, rel=1e-4)


def test_what_follows_a_dropped_layer_may_change_its_output_in_place() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Linear(32, 8)).requires_grad_(False)
    batch = {"input": torch.randn(5, 64)}
    (error,) = drop_errors(network, {"0": batch["input"].mean(0).double()}, batch, "mse").values()
    assert error > 0
