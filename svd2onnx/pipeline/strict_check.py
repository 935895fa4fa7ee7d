"""The strict check: does the ONNX file compute what the compressed PyTorch network computes?

With onnxruntime's optimizations off the graph is computed as written, in float32, so it must agree
with PyTorch to float rounding. What a default session makes of it (the deployed fidelity) is another
question, which ``svd2onnx_runtime.evaluate`` answers.

A file that takes keys and values of the past reads every text in pieces, the last ones of one token, and must
give the logits that the network, which has no cache, gives for the whole.

Masked values, such as -inf (``svd2onnx_runtime.masking``), must be equal, and do not count in the size of an
output, or a single -1e9 would let everything else pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import nn

from svd2onnx.network.outputs import tensors_of
from svd2onnx.pipeline.int8_check import CodeCheck, showing_codes
from svd2onnx.pipeline.kernel_rounding import rounding_of
from svd2onnx.sources.model_file import Batch, arguments_of, as_arrays
from svd2onnx.values.errors import VerificationError, one_line
from svd2onnx_runtime import OutputErrors, OutputFidelity, fidelity, open_session, run
from svd2onnx_runtime.generate import logits_in_pieces
from svd2onnx_runtime.masking import same_masked
from svd2onnx_runtime.past import past_names, results_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-5
"""Largest relative error ||onnx - torch|| / ||torch|| of an output over a batch."""


@dataclass(frozen=True)
class StrictCheck:
    """``relative_error`` is the worst over outputs and batches; the others are against float32.

    ``fidelity`` and ``mean_error`` are of the output that is judged, ``outputs`` of each.
    """

    relative_error: float
    fidelity: float
    mean_error: float
    batches: int
    outputs: tuple[OutputFidelity, ...]


def check_model(path: Path) -> None:
    """Let onnx itself look at the file at ``path``.

    Raises:
        VerificationError: it is no valid ONNX.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(
            f"the exported graph is no valid ONNX: {one_line(error)}; nothing was written, please report the "
            "network"
        ) from error


def check_strict(
    path: Path,
    compressed: nn.Module,
    original: nn.Module,
    batches: Iterable[Batch],
    objective: str,
    output: str | None = None,
) -> StrictCheck:
    """Compare the file at ``path`` with ``compressed``, and both with ``original``.

    ``output`` names the one that ``objective`` judges; None is the first of floating-point numbers.

    Raises:
        VerificationError: an output differs by more than TOLERANCE, or is not finite where the network's is;
            or see ``CodeCheck``.
    """
    check_model(path)
    shown, rounded = showing_codes(path)
    session = open_session(shown, "cpu", strict=True)
    results = [name for name in results_of(session) if name not in rounded]
    errors, codes = OutputErrors(results, objective, output), CodeCheck(compressed)
    worst, count = 0.0, 0
    for batch in batches:
        arguments = arguments_of(compressed, batch)
        feed = as_arrays(batch)
        originals = outputs_of(original, arguments)
        if rounded:
            given = run(session, feed)
            outputs = [given[name] for name in results]
            with codes.following([given[name] for name in rounded]):
                expected = outputs_of(compressed, arguments)
        else:
            expected = outputs_of(compressed, arguments)
            outputs, expected, originals = comparable(session, feed, expected, originals)
        worst = max(worst, error_of_file(path, session, outputs, expected))
        if worst > TOLERANCE:
            raise VerificationError(
                f"the exported graph differs from the compressed network by {worst:.1e} relative to its "
                f"output, and at most {TOLERANCE:.0e} is rounding: the file was not written; "
                "please report the network"
            )
        errors.add(originals, outputs, feed)
        count += 1
    mean = float(errors.judged()[1].mean())
    return StrictCheck(worst, fidelity(objective, mean), mean, count, errors.every())


def comparable(
    session: InferenceSession, feed: Mapping[str, np.ndarray], *networks: list[np.ndarray]
) -> list[list[np.ndarray]]:
    """What the graph gives for ``feed``, and what ``networks`` gave, as far as they are to be equal."""
    if past_names(session):
        outputs = [logits_in_pieces(session, feed)]
        return [_real(own[0], feed) for own in (outputs, *networks)]
    return [list(run(session, feed).values()), *networks]


def error_of_file(
    path: Path, session: InferenceSession, outputs: list[np.ndarray], expected: list[np.ndarray]
) -> float:
    """``worst_error`` of the graph at ``path``, without what the kernels round away if it is too much."""
    worst = worst_error(outputs, expected)
    if worst <= TOLERANCE or past_names(session):
        return worst
    return worst_error(outputs, expected, rounding_of(path))


def worst_error(
    outputs: list[np.ndarray], expected: list[np.ndarray], rounding: Sequence[float] = ()
) -> float:
    """The largest relative error of an output, beyond the ``rounding`` of its values, see ``rounding_of``."""
    if len(outputs) != len(expected):
        raise VerificationError(
            f"the exported graph has {len(outputs)} outputs and the network {len(expected)}"
        )
    known = rounding or [0.0] * len(outputs)
    return max(_relative_error(*own) for own in zip(outputs, expected, known, strict=True))


def outputs_of(model: nn.Module, arguments: Batch) -> list[np.ndarray]:
    """What ``model`` gives; some change their inputs in place, and get copies."""
    with torch.inference_mode():
        result = model(**{name: tensor.clone() for name, tensor in arguments.items()})
    return [tensor.numpy() for tensor in tensors_of(result)]


def _real(logits: np.ndarray, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Zero where padding stands: what a network gives there is no one's concern, and depends on the rest."""
    return [np.where((feed["attention_mask"] > 0)[..., None], logits, 0)]


def _relative_error(output: np.ndarray, reference: np.ndarray, rounding: float) -> float:
    if output.shape != reference.shape:
        raise VerificationError(
            f"the exported graph gives shape {output.shape}, where the network gives shape {reference.shape}"
        )
    same = same_masked(reference, output)
    values, wanted = (np.array(own, np.float64) for own in (output, reference))
    if same is not None:
        values[same] = wanted[same] = 0.0
    bad = int((~np.isfinite(values) | ~np.isfinite(wanted)).sum())
    if bad:
        raise VerificationError(
            f"the exported graph gives shape {output.shape} with {bad} values that are not finite, or are "
            "finite where the network's are not; infinite values must be equal in both, and none may be NaN"
        )
    size = float(np.linalg.norm(wanted))
    difference = max(0.0, float(np.linalg.norm(values - wanted)) - rounding * wanted.size**0.5)
    return float(difference / size if size else difference)
