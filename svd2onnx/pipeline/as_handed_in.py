"""Is it still the network that the user handed in? Asked before anything is calibrated.

Nothing that svd2onnx makes of a network can be right if this is not: it was traced, its layers were found,
normalization was folded, and the exporter has followed it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from svd2onnx.network.layers import weight_of
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.strict_check import (
    TOLERANCE,
    check_model,
    comparable,
    error_of_file,
    outputs_of,
    worst_error,
)
from svd2onnx.sources.model_file import Batch, arguments_of, as_arrays
from svd2onnx.tracing.operators import bound, operator_of
from svd2onnx.values.choices import BLOCK_SIZES
from svd2onnx.values.errors import VerificationError, one_line
from svd2onnx.values.schema import CompressedLayer, LayerSite, QuantizedTensor, QuantSpec
from svd2onnx_runtime import open_session

_REPLACED = "when its layers are replaced by others of the same weights: please report the network"


def check_as_handed_in(prepared: Prepared, float32: Path) -> None:
    """Compare the float32 graph, and the network with its layers replaced, with what the user handed in.

    The network is loaded anew and left untouched; batches have other sizes than the example. Layers are
    replaced by ones with the same weights, so what differs then is what a replacement loses, such as a bias
    or a stride. Large networks do without this, for its memory.

    Raises:
        VerificationError: an output differs by more than TOLERANCE, or from one call to the next.
        ExportError: batches of evaluation have sizes that the graph does not take.
    """
    check_model(float32)
    for batch in prepared.evaluation:
        prepared.traced_source.check_sizes(batch)
    session = open_session(float32, "cpu", strict=True)
    untouched = prepared.load_again()
    replaced = None if prepared.is_large else _with_same_weights(prepared)
    for batch in prepared.few_rows:
        arguments, feed = arguments_of(untouched, batch), as_arrays(batch)
        expected, again = (outputs_of(untouched, arguments) for _ in range(2))
        if worst_error(again, expected) > TOLERANCE:
            raise VerificationError(
                "the network gives other outputs for the same inputs when it is called again: its forward "
                "is random or keeps a state, and an ONNX file does neither; let forward depend on its inputs "
                "and weights alone"
            )
        worst = error_of_file(float32, session, *comparable(session, feed, expected))
        if worst > TOLERANCE:
            raise VerificationError(
                f"the float32 graph differs from the network that was handed in by {worst:.1e} relative to "
                f"its output, and at most {TOLERANCE:.0e} is rounding: nothing was written. "
                f"{_likely_cause(prepared.traced_source.model)}"
            )
        if replaced is not None:
            _check_replaced(replaced, arguments, expected)


def _likely_cause(model: fx.GraphModule) -> str:
    """Of a float32 graph that is not the network."""
    drawn = next((operator_of(node) for node in model.graph.nodes if _is_random(node)), None)
    if drawn is not None:
        return (
            f"Its forward draws random numbers ({drawn}), and an ONNX file draws others, whatever the seed: "
            "draw them once, in __init__, and keep them by register_buffer, or make them an input of forward"
        )
    return (
        "Most likely forward decides something in Python, by the values or sizes of its first inputs, or the "
        "network differs each time it is loaded; if neither is so, please report it"
    )


def _is_random(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    is_seeded = torch.Tag.nondeterministic_seeded in node.target.tags
    return is_seeded and bound(node).get("dropout_p") != 0  # as of attention


def _check_replaced(replaced: nn.Module, arguments: Batch, expected: list[np.ndarray]) -> None:
    try:
        worst = worst_error(outputs_of(replaced, arguments), expected)
    except Exception as error:
        raise VerificationError(f"the network fails ({one_line(error)}) {_REPLACED}") from error
    if worst > TOLERANCE:
        raise VerificationError(f"the network's output changes, by {worst:.1e} of its size, {_REPLACED}")


def _with_same_weights(prepared: Prepared) -> nn.Module:
    """The network with every layer that can be replaced, by one of the same weight."""
    sites = [site for site in prepared.sites if site.skip_reason is None]
    layers = {site.name: _uncompressed(weight_of(prepared.model, site), site) for site in sites}
    return rewrite(prepared.model, sites, layers)


@dataclass(frozen=True)
class _Float(QuantizedTensor):
    """A weight as it is, in the place of its codes."""

    def dequantize(self) -> Tensor:
        return self.codes


def _uncompressed(weight: Tensor, site: LayerSite) -> CompressedLayer:
    rows, columns = weight.shape
    whole = _Float(weight, weight.new_ones(rows, 1), QuantSpec(8, BLOCK_SIZES[0]))
    return CompressedLayer((rows, columns), whole, kind=site.kind)
