"""How far a compressed network is from the float one, measured in PyTorch on batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from svd2onnx.calibration.probes import batch_errors
from svd2onnx.compute.progress import Track, silent
from svd2onnx.network.outputs import tensors_of
from svd2onnx.sources.model_file import Batch, arguments_of


def first_output(model: nn.Module, batch: Batch) -> Tensor:
    """The tensor that an objective compares: the network's first."""
    return tensors_of(model(**arguments_of(model, batch)))[0]


def error_count(model: nn.Module, batch: Batch, objective: str) -> int:
    """How many errors there are on ``batch``: one for each row, or for each token."""
    with torch.inference_mode():
        output = first_output(model, batch)
        return len(batch_errors(objective, output, output, batch))


def mean_error(original: nn.Module, compressed: nn.Module, batches: Iterable[Batch], objective: str) -> float:
    """The mean error over all samples of ``batches``, in the units of the objective."""
    errors = []
    with torch.inference_mode():
        for batch in batches:
            reference, output = (first_output(model, batch) for model in (original, compressed))
            errors.append(batch_errors(objective, reference, output, batch).double())
    return float(torch.cat(errors).mean())


def drop_errors(
    model: nn.Module, means: Mapping[str, Tensor], batch: Batch, objective: str, track: Track = silent
) -> dict[str, float]:
    """The mean error with one Linear's outputs constant, as they are at its mean input, by module name.

    ``means`` holds those inputs, [in] each. A few rows of ``batch`` tell it well enough.
    """
    errors = {}
    with torch.inference_mode():
        reference = first_output(model, batch)
        for name, mean in track(list(means.items()), "Dropping layers", len(means)):
            module = model.get_submodule(name)

            def constant(layer: nn.Module, _args: object, output: Tensor, mean: Tensor = mean) -> Tensor:
                value: Tensor = layer.forward(mean.to(output.device, output.dtype))
                return value.expand_as(output).clone()  # what follows may change it in place

            handle = module.register_forward_hook(constant)
            try:
                output = first_output(model, batch)
            finally:
                handle.remove()
            errors[name] = float(batch_errors(objective, reference, output, batch).mean())
    return errors
