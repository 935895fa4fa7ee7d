"""Prove that every quantized MatMul of a file became one fused kernel on a provider.

    DequantizeLinear(codes, scale) -> MatMul               becomes   com.microsoft.MatMulNBits
    MatMulInteger(codes of x, W), Cast and Mul by scales   becomes   com.microsoft.MatMulIntegerToFloat

A pair that does not fuse dequantizes its weight on every call and is many times slower, and
onnxruntime says nothing about it. So the graph is run once under onnxruntime's profiler, which
records each executed node: its operator, its provider and its name. Fusion keeps the MatMul's name
(1.31.1); a MatMul merged with its bias first, into a Gemm, gets ``/MatMulAddFusion`` appended. That
matches each planned MatMul to its kernel exactly.

The plan is the file's own: the metadata entry ``svd2onnx.matmuls``, a JSON list of objects with
"node", "bits", "block_size", "k", "n" and more; "activations" is "int8" for the second line above.
Without it the executed nodes are merely counted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd2onnx_runtime.errors import GraphError
from svd2onnx_runtime.session import (
    Array,
    Session,
    load,
    ort_version,
    provider_name,
    provider_of,
    run,
    session_options,
    synthetic_inputs,
)

METADATA_KEY = "svd2onnx.matmuls"
"""The metadata entry that lists the quantized MatMuls."""
_FUSED_OPS = {
    "float": ("MatMulNBits",),
    "int8": ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
"""By what the MatMul computes with; the second of int8 rounds its input too, where no other reads it."""
_BIAS_SUFFIX = "/MatMulAddFusion"
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Certificate:
    """What became of the quantized MatMuls of one file on one provider ("cpu" or "cuda").

    ``fused`` are node names; ``unfused`` are (node name, reason). ``planned`` counts both; it is 0
    for a file without a quantized MatMul, for which ``ok`` holds but says nothing.
    """

    provider: str
    onnxruntime: str
    planned: int
    fused: tuple[str, ...]
    unfused: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether every planned MatMul fused."""
        return not self.unfused


@dataclass(frozen=True)
class ExecutedNode:
    """One node of the optimized graph as the profiler saw it, ``provider`` in its long name."""

    op: str
    name: str
    provider: str
    output_shape: tuple[int, ...]


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
    session, executed = _profile(path, provider, dims or {}, inputs)
    actual = provider_of(session)
    entries = _planned(session, path)
    wanted = provider_name(actual)
    outcomes = (
        _count(executed, wanted)
        if entries is None
        else [(entry["node"], _refusal(entry, executed, wanted)) for entry in entries]
    )
    return Certificate(
        provider=actual,
        onnxruntime=ort_version(),
        planned=len(outcomes),
        fused=tuple(name for name, reason in outcomes if reason is None),
        unfused=tuple((name, reason) for name, reason in outcomes if reason is not None),
    )


def _profile(
    path: str | os.PathLike[str],
    provider: str,
    dims: Mapping[str, int],
    inputs: Mapping[str, Array] | None,
) -> tuple[Session, list[ExecutedNode]]:
    """The session and the nodes that one profiled run executed."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = load(path, options, provider)
        try:
            run(session, synthetic_inputs(session, dims) if inputs is None else inputs)
        finally:
            profile = Path(session.end_profiling())  # also closes the file before it is removed
        events = json.loads(profile.read_text(encoding="utf-8"))
    return session, [_executed(event) for event in events if _is_kernel(event)]


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")


def _executed(event: Mapping[str, Any]) -> ExecutedNode:
    args = event["args"]
    outputs = args.get("output_type_shape") or [{}]
    shape: Sequence[int] = next(iter(outputs[0].values()), [])
    return ExecutedNode(
        op=args["op_name"],
        name=event["name"].removesuffix("_kernel_time"),
        provider=args.get("provider", ""),
        output_shape=tuple(shape),
    )


def _planned(session: Session, path: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """The file's list of quantized MatMuls; None where it carries none."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        return None
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        names = [(entry["node"], entry["bits"], entry["k"], entry["n"])[0] for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise GraphError(
            f"the metadata {METADATA_KEY!r} of {path} is not a list of MatMuls with node, bits, "
            f"k and n ({type(error).__name__}: {error}): export the file again"
        ) from error
    if len(set(names)) != len(names):
        raise GraphError(f"the metadata {METADATA_KEY!r} of {path} names a node twice: export it again")
    return entries


def _refusal(entry: Mapping[str, Any], executed: Sequence[ExecutedNode], provider: str) -> str | None:
    """Why this planned MatMul is not one correct fused kernel on ``provider``; None if it is."""
    nodes = [node for node in executed if _original_name(node) == entry["node"]]
    if not nodes:
        return "no executed node carries its name: onnxruntime removed, merged or never reached it"
    elsewhere = sorted({node.provider for node in nodes} - {provider})
    if elsewhere:
        return f"ran on {', '.join(elsewhere)}, not on {provider}"
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
    kept = [node.name for node in executed if node.op == "DequantizeLinear" and node.output_shape == shape]
    if kept:
        return f"ran as {ops}: a DequantizeLinear to {list(shape)} runs on every call ({kept[0]})"
    return f"ran as {ops}: the weight was folded to float at load"


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
