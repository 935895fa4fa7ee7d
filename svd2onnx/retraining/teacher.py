"""How far a network's judged output is from the float network's, and the gradient of that.

    cosine   1 - cos(f, f~)                       of each row of the last axis
    kl       KL(softmax f || softmax f~)          of each token, padding left out
    mse      |f~ - f|^2 / |f|^2                   of each sample

Rows of a batch go one piece after the other where the output is large, and the loss in chunks of its rows, so
that logits over a vocabulary take little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from svd2onnx.calibration.network_error import judged_output
from svd2onnx.calibration.probes import batch_errors
from svd2onnx.sources.model_file import Batch, arguments_of

_ELEMENTS = 1 << 23
"""Elements of the network's output at a time."""
_CACHED = 1 << 26
"""Elements of the float network's outputs that are kept."""


class Teacher:
    """The float network, and the distance of another one to it."""

    def __init__(self, model: nn.Module, objective: str, example: Batch, place: int | None = None) -> None:
        self.model, self.objective, self.place = model, objective, place
        row = next(_rows(arguments_of(model, example), 1))
        with torch.no_grad():
            output = judged_output(model, row, self.place)
        # Only where the first axis of the output has the rows can a batch go in pieces.
        self.rows = max(1, _ELEMENTS // output.numel()) if output.shape[:1] == (1,) else None
        self.cache: dict[int, list[Tensor]] = {}
        self.store = _CACHED

    def backward(self, network: nn.Module, batch: Batch) -> None:
        """Add the gradient of the batch's mean error to that of the parameters of ``network``."""
        pieces = list(_rows(arguments_of(self.model, batch), self.rows))
        rows = [_row_count(piece) for piece in pieces]
        for piece, count, wanted in zip(pieces, rows, self._wanted(batch, pieces), strict=True):
            device = next(iter(piece.values())).device.type
            with torch.autocast(device, torch.bfloat16, enabled=_has_bfloat16(device)):
                output = judged_output(network, piece, self.place)
            gradient = error_gradient(self.objective, wanted, output.detach().float(), piece)
            torch.autograd.backward(output, gradient.mul_(count / sum(rows)).to(output.dtype))

    @torch.no_grad()
    def error_of(self, network: nn.Module, batches: Sequence[Batch]) -> float:
        """The mean error of ``network`` over ``batches``, in float32."""
        errors = []
        for batch in batches:
            pieces = list(_rows(arguments_of(self.model, batch), self.rows))
            for piece, wanted in zip(pieces, self._wanted(batch, pieces), strict=True):
                output = judged_output(network, piece, self.place)
                errors.append(batch_errors(self.objective, wanted, output, piece).double())
        return float(torch.cat(errors).mean())

    def _wanted(self, batch: Batch, pieces: Sequence[Batch]) -> Iterator[Tensor]:
        """The float network's output for each piece of ``batch``."""
        known = self.cache.get(id(batch))
        if known is not None:
            yield from known
            return
        made = []
        for piece in pieces:
            with torch.no_grad():
                wanted = judged_output(self.model, piece, self.place)
            self.store -= wanted.numel()
            if self.store > 0:
                made.append(wanted)
            yield wanted
        if len(made) == len(pieces):
            self.cache[id(batch)] = made


def error_gradient(objective: str, reference: Tensor, output: Tensor, batch: Batch) -> Tensor:
    """The gradient of the mean error at ``output``, float32 of its shape, made in chunks.

    Args:
        objective: "cosine" (rows of the last axis), "kl" (logits on the last axis) or "mse" (first axis).
        reference: the float network's output.
        output: of the same shape.
        batch: its "attention_mask" tells the tokens that count for "kl".
    """
    width = reference[0].numel() if objective == "mse" else reference.shape[-1]
    references, outputs = reference.reshape(-1, width), output.reshape(-1, width)
    weights = references.new_ones(len(references))
    mask = batch.get("attention_mask")
    if objective == "kl" and mask is not None and mask.shape == reference.shape[:-1]:
        weights = mask.reshape(-1).float().to(weights.device)
    weights = weights / weights.sum().clamp_min(1.0)
    gradient = torch.empty_like(outputs)
    step = max(1, (_ELEMENTS // 4) // width)
    for start in range(0, len(outputs), step):
        rows = slice(start, start + step)
        leaf = outputs[rows].requires_grad_()
        with torch.enable_grad():
            errors = batch_errors(objective, references[rows], leaf, {})
            (gradient[rows],) = torch.autograd.grad((errors * weights[rows]).sum(), leaf)
    return gradient.reshape(output.shape)


def _row_count(arguments: Batch) -> int:
    return next(tensor.shape[0] for tensor in arguments.values() if tensor.ndim)


def _rows(arguments: Batch, count: int | None) -> Iterator[Batch]:
    """``arguments`` in pieces of at most ``count`` rows; whole where that is None."""
    total = _row_count(arguments)
    for start in range(0, total, count or total):
        rows = slice(start, start + (count or total))
        yield {n: t[rows] if t.ndim and t.shape[0] == total else t for n, t in arguments.items()}


def _has_bfloat16(device: str) -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; the exactness of training suffices."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
