"""How far a network's first output is from the float network's, and the gradient of that.

    cosine   1 - cos(f, f~)                       of each row of the last axis
    kl       KL(softmax f || softmax f~)          of each token, padding left out
    mse      |f~ - f|^2 / |f|^2                   of each sample

Rows of a batch go one piece after the other where the output is large, and the loss in chunks of its rows, so
that logits over a vocabulary take little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.loading import Batch, arguments_of, as_arrays
from svd2onnx_runtime import sample_errors, token_mask

_ELEMENTS = 1 << 23
"""Elements of the network's output at a time."""
_CACHED = 1 << 26
"""Elements of the float network's outputs that are kept."""


class Teacher:
    """The float network, and the distance of another one to it."""

    def __init__(self, model: nn.Module, objective: str, example: Batch) -> None:
        self.model, self.objective = model, objective
        row = next(_rows(arguments_of(model, example), 1))
        output = self._output(model, row)
        # Only where the first axis of the output has the rows can a batch go in pieces.
        self.rows = max(1, _ELEMENTS // output.numel()) if output.shape[:1] == (1,) else None
        self.cache: dict[int, list[Tensor]] = {}
        self.room = _CACHED

    def backward(self, network: nn.Module, batch: Batch) -> None:
        """Add the gradient of the batch's mean error to that of the parameters of ``network``."""
        pieces = list(_rows(arguments_of(self.model, batch), self.rows))
        rows = [_row_count(piece) for piece in pieces]
        for piece, count, wanted in zip(pieces, rows, self._wanted(batch, pieces), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16()):
                output = _first(network(**piece))
            mask = _mask(self.objective, wanted, piece)
            gradient = error_gradient(self.objective, wanted, output.detach().float(), mask)
            torch.autograd.backward(output, gradient.mul_(count / sum(rows)).to(output.dtype))

    @torch.no_grad()
    def error_of(self, network: nn.Module, batches: Sequence[Batch]) -> float:
        """The mean error of ``network`` over ``batches``, in float32."""
        errors = []
        for batch in batches:
            pieces = list(_rows(arguments_of(self.model, batch), self.rows))
            for piece, wanted in zip(pieces, self._wanted(batch, pieces), strict=True):
                output = self._output(network, piece).numpy()
                mask = token_mask(self.objective, wanted.numpy(), as_arrays(piece))
                errors.append(sample_errors(self.objective, wanted.numpy(), output, mask))
        return float(np.concatenate(errors).mean())

    def _wanted(self, batch: Batch, pieces: Sequence[Batch]) -> Iterator[Tensor]:
        """The float network's output for each piece of ``batch``."""
        known = self.cache.get(id(batch))
        if known is not None:
            yield from known
            return
        made = []
        for piece in pieces:
            wanted = self._output(self.model, piece)
            self.room -= wanted.numel()
            if self.room > 0:
                made.append(wanted)
            yield wanted
        if len(made) == len(pieces):
            self.cache[id(batch)] = made

    @staticmethod
    @torch.no_grad()
    def _output(network: nn.Module, arguments: Batch) -> Tensor:
        return _first(network(**arguments))


def error_gradient(objective: str, reference: Tensor, output: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient of the mean error at ``output``, in chunks of it.

    Args:
        objective: "cosine" (rows of the last axis), "kl" (logits on the last axis) or "mse" (first axis).
        reference: the float network's output.
        output: of the same shape.
        mask: the rows that count, [reference.shape[:-1]]; None for all.

    Returns:
        Float32 of the same shape.
    """
    width = reference[0].numel() if objective == "mse" else reference.shape[-1]
    references, outputs = reference.reshape(-1, width), output.reshape(-1, width)
    weights = torch.ones(len(references)) if mask is None else mask.reshape(-1).float()
    weights = weights / weights.sum().clamp_min(1.0)
    gradient = torch.empty_like(outputs)
    step = max(1, (_ELEMENTS // 4) // width)
    for start in range(0, len(outputs), step):
        rows = slice(start, start + step)
        leaf = outputs[rows].detach().requires_grad_()
        with torch.enable_grad():
            total = (_ERRORS[objective](references[rows], leaf) * weights[rows]).sum()
        (gradient[rows],) = torch.autograd.grad(total, leaf)
    return gradient.reshape(output.shape)


def _cosine(reference: Tensor, output: Tensor) -> Tensor:
    return 1.0 - functional.cosine_similarity(reference, output, dim=-1, eps=1e-12)


def _kl(reference: Tensor, output: Tensor) -> Tensor:
    """Up to the entropy of the reference, which has no gradient."""
    return -(torch.softmax(reference, -1) * torch.log_softmax(output, -1)).sum(-1)


def _mse(reference: Tensor, output: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return (output - reference).square().sum(-1) / reference.square().sum(-1).clamp_min(tiny)


_ERRORS = {"cosine": _cosine, "kl": _kl, "mse": _mse}


def _first(result: object) -> Tensor:
    """The first tensor of a network's result, as the exporter counts them."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _row_count(arguments: Batch) -> int:
    return next(tensor.shape[0] for tensor in arguments.values() if tensor.ndim)


def _rows(arguments: Batch, count: int | None) -> Iterator[Batch]:
    """``arguments`` in pieces of at most ``count`` rows; whole where that is None."""
    total = _row_count(arguments)
    for start in range(0, total, count or total):
        rows = slice(start, start + (count or total))
        yield {n: t[rows] if t.ndim and t.shape[0] == total else t for n, t in arguments.items()}


def _mask(objective: str, output: Tensor, batch: Batch) -> Tensor | None:
    """As ``svd2onnx_runtime.token_mask``, of tensors."""
    mask = batch.get("attention_mask") if objective == "kl" else None
    return mask if mask is not None and mask.shape == output.shape[:-1] else None


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; the exactness of training suffices."""
    return bool(torch.cpu._is_avx512_bf16_supported())
