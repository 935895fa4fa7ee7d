"""How far a compressed network is from the float one, measured in PyTorch on batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from svd2onnx.calibration.probes import batch_errors
from svd2onnx.compute.progress import Track, silent
from svd2onnx.network.outputs import tensors_of
from svd2onnx.sources.model_file import Batch, arguments_of
from svd2onnx_runtime.outputs import first_float


def judged_output(model: nn.Module, batch: Batch, place: int | None = None) -> Tensor:
    """The tensor that an objective compares: that at ``place``, or the first of floating-point numbers."""
    tensors = tensors_of(model(**arguments_of(model, batch)))
    if place is None:
        place = first_float([tensor.is_floating_point() for tensor in tensors])
    return tensors[place]


def error_count(model: nn.Module, batch: Batch, objective: str, place: int | None = None) -> int:
    """How many errors there are on ``batch``: one for each row, or for each token."""
    with torch.inference_mode():
        output = judged_output(model, batch, place)
        return len(batch_errors(objective, output, output, batch))


def mean_error(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    objective: str,
    place: int | None = None,
) -> float:
    """The mean error over all samples of ``batches``, in the units of the objective.

    It is of the output at ``place``, see ``judged_output``.
    """
    errors = []
    with torch.inference_mode():
        for batch in batches:
            reference, output = (judged_output(model, batch, place) for model in (original, compressed))
            errors.append(batch_errors(objective, reference, output, batch).double())
    return float(torch.cat(errors).mean())


def drop_errors(
    model: nn.Module,
    means: Mapping[str, Tensor],
    batch: Batch,
    objective: str,
    *,
    place: int | None = None,
    track: Track = silent,
) -> dict[str, float]:
    """The mean error with one Linear's outputs constant, as they are at its mean input, by module name.

    ``means`` holds those inputs, [in] each. A few rows of ``batch`` tell it well enough.
    """
    errors = {}
    with torch.inference_mode():
        reference = judged_output(model, batch, place)
        for name, mean in track(list(means.items()), "Dropping layers", len(means)):
            module = model.get_submodule(name)

            def constant(layer: nn.Module, _args: object, output: Tensor, mean: Tensor = mean) -> Tensor:
                value: Tensor = layer.forward(mean.to(output.device, output.dtype))
                return value.expand_as(output).clone()  # what follows may change it in place

            handle = module.register_forward_hook(constant)
            try:
                output = judged_output(model, batch, place)
            finally:
                handle.remove()
            errors[name] = float(batch_errors(objective, reference, output, batch).mean())
    return errors
