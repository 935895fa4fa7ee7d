"""Weights in the layout of onnxruntime's own kernel, ``com.microsoft.MatMulNBits``.

    MatMul(x, DequantizeLinear(codes, steps))   =>   MatMulNBits(x, B, steps^T)

    B [n, blocks, block_size bits / 8], uint8: code + 2^(bits - 1), the first code in the lowest bits

There is no pair to fuse and no weight to transpose at load, which saves time and memory; a weight that
several MatMuls use is stored once. B has no zero point, so the kernel takes 2^(bits - 1).

``accuracy_level`` 4 rounds activations to int8 in blocks, as a default session does with the fused pair on
the CPU. CUDA has one way and ignores it.

B goes through an Identity, because steps are the product of scales and units. Where onnxruntime folds that
product it drops the Identity too, and packs B for level 4. In a session with all optimizations off neither
is constant: the kernel dequantizes B and keeps activations float. There, of a constant B and steps that are
none, 1.31 computes wrong values and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import nodes
from svd2onnx.graph.stored_matmuls import StoredMatMul

DOMAIN = "com.microsoft"
_ACCURACY_LEVEL = 4


def pack_weights(graph: ir.Graph, matmuls: Sequence[StoredMatMul]) -> Iterator[dict[str, str]]:
    """Rewrite ``graph`` in place; for each of ``matmuls``, what the metadata must add about it."""
    made: dict[tuple[str, str], tuple[ir.Value, ir.Value]] = {}
    graph.opset_imports[DOMAIN] = 1
    for matmul in matmuls:
        if matmul.weight not in made:
            _transpose_constants(matmul.steps)
            made[matmul.weight] = _packed(graph, matmul), matmul.steps
        codes, steps = made[matmul.weight]
        node, x = matmul.node, matmul.node.inputs[0]
        attributes = {
            "K": matmul.k,
            "N": matmul.n,
            "bits": matmul.bits,
            "block_size": matmul.block_size,
            "accuracy_level": _ACCURACY_LEVEL,
        }
        product = ir.node("MatMulNBits", [x, codes, steps], attributes, domain=DOMAIN, name=node.name)
        product.outputs[0].name = f"{node.name}.product"
        product.outputs[0].type = node.outputs[0].type
        graph.insert_before(node, product)
        nodes.replace(graph, node, product.outputs[0])
        yield {"operator": "matmulnbits"}


def _packed(graph: ir.Graph, matmul: StoredMatMul) -> ir.Value:
    tensor = matmul.codes.const_value
    assert tensor is not None
    array = pack(tensor.numpy().astype(np.int16).T, matmul.bits, matmul.block_size)
    packed = nodes.initializer(graph, f"{matmul.codes.name}.packed", array, ir.DataType.UINT8)
    identity = ir.node("Identity", [packed])
    # By the node, because a layer's name is long; B is what the kernel calls it.
    identity.outputs[0].name = f"{matmul.node.name}.B"
    graph.insert_before(matmul.node, identity)
    return identity.outputs[0]


def pack(codes: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """Signed codes [n, k] -> uint8 [n, blocks, block_size bits / 8]; the last block is filled with zeros."""
    n, k = codes.shape
    offset, each = 1 << (bits - 1), 8 // bits
    blocks = -(-k // block_size)
    unsigned = np.full((n, blocks * block_size), offset, np.uint8)
    unsigned[:, :k] = codes + offset
    groups = unsigned.reshape(n, blocks, -1, each)
    packed = np.zeros(groups.shape[:-1], np.uint8)
    for i in range(each):
        packed |= groups[..., i] << np.uint8(bits * i)
    return packed


def _transpose_constants(value: ir.Value) -> None:
    """Transpose what ``value`` is made of: the nodes between work element by element, so it follows."""
    producer = value.producer()
    if producer is not None:
        for part in producer.inputs:
            assert part is not None
            _transpose_constants(part)
        return
    tensor = value.const_value
    assert tensor is not None
    array = np.ascontiguousarray(tensor.numpy().T)
    value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    value.shape = value.const_value.shape
