"""A network with its data, whatever kind of file it came from: what the rest of svd2onnx works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from svd2onnx.network.decoder import WithPast
from svd2onnx.sources.model_file import Batch, DynamicShapes, ModelFile


@dataclass(frozen=True)
class Source:
    """See ``svd2onnx.sources.model_file`` for what the parts mean: they are those of a model file.

    ``calibrated`` tells whether the split "calibration" is data, and not random numbers that merely fit;
    ``warnings`` are for the report; ``name`` is what that and messages call it.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[str], Iterator[Batch]]
    objective: str = "mse"
    metric: Callable[..., Any] | None = None
    summary: Callable[..., dict[str, float]] | None = None
    dynamic_shapes: DynamicShapes | None = None
    calibrated: bool = True
    warnings: tuple[str, ...] = ()
    with_past: Callable[[nn.Module], WithPast] | None = None
    name: str = "the network"
    outputs: tuple[str, ...] = ()

    @classmethod
    def of_model_file(cls, file: ModelFile) -> Source:
        """The same parts."""
        return cls(
            file.build,
            file.inputs,
            file.objective,
            file.metric,
            file.summary,
            file.dynamic_shapes,
            with_past=file.with_past,
            outputs=file.outputs,
        )
