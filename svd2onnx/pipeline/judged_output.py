"""Which output of a network is judged: its name is looked up in the float32 graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.values.errors import PlanError
from svd2onnx.values.objective import parse_objective
from svd2onnx_runtime import InputsError
from svd2onnx_runtime.outputs import place_of
from svd2onnx_runtime.past import PRESENT


def with_judged_output(prepared: Prepared, float32: Path) -> Prepared:
    """``prepared``, with the place of the output that its objective names, if it names one.

    Raises:
        PlanError: the network has no such output, or it is not of floating-point numbers.
    """
    output = parse_objective(prepared.source.objective).output
    if output is None:
        return prepared
    outputs = {own.name: own for own in onnx.load(float32, load_external_data=False).graph.output}
    names = [name for name in outputs if not name.startswith(PRESENT)]
    try:
        place = place_of(output, names)
    except InputsError as error:
        raise PlanError(f"{prepared.source.name}: {error}") from error
    if outputs[output].type.tensor_type.elem_type not in _FLOATS:
        raise PlanError(
            f"{prepared.source.name}: the objective is of output {output!r}, which holds integers or "
            "booleans: name one of floating-point numbers"
        )
    return replace(prepared, judged=place)


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
