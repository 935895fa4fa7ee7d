"""The outputs of an exported graph are called as the network's structure calls them.

The exporter makes up names, which change with the layers before them, and takes no dataclasses or numbers.
So it is given plain tensors, and their names are put into the graph afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from svd2onnx.network.decoder import Traced
from svd2onnx.network.outputs import expected_tensors, names_of, unused
from svd2onnx.values.errors import ExportError


@contextlib.contextmanager
def plain_outputs(traced: Traced) -> Iterator[list[str]]:
    """Let the module of ``traced`` give a tuple of tensors; their names are in the list once it ran.

    The exporter runs it as a rule, but not where it has to analyse Python's bytecode.

    Raises:
        ExportError: it gives no tensor, or as many as ``traced.outputs`` does not name.
    """
    names: list[str] = []
    inputs = list(traced.inputs or traced.arguments)

    def flatten(_module: nn.Module, _arguments: Any, result: Any) -> tuple[Tensor, ...]:
        tensors = expected_tensors(result)
        _refuse(tensors)
        names[:] = _checked(traced.outputs, len(tensors), inputs) or names_of(result, inputs)
        return tuple(tensors)

    handle = traced.module.register_forward_hook(flatten)
    try:
        yield names
    finally:
        handle.remove()


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Call the outputs of ``graph`` ``names``; whatever else has one of these gets another.

    Raises:
        ExportError: there are more outputs or fewer, or the exporter left out one of them.
    """
    if len(graph.outputs) != len(names) or len({id(value) for value in graph.outputs}) != len(names):
        raise ExportError(
            f"torch.onnx made {len(graph.outputs)} outputs of the network's {len(names)} "
            f"({', '.join(names)}): let forward give each tensor once, and none of its inputs"
        )
    made = [value for node in graph.all_nodes() for value in node.outputs]
    known = {str(value.name) for value in (*graph.inputs, *graph.initializers.values(), *made)} | set(names)
    for value in (*made, *graph.initializers.values()):
        if value.name in names and not value.is_graph_output():
            value.name = unused(str(value.name), known)
            known.add(value.name)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _refuse(tensors: Sequence[Tensor]) -> None:
    """What no file could give, or be compared by."""
    if not tensors[0].ndim:
        raise ExportError(
            "the network's first output is one number, and files are judged by it sample by sample: expected "
            "a row for each sample; let forward give such a tensor first"
        )
    for tensor in tensors:
        if tensor.is_complex() or tensor.dtype == torch.bfloat16:
            instead = "torch.view_as_real(...)" if tensor.is_complex() else ".float()"
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ExportError(
                f"an output of the network is {kind}, which numpy or ONNX lacks: let forward give it as "
                f"{instead}"
            )


def _checked(outputs: Sequence[str], count: int, inputs: Sequence[str]) -> Sequence[str]:
    """``outputs``, which the source gave, if any."""
    if outputs and len(outputs) != count:
        raise ExportError(
            f"outputs names {len(outputs)} tensors ({', '.join(outputs)}), and the network gives {count}: "
            "name each of them, in order"
        )
    for name in outputs:
        if name in inputs:
            raise ExportError(f"outputs names {name!r}, which is an input's name: choose another")
    return outputs
