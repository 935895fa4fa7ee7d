"""What counts as masked, and what masks do to errors."""

import math

import numpy as np
import pytest

from svd2onnx_runtime import InputsError, sample_errors
from svd2onnx_runtime.masking import masked, same_masked

SMALLEST = float(np.finfo(np.float32).min)
MASKS = [-np.inf, np.inf, SMALLEST, -65504.0, -1e9, 1e9, -1e4]


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, 10)).astype(np.float32)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("count", [1, 5])
def test_constants_of_masks_are_known_even_once(mask: float, count: int) -> None:
    output = logits()
    output.flat[:count] = mask
    found = masked(output)
    assert found is not None
    assert np.flatnonzero(found).tolist() == list(range(count))


def test_any_large_value_that_repeats_is_a_mask_and_one_that_does_not_is_a_number() -> None:
    output = 12_345 * logits()
    assert np.abs(output).max() > 1e4
    assert masked(output) is None
    output[:, 0] = -12_345.5
    found = masked(output)
    assert found is not None
    assert np.array_equal(found, output == np.float32(-12_345.5))


def test_small_values_and_integers_are_no_masks() -> None:
    assert masked(np.zeros((4, 4))) is None
    assert masked(np.full((4, 4), -9_999.0)) is None
    assert masked(np.full((4, 4), -(10**9))) is None
    assert masked(np.full((2, 2), np.nan)) is None


@pytest.mark.parametrize("objective", ["cosine", "kl", "mse"])
@pytest.mark.parametrize("mask", [-np.inf, SMALLEST, -1e9])
def test_errors_are_those_of_the_other_values(objective: str, mask: float) -> None:
    reference, output = logits(), logits() + 0.1 * logits(1)
    kept = np.arange(10) >= 3
    expected = sample_errors(objective, reference[:, kept], output[:, kept])
    reference[:, ~kept] = output[:, ~kept] = mask
    np.testing.assert_allclose(sample_errors(objective, reference, output), expected, rtol=1e-6)


@pytest.mark.parametrize("objective", ["cosine", "mse"])
def test_leaving_out_never_hides_an_error(objective: str) -> None:
    """Large values that repeat and are no masks: what is equal adds nothing to the difference."""
    reference = np.clip(40_000 * logits(), -50_000, 50_000)
    output = np.clip(reference + 3_000 * logits(1), -50_000, 50_000)
    assert same_masked(reference, output) is not None
    ours = sample_errors("mse", reference, output)
    plain = ((output - reference) ** 2).sum(1) / (reference**2).sum(1)
    assert (ours >= plain * (1 - 1e-6)).all()
    assert (ours > 0).all()


def test_a_masked_value_that_is_not_masked_in_the_file_counts() -> None:
    reference, output = logits(), logits()
    reference[:, :3] = output[:, :3] = -1e9
    output[2, 1] = 5.0
    errors = sample_errors("mse", reference, output)
    assert errors[2] == pytest.approx(1)
    assert (np.delete(errors, 2) == 0).all()


@pytest.mark.parametrize("objective", ["cosine", "mse"])
@pytest.mark.parametrize("found", [5.0, np.inf])
def test_a_sample_that_loses_an_infinity_is_lost(objective: str, found: float) -> None:
    reference, output = logits(), logits()
    reference[:, :3] = output[:, :3] = -np.inf
    output[2, 1] = found
    assert sample_errors(objective, reference, output).tolist() == [0, 0, 1, 0, 0, 0]


def test_in_float16_another_number_stands_for_infinity() -> None:
    reference, output = logits(), logits()
    reference[:, :3], output[:, :3] = SMALLEST, -16_384
    assert (sample_errors("mse", reference, output) == 0).all()
    output[:, :3] = 16_384
    assert (sample_errors("mse", reference, output) > 0.3).all()


def test_a_mask_excuses_no_nan() -> None:
    reference, output = logits(), logits()
    reference[:, :3] = output[:, :3] = -np.inf
    for broken in (reference, output):
        broken[1, 1] = np.nan
        with pytest.raises(InputsError, match="1 of 6 samples"):
            sample_errors("mse", reference, output)
        broken[1, 1] = -np.inf


def test_rows_that_rule_out_everything_are_equal() -> None:
    reference = np.full((2, 3), -np.inf)
    reference[1] = [0, 1, 2]
    for objective in ("cosine", "kl", "mse"):
        assert sample_errors(objective, reference, reference).tolist() == [0, 0]


def test_a_ruled_out_class_that_comes_back_costs_what_it_takes() -> None:
    reference, output = np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])
    assert sample_errors("kl", reference, output)[0] == pytest.approx(math.log(2))
