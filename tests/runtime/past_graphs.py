"""A graph with a cache that remembers the tokens of its past, and what it computes, in numpy."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH = 11, 4
_RNG = np.random.default_rng(5)
TABLE = _RNG.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
HEAD = _RNG.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)

Array = NDArray[np.generic]


def past_graph(path: Path, *, forgets: bool = False, presents: bool = True) -> None:
    """Write logits[t] = (sum of TABLE over the real tokens up to t) @ HEAD.

    The table's rows are the keys and twice the values of the one layer [batch, 1, length, WIDTH]; padding has
    zeros. One that ``forgets`` gives values where keys belong. Without ``presents`` it gives no keys.
    """
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Neg", ["new"], ["begin"]),
        helper.make_node("Slice", ["attention_mask", "begin", "end", "one"], ["real"]),
        helper.make_node("Cast", ["real"], ["real_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real_f", "two"], ["weights"]),
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "weights"], ["kept"]),
        helper.make_node("Unsqueeze", ["kept", "one"], ["key"]),
        helper.make_node("Add", ["key", "key"], ["value"]),
        helper.make_node("Concat", ["past_key_values.0.key", "key"], ["keys"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "value"], ["values"], axis=2),
        helper.make_node("Identity", ["values" if forgets else "keys"], ["present.0.key"]),
        helper.make_node("Identity", ["values"], ["present.0.value"]),
        helper.make_node("CumSum", ["keys", "axis"], ["sums"]),
        helper.make_node("Slice", ["sums", "begin", "end", "two"], ["last"]),
        helper.make_node("Squeeze", ["last", "one"], ["states"]),
        helper.make_node("MatMul", ["states", "head"], ["logits"]),
    ]
    arrays = {
        "table": TABLE,
        "head": HEAD,
        "one": np.array([1]),
        "two": np.array([2]),
        "axis": np.array(2),
        "end": np.array([np.iinfo(np.int64).max]),
    }
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    pasts = [f"0.{part}" for part in ("key", "value")]
    before, after = (["batch", 1, length, WIDTH] for length in ("past_sequence", "past_sequence + sequence"))
    inputs = [
        helper.make_tensor_value_info("input_ids", integer, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", integer, ["batch", "past_sequence + sequence"]),
        *(helper.make_tensor_value_info(f"past_key_values.{past}", real, before) for past in pasts),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", real, ["batch", "sequence", VOCABULARY]),
        *(helper.make_tensor_value_info(f"present.{past}", real, after) for past in pasts[not presents :]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def logits_of(ids: Array, mask: Array) -> Array:
    """What the graph is to give for whole texts."""
    return np.cumsum(TABLE[ids] * mask[..., None], axis=1, dtype=np.float32) @ HEAD


def continued(ids: list[int], count: int) -> list[int]:
    """The likeliest tokens after ``ids``, by the whole text each time."""
    text = list(ids)
    for _ in range(count):
        whole = np.array([text])
        text.append(int(logits_of(whole, np.ones_like(whole))[0, -1].argmax()))
    return text[len(ids) :]
