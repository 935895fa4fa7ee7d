"""Probes predict the error of small changes, row by row, and their errors are those of the runtime."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from svd2onnx.calibration.probes import batch_errors, probe
from svd2onnx_runtime import sample_errors, token_mask

OBJECTIVES = ("cosine", "kl", "mse")
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def runtime_errors(objective: str, reference: Tensor, output: Tensor, batch: dict[str, Tensor]) -> np.ndarray:
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    mask = token_mask(objective, reference.numpy(), arrays)
    return sample_errors(objective, reference.numpy(), output.numpy(), mask)


def draws(objective: str, output: Tensor, batch: dict[str, Tensor], number: int) -> tuple[Tensor, int]:
    """Gradients of ``number`` probes at the output itself, [number, *shape], and the errors each stands for.

    Rows are probed independently, so one probe of many copies is many probes.
    """
    leaf = output.repeat(number, *[1] * (output.ndim - 1)).requires_grad_()
    masks = {name: mask.repeat(number, 1) for name, mask in batch.items()}
    value, count = probe(objective, leaf, masks, torch.Generator().manual_seed(0))
    (gradients,) = torch.autograd.grad(value, leaf)
    return gradients.reshape(number, *output.shape), count // number


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_errors_are_those_of_the_runtime(objective: str, masked: bool) -> None:
    reference, change = normal(0, 3, 4, 7), normal(1, 3, 4, 7)
    batch = {"attention_mask": MASK} if masked else {}
    ours = batch_errors(objective, reference, reference + change, batch)
    np.testing.assert_allclose(
        ours, runtime_errors(objective, reference, reference + change, batch), rtol=1e-9
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 6)], ids=str)
def test_small_changes_cost_what_probes_predict(objective: str, shape: tuple[int, ...]) -> None:
    """Half the mean square of many probes, within four standard errors of that mean."""
    output, change = normal(0, *shape) * 2, normal(1, *shape) * 1e-3
    gradients, count = draws(objective, output, {}, 10_000)
    predicted = (gradients * change).flatten(1).sum(1).square() / (2 * count)
    true = float(runtime_errors(objective, output, output + change, {}).mean())
    error = float(predicted.std()) / len(predicted) ** 0.5
    assert error < 0.03 * true
    assert abs(float(predicted.mean()) - true) < 4 * error


def test_masked_tokens_have_no_say_in_kl() -> None:
    output, change = normal(0, 3, 4, 6), normal(1, 3, 4, 6) * 1e-3
    batch = {"attention_mask": MASK}
    gradients, count = draws("kl", output, batch, 10_000)
    assert count == int(MASK.sum())
    assert bool((gradients[:, MASK == 0] == 0).all())
    predicted = (gradients * change).flatten(1).sum(1).square() / (2 * count)
    true = float(runtime_errors("kl", output, output + change, batch).mean())
    assert abs(float(predicted.mean()) - true) < 4 * float(predicted.std()) / len(predicted) ** 0.5


def test_a_mask_of_another_shape_is_none() -> None:
    output = normal(0, 3, 6)
    assert draws("kl", output, {"attention_mask": MASK}, 1)[1] == 3
    assert len(batch_errors("kl", output, output, {"attention_mask": MASK})) == 3


INVARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda output: output,  # the length of a row
    "kl": torch.ones_like,  # a constant added to all logits of a token
}


@pytest.mark.parametrize("objective", INVARIANCES)
def test_changes_that_cost_nothing_are_predicted_to(objective: str) -> None:
    output = normal(0, 5, 6)
    gradients, _ = draws(objective, output, {}, 20)
    free = (gradients * INVARIANCES[objective](output)).sum(-1)
    assert float(gradients.norm()) > 1
    assert float(free.abs().max()) < 1e-12


@pytest.mark.parametrize("objective", ["cosine", "mse"])
def test_zero_outputs_have_no_direction_to_probe(objective: str) -> None:
    """Small changes of them cost a constant, which no gradient tells; the other rows are not drowned."""
    output = normal(0, 3, 6).float()
    output[1] = 0
    gradients, _ = draws(objective, output, {}, 3)
    assert bool((gradients[:, 1] == 0).all())
    assert 0 < float(gradients.abs().max()) < 100


@pytest.mark.parametrize("objective", ["cosine", "mse"])
def test_errors_of_zero_outputs_are_those_of_the_runtime(objective: str) -> None:
    reference, output = normal(0, 4, 6), normal(1, 4, 6)
    reference[0] = output[1] = reference[2] = output[2] = 0
    ours = batch_errors(objective, reference, output, {})
    np.testing.assert_allclose(ours, runtime_errors(objective, reference, output, {}), rtol=1e-9)
    output.requires_grad_()
    batch_errors(objective, reference, output, {}).sum().backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())
