"""Does a file with rounded values compute what the network computes, code by code?

Sums of floats differ in their last bits between PyTorch and onnxruntime, and where a value lies halfway
between two codes, that decides which it gets. Through layer after layer such differences grow until they are
as large as the rounding itself, so outputs alone cannot tell. Hence each rounded value is compared given the
same inputs: the file shows its codes, the network's must be the same but where a value lies halfway, and the
network goes on with the file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor, nn

from svd2onnx.graph.export import save
from svd2onnx.graph.int8_convolution import ROUNDED
from svd2onnx.network.int8 import RoundedActivation
from svd2onnx.values.activation_range import STEPS
from svd2onnx.values.errors import VerificationError

HALFWAY = 0.01
"""How far from halfway between two codes, in steps, a value may lie whose code differs."""
_MOST = 1e-3
"""The largest share of codes that may differ."""
_REPORT = "the file was not written; please report the network"


class CodeCheck:
    """Compares the codes of one network with those of its file, call after call."""

    def __init__(self, network: nn.Module) -> None:
        self._rounded = [module for module in network.modules() if isinstance(module, RoundedActivation)]
        self._codes: list[np.ndarray] = []
        self._place = 0
        self.differing = 0
        """Codes that are another one in PyTorch, for the value lies halfway."""
        self.count = 0

    @contextmanager
    def following(self, codes: Sequence[np.ndarray]) -> Iterator[None]:
        """While it lasts, the network goes on with ``codes``, one array for each time that it rounds.

        Raises:
            VerificationError: a code differs whose value does not lie halfway, or too many do.
        """
        self._codes, self._place = list(codes), 0
        handles = [module.register_forward_hook(self._compare) for module in self._rounded]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._place != len(codes):
            raise VerificationError(
                f"the exported graph rounds {len(codes)} values and the network {self._place}: {_REPORT}"
            )
        if self.differing > _MOST * self.count:
            raise VerificationError(
                f"{self.differing} of {self.count} codes of the exported graph differ from the network's, "
                f"and at most {_MOST:g} of them may: {_REPORT}"
            )

    def _compare(self, module: RoundedActivation, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        if self._place >= len(self._codes):
            raise VerificationError(f"the network rounds more values than the exported graph: {_REPORT}")
        theirs = torch.from_numpy(self._codes[self._place])
        self._place += 1
        x, zero = args[0], module.zero.float()
        if theirs.shape != x.shape:
            raise VerificationError(
                f"the exported graph rounds a value of shape {tuple(theirs.shape)} where the network has "
                f"{tuple(x.shape)}: {_REPORT}"
            )
        codes = theirs.float()
        wanted = (x / module.scale + zero).clamp(0, STEPS)
        distance = (codes - wanted).abs()
        worst = float(distance.max()) if distance.numel() else 0.0
        if worst > 0.5 + HALFWAY:
            raise VerificationError(
                f"a code of the exported graph is {worst:.2f} steps from the network's value, and rounding "
                f"explains 0.5: {_REPORT}"
            )
        self.differing += int((codes != wanted.round()).sum())
        self.count += codes.numel()
        return (codes - zero) * module.scale


def codes_of(model: ir.Model) -> list[str]:
    """The names of the rounded values of a graph, in the order in which its network rounds them."""
    names = (str(value.name) for node in model.graph for value in node.outputs)
    return sorted(
        (name for name in names if name.startswith(ROUNDED)), key=lambda own: int(own[len(ROUNDED) :])
    )


def showing_codes(path: Path) -> tuple[Path, list[str]]:
    """A graph beside that at ``path`` whose outputs are its rounded values besides, and their names.

    It is that at ``path`` itself where there are none.
    """
    model = ir.load(path)
    names = codes_of(model)
    if not names:
        return path, []
    ShapeInferencePass()(model)  # outputs need shapes
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    shown = path.with_name("codes.onnx")
    save(model, shown)
    return shown, names
