"""What a network takes, as far as its source tells, and random inputs that fit.

``--input-shape`` says it for sources that do not: ``1,3,224,224``, ``NAME=1,3,224,224``, and ``:int64``
behind either where numbers of another type are meant.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import SourceError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
BOXES = "bbox"
"""Where each token lies on a page: [batch, sequence, 4], as x0, y0, x1, y1."""
ROWS = 8
"""Of a random batch, where the network takes any number."""
_MOST_ELEMENTS = 1 << 28
_FORM = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d{1,9}(?:,\d{1,9})*)(?::(\w+))?")


@dataclass(frozen=True)
class InputSpec:
    """One argument of a network: sizes, of which ``dynamic`` names those that may differ, by axis.

    Integers are drawn below ``limit``; an ``attention_mask`` is all ones, and corners of a ``bbox`` are in
    order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    dynamic: Mapping[int, str] | None = None
    limit: int = 2

    def random(self, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensor:
        """Numbers of this shape, with dynamic axes of the ``sizes`` that are given by name."""
        names = self.dynamic or {}
        shape = [sizes.get(names.get(axis, ""), size) for axis, size in enumerate(self.shape)]
        if self.name.endswith("attention_mask"):
            return torch.ones(shape, dtype=self.dtype)
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(self.dtype)
        drawn = torch.randint(0, self.limit, shape, generator=generator).to(self.dtype)
        if self.name == BOXES:
            return drawn.view(*shape[:-1], 2, 2).sort(-2).values.flatten(-2)
        return drawn


def random_batch(specs: Sequence[InputSpec], seed: int, sizes: Mapping[str, int] | None = None) -> Batch:
    """One random batch, always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: spec.random(generator, sizes or {}) for spec in specs}


def rows_of(specs: Sequence[InputSpec], wanted: int) -> int:
    """How many rows a batch may have: ``wanted``, or as many as the network's first input has for ever."""
    first = specs[0]
    return wanted if not first.shape or (first.dynamic is not None and 0 in first.dynamic) else first.shape[0]


def parse_shapes(texts: Sequence[str], model: nn.Module, path: Path) -> tuple[InputSpec, ...]:
    """The values of ``--input-shape``, for the arguments of ``model``.

    Raises:
        SourceError: a text is no shape, or names no argument, or arguments are left without one.
    """
    taken = required_arguments(model)
    specs: dict[str, InputSpec] = {}
    for text in texts:
        match = _FORM.fullmatch(text.strip())
        if match is None or (match[3] or "float32") not in DTYPES:
            raise SourceError(
                f"--input-shape {text!r} is none; expected NAME=1,3,224,224 or 1,3,224,224, and :int64 "
                f"behind it for another type, of {', '.join(DTYPES)}"
            )
        name = match[1] or next((name for name in taken if name not in specs), "")
        shape = tuple(map(int, match[2].split(",")))
        if not 0 < math.prod(shape) <= _MOST_ELEMENTS:
            raise SourceError(
                f"--input-shape {text!r} has {math.prod(shape)} elements; expected 1 to {_MOST_ELEMENTS}"
            )
        dtype = DTYPES[match[3] or "float32"]
        specs[name] = InputSpec(name, (ROWS, *shape[1:]), dtype, {0: "batch"}, least_table(model))
    known = set(inspect.signature(model.forward).parameters)
    if set(taken) - set(specs) or set(specs) - known:
        raise SourceError(
            f"--input-shape was given for {list(specs)}, and the forward of {path} takes {taken}: "
            "give one NAME=SHAPE for each of them"
        )
    return tuple(specs.values())


def required_arguments(model: nn.Module) -> list[str]:
    """The arguments of forward that have no default."""
    return [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def least_table(model: nn.Module) -> int:
    """Rows of the smallest nn.Embedding: integers below it are in range whichever table they go to."""
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return min(tables, default=2)


def like(specs: Sequence[InputSpec], batch: Batch) -> tuple[InputSpec, ...]:
    """``specs`` with the types and sizes of data in the axes that may differ."""
    return tuple(
        replace(spec, shape=tuple(batch[spec.name].shape)) if spec.name in batch else spec for spec in specs
    )
