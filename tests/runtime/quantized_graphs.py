"""Small ONNX files with quantized MatMuls, built with onnx, for the runtime's tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CODES = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4), 2: np.dtype(ml_dtypes.int2)}
NODE = "/encoder/layer.0/MatMul"


def quantized_matmul(
    path: Path,
    *,
    k: int = 128,
    n: int = 64,
    bits: int = 4,
    block: int = 32,
    shape: Sequence[str | int] = ("batch",),
    bias: bool = False,
    reader: bool = False,
    planned: bool = True,
) -> np.ndarray:
    """Write y = x @ dequantized(codes) [+ bias] and return the weight in float64, [k, n].

    The scale is a float16 initializer with a Cast, as svd2onnx exports it. ``shape`` are the axes of
    x before k. ``reader``: a second node reads the dequantized weight. ``planned``: with metadata.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, (k, n))
    scale = (rng.random((-(-k // block), n)) * 0.01 + 0.005).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["scale16"], ["scale"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], name="dq", axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["product" if bias else "y"], name=NODE),
    ]
    arrays = {"codes": codes.astype(CODES[bits]), "scale16": scale}
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, n])]
    if bias:
        arrays["bias"] = np.ones(n, np.float32)
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"], name="add"))
    if reader:
        nodes.append(helper.make_node("Neg", ["w"], ["negative"], name="neg"))
        outputs.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, [k, n]))
    entry = {"node": NODE, "bits": bits, "block_size": block, "k": k, "n": n}
    _save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape, k])],
        outputs,
        arrays,
        opset=25 if bits == 2 else 21,
        metadata={"svd2onnx.matmuls": json.dumps([entry])} if planned else {},
    )
    return codes * np.repeat(scale.astype(np.float64), block, axis=0)[:k]


def float_matmul(path: Path, weight: np.ndarray, *, external: bool = False) -> None:
    """Write y = x @ weight in float32."""
    k, n = weight.shape
    _save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=NODE)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", n])],
        {"w": weight.astype(np.float32)},
        external=external,
    )


def token_graph(path: Path) -> None:
    """Write y = noise + float(ids) * float(mask), with inputs of three element types."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids_f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["mask"], ["mask_f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids_f", "mask_f"], ["masked"]),
        helper.make_node("Add", ["masked", "noise"], ["y"]),
    ]
    kinds = {"ids": TensorProto.INT64, "mask": TensorProto.BOOL, "noise": TensorProto.FLOAT}
    inputs = [
        helper.make_tensor_value_info(name, kind, ["batch", "sequence"]) for name, kind in kinds.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence"])
    _save(path, nodes, inputs, [output], {})


def _save(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    arrays: Mapping[str, np.ndarray],
    *,
    opset: int = 21,
    metadata: Mapping[str, str] | None = None,
    external: bool = False,
) -> None:
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=13 if opset == 25 else 10,
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=0,
    )
