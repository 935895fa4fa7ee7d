"""From a request's body to the arrays of a graph; what does not fit is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray


@dataclass(frozen=True)
class Limits:
    """The longest body in bytes, and the largest size of a dynamic dimension of an input.

    The second bounds what a request costs: an attention takes memory by the square of a text's length.
    """

    max_bytes: int = 1 << 20
    max_dim: int = 256


async def read_arrays(request: Request, wanted: Sequence[Any], limits: Limits) -> dict[str, NDArray[Any]]:
    """The arrays in the request's body, by the names of the graph's inputs ``wanted``.

    Raises:
        HTTPException: 413 for what is too large, 400 for what is no JSON object, 422 for what does not
            fit the graph. Whether an input is missing or has another shape, ``svd2onnx_runtime.run`` says.
    """
    values = _parsed(await _body(request, limits.max_bytes))
    inputs = {value.name: value for value in wanted}
    for name in values:
        if name not in inputs:
            raise HTTPException(422, f"the graph has no input {name!r}: it takes {', '.join(inputs)}")
    return {name: _array(inputs[name], lists, limits.max_dim) for name, lists in values.items()}


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than it may be long: a client can leave out its length, or lie."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body is longer than {max_bytes} bytes: send fewer samples at once")
    return bytes(body)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(
            400, "the body is no JSON: send an object of nested lists by input name"
        ) from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise HTTPException(400, f"the body is a {kind}: send an object of nested lists by input name")
    return values


def _array(wanted: Any, lists: Any, max_dim: int) -> NDArray[Any]:
    """The nested lists as an array of the input's type, with the values they have."""
    try:
        found = np.array(lists)
    except ValueError as error:
        message = f"the lists of {wanted.name!r} have no common shape: make them equally long"
        raise HTTPException(422, message) from error
    if found.ndim == len(wanted.shape):  # else the graph refuses it
        for size, dim in zip(found.shape, wanted.shape, strict=True):
            if not isinstance(dim, int) and not 1 <= size <= max_dim:
                raise HTTPException(
                    422, f"{dim or 'a size'} of {wanted.name!r} is {size}: 1 to {max_dim} is taken"
                )
    dtype = _dtype(wanted.type)
    if found.dtype.kind in "biuf":
        with np.errstate(over="ignore", invalid="ignore"):
            array = found.astype(dtype)
        # A float may lose digits; an integer that is changed, or a number that becomes infinite, is an error.
        if np.isfinite(array).all() and (dtype.kind == "f" or (array == found).all()):
            return array
    raise HTTPException(422, f"the values of {wanted.name!r} must be numbers that {dtype} can hold")


def _dtype(name: str) -> np.dtype[Any]:
    """Of onnxruntime's "tensor(float)"."""
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
