"""Errors and fidelities against closed forms, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from svd2onnx_runtime import InputsError, fidelity, sample_errors
from svd2onnx_runtime import objectives as objectives_module

OBJECTIVES = ("cosine", "kl", "mse")
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    elements=st.floats(-30, 30, width=32),
)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(rows=ROWS)
@settings(max_examples=50, deadline=None)
def test_a_copy_has_no_error(objective: str, rows: np.ndarray) -> None:
    errors = sample_errors(objective, rows, rows)
    assert errors.shape == rows.shape[:1]
    assert (errors == 0).all()
    assert fidelity(objective, float(errors.mean())) == 1


@given(rows=ROWS, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_errors_stay_in_their_range(rows: np.ndarray, seed: int) -> None:
    other = np.random.default_rng(seed).normal(0, 5, rows.shape).astype(np.float32)
    assert (sample_errors("kl", rows, other) >= 0).all()
    assert (sample_errors("mse", rows, other) >= 0).all()
    cosine = sample_errors("cosine", rows, other)
    assert ((cosine >= 0) & (cosine <= 2 + 1e-12)).all()


def test_cosine_is_of_each_row_and_ignores_length() -> None:
    reference = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    output = np.array([[7, 0], [0, 2], [-1, 0], [1, 1]], np.float32)
    expected = [0, 1, 2, 1 - math.sqrt(0.5)]
    np.testing.assert_allclose(sample_errors("cosine", reference, output), expected, atol=1e-15)


def test_cosine_of_zero_rows() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    errors = [sample_errors("cosine", a, b)[0] for a, b in ((zero, zero), (zero, one), (one, zero))]
    assert errors == [0, 1, 1]


def test_cosine_resolves_errors_far_below_float32() -> None:
    """An angle of 1e-6 is an error of 5e-13; 1 - dot product would be all rounding in float32."""
    reference = np.array([[1.0, 0.0]])
    output = np.array([[math.cos(1e-6), math.sin(1e-6)]])
    np.testing.assert_allclose(sample_errors("cosine", reference, output), [5e-13], rtol=1e-3)


def test_kl_is_the_divergence_of_the_softmaxes_in_nats() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.3, 0.5])
    reference, output = np.log(p)[None, None] + 1000, np.log(q)[None, None] - 3
    expected = float((p * np.log(p / q)).sum())
    np.testing.assert_allclose(sample_errors("kl", reference, output), [expected], rtol=1e-10)
    assert fidelity("kl", expected) == pytest.approx(math.exp(-expected))


def test_kl_of_a_rounded_copy_is_never_negative() -> None:
    """The sum of terms of both signs may round below zero; the divergence may not."""
    reference = np.random.default_rng(0).standard_normal((200, 50))
    output = reference + 1e-9 * np.random.default_rng(1).standard_normal((200, 50))
    assert (sample_errors("kl", reference, output) >= 0).all()


def test_kl_of_ruled_out_classes() -> None:
    ruled_out = np.array([[0.0, -np.inf]])
    assert sample_errors("kl", ruled_out, ruled_out)[0] == 0
    assert sample_errors("kl", np.zeros((1, 2)), ruled_out)[0] == np.inf
    assert fidelity("kl", np.inf) == 0


def test_kl_counts_only_the_tokens_of_the_mask() -> None:
    reference, output = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
    output[0, 2] = [9, 0, 0, 0]
    output[1, 0] = np.nan  # padding may hold anything
    mask = np.array([[1, 1, 1], [0, 1, 0]])
    errors = sample_errors("kl", reference, output, mask)
    assert errors.shape == (4,)
    assert np.flatnonzero(errors).tolist() == [2]


def test_mse_is_relative_to_each_sample() -> None:
    reference = np.array([[[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    output = np.array([[[3.0, 3.0]], [[0.0, 0.0]], [[0.1, 0.0]]])
    np.testing.assert_allclose(sample_errors("mse", reference, output), [1 / 25, 0, 1])
    assert fidelity("mse", 0.04) == fidelity("cosine", 0.04) == 0.96


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_large_outputs_are_taken_in_chunks(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference, output = rng.standard_normal((2, 7, 5))
    whole = sample_errors(objective, reference, output)
    monkeypatch.setattr(objectives_module, "_CHUNK", 10)
    np.testing.assert_allclose(sample_errors(objective, reference, output), whole, rtol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused(objective: str, value: float) -> None:
    output = np.ones((3, 2))
    output[1, 0] = value
    if objective == "mse" and value == np.inf:
        assert sample_errors(objective, np.ones((3, 2)), output)[1] == np.inf
        return
    with pytest.raises(InputsError, match="1 of 3 samples"):
        sample_errors(objective, np.ones((3, 2)), output)


def test_unknown_objectives_and_shapes_that_differ_are_refused() -> None:
    rows = np.ones((2, 3))
    with pytest.raises(InputsError, match="'mae'"):
        sample_errors("mae", rows, rows)
    with pytest.raises(InputsError, match="'mae'"):
        fidelity("mae", 0.1)
    with pytest.raises(InputsError, match=r"\[2, 3\].*\[3, 2\]"):
        sample_errors("mse", rows, rows.T)
    with pytest.raises(InputsError, match="mask"):
        sample_errors("kl", rows, rows, np.ones(3))
    with pytest.raises(InputsError, match="scalar"):
        sample_errors("mse", np.float32(1) * np.ones(()), np.ones(()))
