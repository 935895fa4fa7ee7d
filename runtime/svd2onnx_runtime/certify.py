"""Prove that a file runs on a provider as it is meant to: its quantized MatMuls fused, and nothing elsewhere.

    DequantizeLinear(codes, scale) -> MatMul               becomes   com.microsoft.MatMulNBits
    MatMulInteger(codes of x, W), Cast and Mul by scales   becomes   com.microsoft.MatMulIntegerToFloat
    Mul(Cast(codes), Gather(scale)) -> MatMul or Conv      becomes   the same, on a weight made at load
    Mul(Cast(codes), Gather(scale)) -> any operator        becomes   the same, on a weight made at load
    DequantizeLinear -> Conv -> QuantizeLinear             becomes   QLinearConv, on a weight made at load

A pair that does not fuse dequantizes its weight on every call and is many times slower, and
onnxruntime says nothing about it. So the graph is run once under onnxruntime's profiler (``profile``).
Fusion keeps the MatMul's name (1.31.1); a MatMul merged with its bias first, into a Gemm, gets
``/MatMulAddFusion`` appended. That matches each planned MatMul to its kernel exactly.

The plan is the file's own: the metadata entry ``svd2onnx.matmuls``, a JSON list of objects with
"node", "bits", "block_size", "k", "n" and more; "activations" is "int8" for the second line above, and
"operator" is "folded" for the third, with "weight", what the names of the nodes begin with that make
the weight. A convolution has "op": "Conv": onnxruntime renames it with what it is fused with, so only the
making of its weight is looked for, and its kernel where "activations" is "int8". So it is for a weight that
any other operator takes, with "op": "Stored".
Without a plan the executed nodes are merely counted. Where the nodes ran is judged in ``placement``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svd2onnx_runtime.errors import GraphError, naming
from svd2onnx_runtime.placement import capture_obstacles, misplaced
from svd2onnx_runtime.profile import ExecutedNode, profile
from svd2onnx_runtime.session import Array, Session, ort_version, provider_name, provider_of

METADATA_KEY = "svd2onnx.matmuls"
"""The metadata entry that lists the quantized MatMuls."""
_FUSED_OPS = {
    "float": ("MatMulNBits",),
    "int8": ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
"""By what the MatMul computes with; the second of int8 rounds its input too, where no other reads it."""
_WEIGHT_ALONE = ("Conv", "Stored")
"""Of these only the making of the weight is looked for."""
_INT8_CONVOLUTION, _MOVED = "QLinearConv", "_token_"
_BIAS_SUFFIX = "/MatMulAddFusion"
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Certificate:
    """How one file ran on one provider ("cpu" or "cuda").

    Of its quantized MatMuls, ``fused`` are the names of the fused ones and ``folded`` of those on a weight
    that was made a float at load, on purpose; ``unfused`` are (name, reason). ``planned`` counts all; it
    is 0 for a file without a quantized MatMul, for which ``ok`` says nothing of them.

    ``misplaced`` are (name, reason) of nodes that ran elsewhere or copy between host and device.
    ``capture_obstacles`` are (name, reason) of what keeps a CUDA graph from being captured; None on the CPU.
    """

    provider: str
    onnxruntime: str
    planned: int
    fused: tuple[str, ...]
    unfused: tuple[tuple[str, str], ...]
    folded: tuple[str, ...] = ()
    misplaced: tuple[tuple[str, str], ...] = ()
    capture_obstacles: tuple[tuple[str, str], ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether every planned MatMul fused, or was folded on purpose, and every node is in its place."""
        return not self.unfused and not self.misplaced

    @property
    def summary(self) -> str:
        """Such as "36 fused of 36" or "2 fused, 5 folded of 7"."""
        counts = {"fused": len(self.fused), "folded": len(self.folded)}
        parts = [f"{count} {how}" for how, count in counts.items() if count] or ["none fused"]
        return f"{', '.join(parts)} of {self.planned}"

    @property
    def cuda_graph_ok(self) -> bool:
        """Whether a CUDA graph can be captured, for inputs of fixed shapes and addresses."""
        return self.capture_obstacles == ()


def certify(
    path: str | os.PathLike[str],
    provider: str = "auto",
    dims: Mapping[str, int] | None = None,
    inputs: Mapping[str, Array] | None = None,
) -> Certificate:
    """Run the graph once on ``provider`` and match its planned MatMuls to the executed kernels.

    ``inputs`` are the arrays to run it on; without them synthetic ones of the sizes ``dims`` are.
    Raises ProviderError, GraphError and InputsError.
    """
    with naming(path):
        session, executed = profile(path, provider, dims or {}, inputs)
    actual = provider_of(session)
    entries = _planned(session, path)
    wanted = provider_name(actual)
    outcomes = (
        _count(executed, wanted)
        if entries is None
        else [(entry["node"], _refusal(entry, executed, wanted)) for entry in entries]
    )
    right = [name for name, reason in outcomes if reason is None]
    folded = {entry["node"] for entry in entries or () if entry.get("operator") == "folded"}
    return Certificate(
        provider=actual,
        onnxruntime=ort_version(),
        planned=len(outcomes),
        fused=tuple(name for name in right if name not in folded),
        unfused=tuple((name, reason) for name, reason in outcomes if reason is not None),
        folded=tuple(name for name in right if name in folded),
        misplaced=misplaced(executed, wanted),
        capture_obstacles=capture_obstacles(executed) if actual == "cuda" else None,
    )


def _planned(session: Session, path: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """The file's list of quantized MatMuls; None where it carries none."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        return None
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        names = [_checked(entry)["node"] for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise GraphError(
            f"the metadata {METADATA_KEY!r} of {path} is not a list of MatMuls with node, bits, "
            f"k and n ({type(error).__name__}: {error}): export the file again"
        ) from error
    if len(set(names)) != len(names):
        raise GraphError(f"the metadata {METADATA_KEY!r} of {path} names a node twice: export it again")
    return entries


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """``entry`` where it says all that is asked of it; ValueError, TypeError or KeyError where not."""
    if not isinstance(entry, dict):
        raise TypeError(f"an entry is an object, not {type(entry).__name__}")
    texts = [
        "node",
        *(["weight"] if entry.get("op") in _WEIGHT_ALONE or entry.get("operator") == "folded" else []),
    ]
    if not all(type(entry[name]) is str for name in texts):
        raise TypeError(f"{' and '.join(texts)} must be text")
    sizes = ["bits", "k", "n", *(["block_size"] if entry.get("block_size") is not None else [])]
    if not all(type(entry[name]) is int for name in sizes):
        raise TypeError(f"{', '.join(sizes)} must be whole numbers")
    if entry.get("activations", "float") not in tuple(_FUSED_OPS):
        raise ValueError(f"activations must be one of {tuple(_FUSED_OPS)}")
    return entry


def _refusal(entry: Mapping[str, Any], executed: Sequence[ExecutedNode], provider: str) -> str | None:
    """Why this planned MatMul is not one correct fused kernel on ``provider``; None if it is."""
    if entry.get("op") in _WEIGHT_ALONE:
        made = _made_on_call(entry, executed)
        return made or (_not_in_int8(entry, executed) if entry.get("activations") == "int8" else None)
    nodes = [node for node in executed if _original_name(node) == entry["node"]]
    if not nodes:
        return "no executed node carries its name: onnxruntime removed, merged or never reached it"
    elsewhere = sorted({node.provider for node in nodes} - {provider})
    if elsewhere:
        return f"ran on {', '.join(elsewhere)}, not on {provider}"
    if entry.get("operator") == "folded":
        return _made_on_call(entry, executed)
    activations = entry.get("activations", "float")
    if all(node.op in _FUSED_OPS[activations] for node in nodes):
        if activations == "float" and entry["bits"] == 2 and entry["n"] % 4:
            return f"int2 with N = {entry['n']}, no multiple of 4: the kernel computes wrong values"
        return None
    ops = ", ".join(sorted({node.op for node in nodes}))
    if activations == "int8":
        return f"ran as {ops}, not as {' or '.join(_FUSED_OPS[activations])}"
    block = entry.get("block_size")
    if block is not None and block not in _BLOCKS:
        return f"ran as {ops}: block size {block} is not a power of two in 16..256"
    shape = (entry["k"], entry["n"])
    kept = [node.name for node in executed if node.op == "DequantizeLinear" and shape in node.output_shapes]
    if kept:
        return f"ran as {ops}: a DequantizeLinear to {list(shape)} runs on every call ({kept[0]})"
    return f"ran as {ops}: the weight was folded to float at load"


def _made_on_call(entry: Mapping[str, Any], executed: Sequence[ExecutedNode]) -> str | None:
    makers = [node for node in executed if node.name.startswith(f"{entry['weight']}/")]
    return f"its weight is made on every call, by {makers[0].op} {makers[0].name}" if makers else None


def _not_in_int8(entry: Mapping[str, Any], executed: Sequence[ExecutedNode]) -> str | None:
    """Why the convolution of ``entry`` is no int8 kernel; onnxruntime keeps its name, and may add to it."""
    nodes = [node for node in executed if node.name.partition(_MOVED)[0] == entry["node"]]
    if not nodes:
        return "no executed node carries its name: onnxruntime removed it, or merged it with what follows"
    others = sorted({node.op for node in nodes} - {_INT8_CONVOLUTION})
    return (
        f"ran as {', '.join(others)}, not as {_INT8_CONVOLUTION}: its values went back to float"
        if others
        else None
    )


def _original_name(node: ExecutedNode) -> str:
    return node.name.partition(_BIAS_SUFFIX)[0]


def _count(executed: Sequence[ExecutedNode], provider: str) -> list[tuple[str, str | None]]:
    """Without a plan: each MatMulNBits is a fused MatMul, each DequantizeLinear an unfused one."""
    outcomes: dict[str, str | None] = {}
    for node in executed:
        if node.op in _FUSED_OPS["float"]:
            outcomes[node.name] = (
                None if node.provider == provider else f"ran on {node.provider}, not on {provider}"
            )
        elif node.op == "DequantizeLinear":
            outcomes[node.name] = f"this DequantizeLinear runs on every call, on {node.provider}"
    return list(outcomes.items())
