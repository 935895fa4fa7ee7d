"""Masked values have no say in what is planned, in PyTorch as in the runtime."""

import numpy as np
import pytest
import torch
from torch import Tensor

from svd2onnx.calibration.masking import masked, unmasked
from svd2onnx.calibration.probes import batch_errors, probe
from svd2onnx_runtime import masking as rule
from svd2onnx_runtime import sample_errors

OBJECTIVES = ("cosine", "kl", "mse")
SMALLEST = torch.finfo(torch.float32).min
MASKS = [float("-inf"), SMALLEST, -1e9]


def outputs(mask: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two that differ by a little, [5, 8] each, and where both are masked; one row is masked as a whole."""
    generator = torch.Generator().manual_seed(0)
    left_out = torch.rand(5, 8, generator=generator) > 0.6
    left_out[:, 0], left_out[3] = False, True
    reference, change = torch.randn(2, 5, 8, generator=generator)
    made = [own.masked_fill(left_out, mask) for own in (reference, reference + 0.05 * change)]
    return made[0], made[1], left_out


@pytest.mark.parametrize("mask", [*MASKS, 1e9, -12_345.5])
def test_the_rule_is_that_of_the_runtime(mask: float) -> None:
    reference, _, left_out = outputs(mask)
    for dtype in (torch.float32, torch.float64):
        found = masked(reference.to(dtype))
        assert found is not None
        assert torch.equal(found, left_out)
        assert np.array_equal(found.numpy(), rule.masked(reference.to(dtype).numpy()))


def test_without_masks_tensors_are_handed_on() -> None:
    reference = 20_000 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert masked(reference) is None
    assert masked(torch.full((3,), 10**9)) is None
    assert unmasked(reference, reference)[1] is reference


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_errors_are_those_of_the_runtime(objective: str, mask: float) -> None:
    reference, output, _ = outputs(mask)
    ours = batch_errors(objective, reference, output, {})
    expected = sample_errors(objective, reference.numpy(), output.numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-7)
    assert expected[3] == 0
    assert (np.delete(expected, 3) > 1e-5).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_of_errors_are_numbers(objective: str, mask: float) -> None:
    reference, output, left_out = outputs(mask)
    leaf = output.clone().requires_grad_()
    batch_errors(objective, reference, leaf, {}).sum().backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())
    assert bool((leaf.grad[left_out] == 0).all())
    assert float(leaf.grad.abs().max()) > 1e-4


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_probes_are_those_of_the_other_values(objective: str, mask: float) -> None:
    """Half the mean square of many probes is the error, as it is without masks."""
    reference, output, _ = outputs(mask)
    many = reference.repeat(4000, 1).requires_grad_()
    value, count = probe(objective, many, {}, torch.Generator().manual_seed(0))
    (gradients,) = torch.autograd.grad(value, many)
    assert bool(torch.isfinite(gradients).all())
    change = (output - reference).nan_to_num(0)
    costs = (gradients.reshape(4000, *reference.shape) * change).flatten(1).sum(1).square() / 2
    predicted = float(costs.mean()) * 4000 / count
    true = float(batch_errors(objective, reference, output, {}).mean())
    assert predicted == pytest.approx(true, rel=0.15)
