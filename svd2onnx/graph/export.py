"""Network -> ONNX: torch.onnx's exporter, the quantized initializers, and what made the file.

The exported graph has one input for each argument, outputs called as in ``network.outputs``, and dynamic
dimensions named as in ``dynamic_shapes``, or found by comparing the calibration batches.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from svd2onnx.compute.quiet import quiet
from svd2onnx.graph.exporter_operators import operators_read_once
from svd2onnx.graph.int8_convolution import name_rounded, store_codes
from svd2onnx.graph.liveness import dead_layers
from svd2onnx.graph.output_names import name_outputs, plain_outputs
from svd2onnx.graph.qdq import insert_dequantize
from svd2onnx.graph.quantized_nodes import QuantizedNode
from svd2onnx.graph.recurrent_nodes import RECURRENT
from svd2onnx.graph.signature import VERSION_KEY
from svd2onnx.graph.stored_matmuls import plan_again
from svd2onnx.network.decoder import Traced
from svd2onnx.sources.model_file import DynamicShapes
from svd2onnx.tracing.recurrent import any_length
from svd2onnx.values.errors import ExportError, one_line
from svd2onnx.values.schema import CompressedLayer
from svd2onnx.values.settings import AnyPath

OPSET = 21
"""The first opset whose DequantizeLinear takes blocks and int4."""
OPSET_INT2 = 25
"""The first opset with int2."""
LARGEST_WEIGHTS = 2**31 - 2**26
"""Bytes of weights in one file; protobuf's limit is 2 GiB, and the graph needs room too."""

_LOGGERS = (
    "torch.onnx",
    "torch.onnx._internal.exporter._registration",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "onnxscript",
)
"""They tell of missing torchvision, and of what is deprecated in the exporter itself."""


def export_float(
    model: nn.Module,
    example: Mapping[str, Tensor],
    dynamic_shapes: DynamicShapes,
    path: Path,
    *,
    with_shapes: bool = False,
    traced: Traced | None = None,
) -> None:
    """Write ``model`` as it is, or ``traced`` in its place: the float32 reference.

    As in compressed files, the shapes of values are left out, unless ``with_shapes``: onnxruntime 1.31 runs
    some float graphs slower where they are noted, and the difference shall be that of the compression alone.

    Raises:
        ExportError: the exporter cannot express the network.
    """
    exported = _to_onnx(traced or Traced(model, example, dynamic_shapes), OPSET)
    if not with_shapes:
        drop_inferable(exported)
    save(exported, path)


def export(
    model: nn.Module,
    layers: Mapping[str, CompressedLayer],
    example: Mapping[str, Tensor],
    dynamic_shapes: DynamicShapes,
    path: AnyPath,
    *,
    metadata: Mapping[str, str] | None = None,
    traced: Traced | None = None,
    integer: Collection[str] = (),
) -> list[QuantizedNode]:
    """Write a rewritten network with its codes as integers.

    Args:
        model: what ``rewrite`` returned.
        layers: its compressed layers by site name.
        example: forward's arguments, in order; dynamic dimensions of at least 2.
        dynamic_shapes: {argument: {dimension: name}}.
        path: the file to write; more than 2 GiB of weights go to ``weights_file``.
        metadata: further entries of the file's metadata.
        traced: what is exported in the network's place, of the same weights.
        integer: the convolutions among ``layers`` that compute in int8.

    Returns:
        The MatMul nodes that onnxruntime is expected to fuse with their DequantizeLinear.

    Raises:
        ExportError: the exporter cannot express the network, or a compressed weight is not in its graph.
    """
    opset = opset_for(layers)
    onnx_model = _to_onnx(traced or Traced(model, example, dynamic_shapes), opset)
    cut = any(not layer.form.specs for layer in layers.values())
    dead = dead_layers(model, layers, example) if cut else set()
    floats = {name: layer for name, layer in layers.items() if name not in integer}
    planned = insert_dequantize(onnx_model.graph, floats, dead)
    planned += store_codes(onnx_model.graph, {name: layers[name] for name in integer})
    name_rounded(onnx_model.graph)
    onnx_model.producer_name = "svd2onnx"
    onnx_model.producer_version = version("svd2onnx")
    onnx_model.metadata_props.update(metadata or {})
    onnx_model.metadata_props[VERSION_KEY] = version("svd2onnx")
    list_matmuls(onnx_model, planned)
    drop_inferable(onnx_model)
    save(onnx_model, Path(path))
    return planned


def list_matmuls(model: ir.Model, matmuls: Sequence[QuantizedNode]) -> None:
    """Note in the file's metadata which MatMuls are quantized, for ``svd2onnx_runtime.certify``."""
    plan_again(model, [matmul.to_json() for matmul in matmuls])


def opset_for(layers: Mapping[str, CompressedLayer]) -> int:
    """The lowest opset that has the integer types of ``layers``."""
    bits = {spec.bits for layer in layers.values() for spec in layer.form.specs}
    return OPSET_INT2 if 2 in bits else OPSET


def _to_onnx(traced: Traced, opset: int) -> ir.Model:
    with (
        quiet(_LOGGERS, logging.ERROR),
        any_length(),
        operators_read_once(),
        plain_outputs(traced) as outputs,
    ):
        try:
            program = torch.onnx.export(
                traced.module,
                kwargs=dict(traced.arguments),
                input_names=list(traced.inputs or traced.arguments),
                dynamic_shapes={name: traced.dynamic_shapes.get(name, {}) for name in traced.arguments},
                opset_version=opset,
                custom_translation_table=RECURRENT,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            cause = error.__cause__ or error  # the exporter's own message is general advice
            if isinstance(cause, ExportError):
                raise cause from error
            if any(tensor.is_complex() for tensor in traced.module.buffers()):
                raise ExportError(
                    "torch.onnx cannot export what the network computes with complex numbers: compute with "
                    "their real and imaginary parts, such as the cosine and sine of rotary positions"
                ) from error
            if "grouped_mm" in str(cause):
                raise ExportError(
                    "torch.onnx cannot export how the network groups tokens by expert (grouped_mm): let it "
                    "multiply by batches, in transformers by set_experts_implementation('batched_mm') or "
                    "from_pretrained(..., experts_implementation='batched_mm')"
                ) from error
            raise ExportError(
                f"torch.onnx cannot export the network: {type(cause).__name__}: "
                f"{one_line(cause).rstrip('.')}{_of_spectra(traced.module)}"
            ) from error
        assert program is not None
        if not outputs:  # it was analysed without being run
            with torch.inference_mode():
                traced.module(**traced.arguments)
    model_proto: ir.Model = program.model
    name_outputs(model_proto.graph, outputs)
    _drop_origins(model_proto)
    return model_proto


def _of_spectra(module: nn.Module) -> str:
    """What is likely to hinder the exporter in a network of Fourier transforms."""
    nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    if not any("fft" in str(node.target) for node in nodes):
        return ""
    return (
        ". It transforms to complex numbers, for which torch.onnx knows few operators: compute with their "
        "real and imaginary parts between the transforms"
    )


def _drop_origins(model: ir.Model) -> None:
    """Remove the exporter's stack traces: they cost bytes and tell the paths of whoever made the file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def save(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``, its nodes sorted, with weights of more than 2 GiB in ``weights_file``."""
    model.graph.sort()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    external = None if size <= LARGEST_WEIGHTS else weights_file(path).name
    ir.save(model, path, external_data=external)
    if external is None:
        weights_file(path).unlink(missing_ok=True)  # of a larger graph that was there


def weights_file(path: Path) -> Path:
    """Where the weights of the graph at ``path`` are, if not in it: one file holds at most 2 GiB."""
    return path.with_name(f"{path.name}.data")


def drop_inferable(model: ir.Model) -> None:
    """Remove the types and shapes of all values but inputs and outputs.

    Written out they take more bytes than the nodes, and runtimes infer them anew.
    """
    made = (output for node in model.graph for output in node.outputs)
    for value in (*made, *model.graph.initializers.values()):
        if not (value.is_graph_input() or value.is_graph_output()):
            value.shape = value.type = None
