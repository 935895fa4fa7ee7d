"""config.pbtxt: how NVIDIA Triton's onnxruntime backend is to serve a graph.

The backend takes the optimization level, the threads and options of the provider from it, and no other entry
of onnxruntime's session options. Each instance has a session, and so the weights, of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from svd2onnx.graph.signature import Signature, Tensor
from svd2onnx.reporting.templating import templates
from svd2onnx.values.errors import OutputError
from svd2onnx_runtime import GraphError
from svd2onnx_runtime.dimensions import by_canonical_name, canonical

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DATA_TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
    **{
        f"{sign}int{width}": f"TYPE_{sign.upper()}INT{width}"
        for sign in ("", "u")
        for width in (8, 16, 32, 64)
    },
}


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    Args:
        name: of the model, and of its folder.
        provider: "cpu" or "cuda".
        version: of the model, from 1.
        max_batch: most samples that are computed together, where all inputs and outputs begin with the
            dynamic dimension "batch" or "batch_size".
        instances: sessions that compute beside each other, on each GPU if there are any.
        threads: within an operator; None lets onnxruntime choose.
        sizes: of dynamic dimensions, for the first request.

    Raises:
        OutputError: the name is none for a folder and for a URL.
    """

    name: str
    provider: str
    version: int = 1
    max_batch: int = 8
    instances: int = 1
    threads: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OutputError(
                f"{self.name!r} is no name of a model: give --name one of letters, digits, _, - and ."
            )


def config_text(signature: Signature, serving: Serving) -> str:
    """The text of config.pbtxt.

    Raises:
        GraphError: an input or output is of a type that Triton does not have.
    """
    environment = templates("svd2onnx.deployment")
    environment.filters |= {
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
        "data_type": _data_type,
        "dims": lambda tensor: _dims(tensor, signature.is_batched),
    }
    text = environment.get_template("config.pbtxt").render(
        signature=signature, serving=serving, warm_up=_warm_up(signature, serving)
    )
    return f"{text.rstrip()}\n"


def first_request(signature: Signature, serving: Serving) -> dict[str, np.ndarray] | None:
    """The arrays of zeros that Triton runs the graph on before it serves it; None where there are none."""
    shapes = _warm_up(signature, serving)
    if shapes is None:
        return None
    batch = (1,) if signature.is_batched else ()
    arrays = {}
    for tensor in signature.inputs:
        shape = batch + shapes[tensor.name]
        arrays[tensor.name] = np.zeros(shape[: len(tensor.shape)], tensor.dtype)
    return arrays


def _warm_up(signature: Signature, serving: Serving) -> dict[str, tuple[int, ...]] | None:
    """Sizes for each input as Triton counts them, where all are known.

    On a CPU the first call takes hardly longer than the next (measured: 1.1 times).
    """
    if serving.provider != "cuda":
        return None
    shapes = {}
    sizes = by_canonical_name(serving.sizes)
    for tensor in signature.inputs:
        known = [
            sizes.get(canonical(d), -1) if isinstance(d, str) else -1 if d is None else d
            for d in tensor.shape
        ]
        shape = tuple(known[1:] if signature.is_batched else known) or (1,)
        if min(shape) < 1 or tensor.dtype == "string":
            return None
        shapes[tensor.name] = shape
    return shapes


def _data_type(tensor: Tensor) -> str:
    if tensor.dtype not in _DATA_TYPES:
        raise GraphError(
            f"{tensor.name!r} is {tensor.dtype}, which Triton's onnxruntime backend does not take"
        )
    return _DATA_TYPES[tensor.dtype]


def _dims(tensor: Tensor, is_batched: bool) -> tuple[int, ...]:
    """-1 where dynamic; without that of the batch, and never without any: one element is [1]."""
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape)
    return (dims[1:] if is_batched else dims) or (1,)
