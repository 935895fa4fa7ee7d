"""Random probes of the network's error: scalars whose gradients predict what a change of a layer costs.

Let e(y) be what the objective compares and J its Jacobian at a layer's output y. For a small change d of y,

    error ~ 1/2 E (dL/dy . d)^2     for a random probe L:

    objective   error                          probe L
    cosine      1 - cos, per row               sum_rows v . e,  e the unit row,    v ~ N(0, I)
    kl          KL to the original, per token  sum_tokens log p(label),            label ~ softmax(logits)
    mse         |change|^2 / |output|^2        sqrt(2) sum v . output / |output|,  v ~ N(0, I)

because E v v^T = I, and because the covariance of the score, grad log p, is the Fisher matrix, which is the
Hessian of the KL divergence. Rows and tokens are probed independently, so that their cross terms vanish in
expectation and one backward pass serves all.

Masked values, such as -inf (see ``svd2onnx_runtime.masking``), are left out: no layer decides them.

Source: Gauss-Newton and its sampled form, Martens, "New insights and perspectives on the natural gradient
method" (arXiv 1412.1193), sections 8 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from svd2onnx.calibration.masking import unmasked
from svd2onnx.sources.model_file import Batch


def probe(objective: str, output: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    """A probe of ``output``, the one that is judged: (scalar L, number of errors in the batch).

    An output of zeros is not probed: it costs a constant to change it at all. Half the mean of
    (dL/dy . d)^2, summed over the batch and divided by that number, estimates the mean error. A batch's
    ``attention_mask`` leaves tokens out for "kl" if it has the shape of the logits without their last
    axis, as ``svd2onnx_runtime.token_mask`` says. The ``generator`` is one of the CPU, so that draws are the
    same wherever the output lies.
    """
    return _PROBES[objective](output, batch, generator)


def batch_errors(objective: str, reference: Tensor, output: Tensor, batch: Batch) -> Tensor:
    """The errors themselves, [errors], differentiable; see ``svd2onnx_runtime.objectives``."""
    return _ERRORS[objective](reference, output, batch)


def _cosine_probe(output: Tensor, _batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    (output,) = unmasked(output)
    unit = _divided(output, output.norm(dim=-1, keepdim=True))
    return (unit * _normal(unit, generator)).sum(), math.prod(output.shape[:-1])


def _kl_probe(logits: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    logits = _with_distribution(_counted(logits, batch))
    with torch.no_grad():
        labels = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(logits.device)
    return -functional.cross_entropy(logits, labels[:, 0], reduction="sum"), len(logits)


def _mse_probe(output: Tensor, _batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    (output,) = unmasked(output)
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    size = flat.detach().norm(dim=1, keepdim=True)
    return math.sqrt(2) * (_divided(flat, size) * _normal(flat, generator)).sum(), len(flat)


def _cosine_errors(reference: Tensor, output: Tensor, _batch: Batch) -> Tensor:
    reference, output = unmasked(reference, output)
    difference = functional.normalize(output, dim=-1) - functional.normalize(reference, dim=-1)
    errors = difference.square().sum(-1).flatten() / 2
    silent = [(rows == 0).all(dim=-1).flatten() for rows in (reference, output)]
    errors = torch.where(silent[0] | silent[1], torch.ones_like(errors), errors)
    return torch.where(silent[0] & silent[1], torch.zeros_like(errors), errors)


def _kl_errors(reference: Tensor, output: Tensor, batch: Batch) -> Tensor:
    counted = (_counted(logits, batch) for logits in (reference, output))
    log_p, log_q = (_with_distribution(logits).log_softmax(-1) for logits in counted)
    p = log_p.exp()
    # Of classes that are ruled out, infinity less infinity would be no number.
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)


def _mse_errors(reference: Tensor, output: Tensor, _batch: Batch) -> Tensor:
    reference, output = unmasked(reference, output)
    power = reference.reshape(len(reference), -1).square().sum(1)
    error = (output - reference).reshape(len(reference), -1).square().sum(1)
    relative = error / torch.where(power == 0, torch.ones_like(power), power)
    return torch.where((power == 0) & (error > 0), torch.ones_like(relative), relative)


def _counted(logits: Tensor, batch: Batch) -> Tensor:
    """[tokens, classes]: those that the mask keeps."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == logits.shape[:-1]:
        return logits[mask.bool().to(logits.device)]
    return logits.reshape(-1, logits.shape[-1])


def _with_distribution(logits: Tensor) -> Tensor:
    """Logits of 0 in rows that rule out every class, which have no distribution."""
    none = logits.detach().isneginf().all(dim=-1, keepdim=True)
    return logits.masked_fill(none, 0) if bool(none.any()) else logits


def _divided(rows: Tensor, size: Tensor) -> Tensor:
    """``rows`` / ``size``, and constant zeros for rows of size 0, which have no direction."""
    silent = size == 0
    return rows.masked_fill(silent, 0) / size.masked_fill(silent, 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


_PROBES: dict[str, Callable[[Tensor, Batch, torch.Generator], tuple[Tensor, int]]] = {
    "cosine": _cosine_probe,
    "kl": _kl_probe,
    "mse": _mse_probe,
}
_ERRORS: dict[str, Callable[[Tensor, Tensor, Batch], Tensor]] = {
    "cosine": _cosine_errors,
    "kl": _kl_errors,
    "mse": _mse_errors,
}
