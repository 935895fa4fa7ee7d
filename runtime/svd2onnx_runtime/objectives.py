"""What "the same output" means: the error of each sample, and one fidelity for a mean error.

    name     error                                      of each                  fidelity
    cosine   1 - cos(reference, output)                 row (last axis)          1 - error
    kl       KL(softmax(reference) || softmax(output))  token, in nats           exp(-error)
    mse      |output - reference|^2 / |reference|^2     sample (first axis)      1 - error

A fidelity of 1 is a perfect copy. All sums are in float64. Masked values, such as -inf (see
``svd2onnx_runtime.masking``), are left out; a row or sample whose reference is infinite where the output is
not has an error of 1. For "kl" a logit of -inf is a class of probability 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from svd2onnx_runtime.errors import InputsError
from svd2onnx_runtime.masking import same_masked

Array: TypeAlias = NDArray[Any]
Errors: TypeAlias = NDArray[np.float64]

_CHUNK = 1 << 22  # elements in float64 at a time: logits over a vocabulary are large


def sample_errors(objective: str, reference: Array, output: Array, mask: Array | None = None) -> Errors:
    """The errors of ``output`` against ``reference``, equal in shape, as one flat float64 array.

    ``mask`` selects the rows that count: its shape is the reference's without the last axis for
    "cosine" and "kl", and [samples] for "mse". Raises InputsError for an unknown objective, shapes
    that do not match, and outputs for which the error is not a number.
    """
    if objective not in _OBJECTIVES:
        raise InputsError(f"expected objective {', '.join(_OBJECTIVES)}, found {objective!r}")
    if reference.shape != output.shape:
        raise InputsError(
            f"the reference gives shape {list(reference.shape)}, the other graph "
            f"{list(output.shape)}: compare graphs of the same network"
        )
    if reference.ndim == 0:
        raise InputsError("a scalar output has no samples to compare: give one with a batch axis")
    expected = reference.shape[:1] if objective == "mse" else reference.shape[:-1]
    width = math.prod(reference.shape[len(expected) :])
    reference = reference.reshape(math.prod(expected), width)
    output = output.reshape(reference.shape)
    # For "kl" they have no say as it is. Found in the whole, because a mask is told by its repeated value.
    same = None if objective == "kl" else same_masked(reference, output)
    if mask is not None:
        if mask.shape != expected:
            raise InputsError(f"the mask must be {list(expected)}, found {list(mask.shape)}")
        kept = mask.ravel() != 0
        reference, output = reference[kept], output[kept]
        same = None if same is None else same[kept]
    measure = _OBJECTIVES[objective]
    errors = np.empty(len(reference))
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, len(reference), step):
        rows = slice(start, start + step)
        pair = reference[rows].astype(np.float64), output[rows].astype(np.float64)
        lost: Array = np.zeros(len(pair[0]), bool)
        if same is not None:
            for own in pair:
                own[same[rows]] = 0.0
        if objective != "kl":
            lost |= np.isinf(pair[0]).any(axis=1) & ~np.isnan(pair[1]).any(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            errors[rows] = np.where(lost, 1.0, measure(*pair))
    bad = int(np.isnan(errors).sum())
    if bad:
        raise InputsError(
            f"{bad} of {len(errors)} samples have no {objective} error: "
            "an output holds NaN or infinity, check the graph in float32"
        )
    return errors


def token_mask(objective: str, logits: Array, batch: Mapping[str, Array]) -> Array | None:
    """The batch's "attention_mask" for "kl", if it has the shape of ``logits`` without their last axis."""
    mask = batch.get("attention_mask") if objective == "kl" else None
    return mask if mask is not None and mask.shape == logits.shape[:-1] else None


def fidelity(objective: str, mean_error: float) -> float:
    """One number for a mean error: 1 is a perfect copy (see the table above)."""
    if objective not in _OBJECTIVES:
        raise InputsError(f"expected objective {', '.join(_OBJECTIVES)}, found {objective!r}")
    return math.exp(-mean_error) if objective == "kl" else 1.0 - mean_error


def _cosine(reference: Errors, output: Errors) -> Errors:
    """[rows, width] twice -> [rows], in 0..2; a zero row equals only another zero row."""
    lengths = np.linalg.norm(reference, axis=1), np.linalg.norm(output, axis=1)
    zero = lengths[0] == 0, lengths[1] == 0
    # |u - v|^2 / 2 of the unit vectors is 1 - cos, without the cancellation near 1.
    units = [
        rows / np.where(none, 1.0, length)[:, None]
        for rows, length, none in zip((reference, output), lengths, zero, strict=True)
    ]
    errors: Errors = ((units[0] - units[1]) ** 2).sum(axis=1) / 2
    errors[zero[0] | zero[1]] = 1.0
    errors[zero[0] & zero[1]] = 0.0
    return errors


def _kl(reference: Errors, output: Errors) -> Errors:
    """[rows, classes] logits twice -> [rows] nats; -inf logits are classes ruled out.

    Rows that rule out all classes have no distribution, and are equal to one another.
    """
    none: Array = (np.maximum(reference, output) == -np.inf).all(axis=1)
    if none.any():
        reference, output = (np.where(none[:, None], 0.0, logits) for logits in (reference, output))
    log_p, log_q = _log_softmax(reference), _log_softmax(output)
    p = np.exp(log_p)
    terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    # Never negative (Gibbs) but for rounding; np.maximum keeps a NaN.
    errors: Errors = np.maximum(terms.sum(axis=1), 0.0)
    return errors


def _log_softmax(logits: Errors) -> Errors:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Errors = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _mse(reference: Errors, output: Errors) -> Errors:
    """[samples, values] twice -> [samples]; against a zero reference 0 if equal, else 1."""
    power: Errors = (reference**2).sum(axis=1)
    error: Errors = ((output - reference) ** 2).sum(axis=1)
    silent = power == 0
    error[silent & (error > 0)] = 1.0
    return error / np.where(silent, 1.0, power)


_OBJECTIVES: dict[str, Callable[[Errors, Errors], Errors]] = {
    "cosine": _cosine,
    "kl": _kl,
    "mse": _mse,
}
