"""What is lost of each output of a network, collected over batches.

One output is judged by the objective: the one that is named, or else the first of floating-point numbers. Of
the others, floats have the error |output - reference|^2 / |reference|^2, and integers and booleans the share
of elements that differ, each of all their values together: nobody said where their samples lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import InputsError
from svd2onnx_runtime.masking import Array, same_masked
from svd2onnx_runtime.objectives import fidelity, sample_errors, token_mask

EQUAL = "equal elements"
"""In place of an objective, for integers and booleans."""


@dataclass(frozen=True)
class OutputFidelity:
    """What one output lost; 1 is a perfect copy.

    ``objective`` is what it was measured by: the network's for the output that is judged, "mse" for other
    floats, and "equal elements" (their share) for integers and booleans. ``masked`` is the share of its
    values that is masked by ``masks`` and left out, see ``svd2onnx_runtime.masking``.
    """

    name: str
    objective: str
    fidelity: float
    mean_error: float
    masked: float = 0.0
    masks: tuple[str, ...] = ()


class OutputErrors:
    """Collects the errors of all outputs; ``output`` names the one that ``objective`` judges.

    Args:
        names: of the outputs, in order.
        objective: "cosine", "kl" or "mse".
        output: None for the first of floating-point numbers.

    Raises:
        InputsError: no output has that name.
    """

    def __init__(self, names: Sequence[str], objective: str, output: str | None = None) -> None:
        self._names, self._objective = list(names), objective
        self._judged = None if output is None else place_of(output, self._names)
        self._errors: list[Array] = []
        self._losses = [_Loss() for _ in names]

    def add(self, references: Sequence[Array], outputs: Sequence[Array], batch: Mapping[str, Array]) -> None:
        """One batch: what the float network gives, and what the other gives.

        Raises:
            InputsError: there are not as many outputs as names, or an error is not a number.
        """
        for found in (references, outputs):
            if len(found) != len(self._names):
                raise InputsError(
                    f"expected {len(self._names)} outputs ({', '.join(self._names)}), found {len(found)}: "
                    "compare graphs of the same network"
                )
        if self._judged is None:
            self._judged = first_float([_is_float(array) for array in references])
        for place, (loss, name) in enumerate(zip(self._losses, self._names, strict=True)):
            reference, output = references[place], outputs[place]
            if place != self._judged:
                loss.add(name, reference, output)
                continue
            mask = token_mask(self._objective, reference, batch)
            self._errors.append(sample_errors(self._objective, reference, output, mask))
            loss.count(reference, same_masked(reference, output))

    def judged(self) -> tuple[str, Array]:
        """The output that is judged, and the errors of its samples.

        Raises:
            InputsError: there is none.
        """
        errors = np.concatenate(self._errors) if self._errors else np.empty(0)
        if not errors.size or self._judged is None:
            raise InputsError("expected at least one sample to compare, found none: give more batches")
        return self._names[self._judged], errors

    def every(self) -> tuple[OutputFidelity, ...]:
        """What each output lost, in order; one without any value is left out."""
        name, errors = self.judged()
        found = []
        for own, loss in zip(self._names, self._losses, strict=True):
            if not loss.values:
                continue
            kind = self._objective if own == name else EQUAL if loss.is_exact else "mse"
            error = float(errors.mean()) if own == name else loss.error()
            one = fidelity(self._objective, error) if own == name else 1.0 - error
            found.append(OutputFidelity(own, kind, one, error, loss.masked / loss.values, loss.masks()))
        return tuple(found)


class _Loss:
    """Of one output: sums over the batches."""

    def __init__(self) -> None:
        self.is_exact = False
        self.values = self.masked = 0
        self._power = self._error = 0.0
        self._masks: set[float] = set()

    def add(self, name: str, reference: Array, output: Array) -> None:
        """Sum up errors; a batch of another shape, or infinite at other places, is lost."""
        same = None
        if not _is_float(reference):
            self.is_exact = True
            self._power += reference.size
            fits = reference.shape == output.shape
            self._error += int(np.count_nonzero(reference != output)) if fits else reference.size
        elif reference.shape == output.shape:
            same = same_masked(reference, output)
            self._add_floats(name, *(_kept(own, same) for own in (reference, output)))
        else:
            size = float(np.square(_kept(reference, ~np.isfinite(reference))).sum()) or 1.0
            self._power += size
            self._error += size
        self.count(reference, same)

    def _add_floats(self, name: str, reference: Array, output: Array) -> None:
        if np.isnan(reference).any() or np.isnan(output).any():
            raise InputsError(f"output {name!r} holds NaN: check the graph in float32")
        lost = np.isinf(reference) | np.isinf(output)
        reference, output = _kept(reference, lost), _kept(output, lost)
        power, error = float(np.square(reference).sum()), float(np.square(output - reference).sum())
        self._power += power or float(lost.any())
        self._error += max(error, power or 1.0) if lost.any() else error

    def count(self, reference: Array, same: Array | None) -> None:
        """Note how many values there are, and which are masked."""
        self.values += reference.size
        if same is not None:
            self.masked += int(np.count_nonzero(same))
            self._masks |= set(np.unique(reference[same]).tolist())

    def error(self) -> float:
        if self._power == 0:
            return float(self._error > 0)
        return self._error / self._power

    def masks(self) -> tuple[str, ...]:
        return tuple(re.sub(r"e\+0*", "e", f"{value:g}") for value in sorted(self._masks))


def place_of(output: str, names: Sequence[str]) -> int:
    """Where ``output`` is among ``names``.

    Raises:
        InputsError: it is none of them.
    """
    if output not in names:
        raise InputsError(
            f"the objective is of output {output!r}, and the network gives {', '.join(names)}: "
            "name one of these"
        )
    return names.index(output)


def first_float(are_floats: Sequence[bool]) -> int:
    """The place of the first output of floating-point numbers; 0 where there is none."""
    return are_floats.index(True) if True in are_floats else 0


def _is_float(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _kept(array: Array, left_out: Array | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """In float64, and 0 where it is left out."""
    result = np.array(array, np.float64)  # a copy, and an array where a single number was none
    if left_out is not None:
        result[left_out] = 0.0
    return result
