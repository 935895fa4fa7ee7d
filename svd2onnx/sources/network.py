"""A loaded network and what its source tells of its inputs, before there is data for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from svd2onnx.network.decoder import WithPast
from svd2onnx.sources.images import Preprocessing
from svd2onnx.sources.inputs import InputSpec
from svd2onnx.sources.model_file import Batch


@dataclass(frozen=True)
class Network:
    """``specs`` is None where only data or ``--input-shape`` can tell what the network takes.

    ``tokenize`` turns texts into a batch, where a tokenizer lies with the network; ``preprocessing`` is that
    of its images; ``with_past`` makes of a causal language model what generates; ``outputs`` are
    names that a model file gives.
    """

    path: Path
    model: nn.Module
    specs: tuple[InputSpec, ...] | None
    objective: str = "mse"
    tokenize: Callable[[Sequence[str]], Batch] | None = None
    preprocessing: Preprocessing | None = None
    with_past: Callable[[nn.Module], WithPast] | None = None
    outputs: tuple[str, ...] = ()
