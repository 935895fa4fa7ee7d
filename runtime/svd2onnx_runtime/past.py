"""Names and sizes of a graph that generates: what it takes of the past, and gives to be the next one's past.

    past_key_values.{i}.key, .value   [batch_size, heads, past_sequence_length, width]              inputs
    present.{i}.key, .value           [batch_size, heads, past_sequence_length + sequence_length,   outputs
                                       width]

as Hugging Face's Optimum and transformers.js name them. The ``attention_mask`` of such a graph is over the
past and what is new. Without a past given there is none: arrays of length 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from svd2onnx_runtime.dimensions import HF_PAST_LENGTH, HF_SEQUENCE
from svd2onnx_runtime.errors import GraphError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # noqa: TID251

Array: TypeAlias = NDArray[Any]

PAST, PRESENT = "past_key_values.", "present."
TOTAL_LENGTH = f"{HF_PAST_LENGTH} + {HF_SEQUENCE}"
"""The name of the attention mask's second dimension."""
_LARGEST = 1 << 20


def past_names(session: InferenceSession) -> dict[str, str]:
    """The inputs that take the past, each with the output that is the next one's; empty without a cache.

    Raises:
        GraphError: an input has no such output.
    """
    outputs = {output.name for output in session.get_outputs()}
    names = {
        wanted.name: PRESENT + wanted.name.removeprefix(PAST)
        for wanted in session.get_inputs()
        if wanted.name.startswith(PAST)
    }
    for name, present in names.items():
        if present not in outputs:
            raise GraphError(
                f"the graph takes {name!r} and gives no {present!r}, which the next step takes: "
                "export it again"
            )
    return names


def results_of(session: InferenceSession) -> list[str]:
    """The outputs that are results, and no keys and values for the next step."""
    presents = set(past_names(session).values())
    return [output.name for output in session.get_outputs() if output.name not in presents]


def is_past(name: str) -> bool:
    """Whether the input ``name`` takes keys or values of the past."""
    return name.startswith(PAST)


def empty(
    name: str, shape: Sequence[int | str | None], dtype: np.dtype[Any], feeds: Mapping[str, Array]
) -> Array:
    """The past of texts that have none yet, for the input ``name`` of this ``shape``.

    The batch is that of the first of ``feeds``, the inputs so far. Raises GraphError for a shape that is not
    [batch, heads, past, width] with past of any length.
    """
    if len(shape) != 4 or isinstance(shape[2], int):
        raise GraphError(f"input {name!r} is {list(shape)}, not [batch, heads, past, width]: export it again")
    batch = next((len(array) for array in feeds.values() if array.ndim), 1)
    heads, width = (size if isinstance(size, int) else 0 for size in (shape[1], shape[3]))
    if max(heads, width) > _LARGEST:
        raise GraphError(f"input {name!r} is {list(shape)}, more than any network has: export it again")
    return np.zeros((batch, heads, 0, width), dtype)


def length_of(feeds: Mapping[str, Array]) -> int:
    """The length of the past in ``feeds``; 0 where they hold none."""
    return next((int(array.shape[2]) for name, array in feeds.items() if is_past(name)), 0)
