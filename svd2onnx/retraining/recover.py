"""Brief retraining: distil the compressed network to the float one, end to end, on unlabelled data.

    minimise over codes, scales, biases and norms   E_x error(f(x), f~(x))

with f the float network, f~ the compressed one as it will be stored (see ``straight_through``), and the
error that of the objective (see ``teacher``). Adam, a linear warm-up and a cosine decay to 0; a sixth of the
batches is held out to choose the state that is kept.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); quantization-aware
distillation as in Polino et al. (arXiv 1802.05668); Adam: Kingma and Ba (arXiv 1412.6980).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from svd2onnx.compute.device import CPU, on, placed
from svd2onnx.compute.progress import Track, silent
from svd2onnx.retraining.student import Student
from svd2onnx.retraining.teacher import Teacher
from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import PlanError, SourceError
from svd2onnx.values.schema import CompressedLayer, LayerSite


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates: of latent codes in units of a code, of steps relative to each, of floats.

    Those of codes and steps are for 2 bits; finer codes start closer to the float network and take a share
    of them (``_SHARES``): at 4.25 bits the rates of 2 bits made MiniLM worse, and a quarter of them better.
    All are for at most ``_BRIEF`` steps, and longer runs take smaller ones. MiniLM at 2.0 bits went from
    0.132 to 0.098 in 150 steps at these rates and to 0.090 in 400 at half of them; at twice these rates it
    got worse, and so many steps at the full rates ended at 0.112.
    """

    codes: float = 0.02
    steps: float = 0.005
    floats: float = 5e-4


_SHARES = {2: 1.0, 4: 0.25, 8: 0.0625}
_BRIEF = 150
_BETAS = (0.9, 0.99)
_WARM_UP = 0.1
_MOST_HELD_OUT = 12
_PATIENCE = 3
_WORSE = 1.05


@dataclass(frozen=True)
class Recovered:
    """What retraining made: ``rewrite(model, sites, layers)`` is the network.

    ``model`` is a copy of the float network with trained biases and norms. ``before`` and ``after`` are mean
    errors on batches that were not trained on; where nothing helped, all is as it was and they are equal.
    """

    model: nn.Module
    layers: dict[str, CompressedLayer]
    before: float
    after: float
    steps_run: int


def recover(
    model: nn.Module,
    sites: Sequence[LayerSite],
    layers: Mapping[str, CompressedLayer],
    batches: Sequence[Batch],
    objective: str,
    steps: int,
    *,
    place: int | None = None,
    seed: int = 0,
    rates: Rates | None = None,
    track: Track = silent,
    device: torch.device = CPU,
) -> Recovered:
    """Retrain ``layers`` for at most ``steps`` steps of one batch each.

    Codes stay in range and scales on their grids, so that the stored bytes do not change. The state that
    was best on held-out batches is kept, and training stops early when three checks in turn are clearly
    worse than the best one. To stand still is no reason: errors fall again when the rates do.

    Args:
        model: the float network, which stays as it is.
        sites: all sites of ``model``.
        layers: the compressed layers by site name.
        batches: two at least; one in six (at most 12) is held out.
        objective: "cosine", "kl" or "mse".
        steps: 0 or more.
        place: of the output that the objective judges; None for the first of floating-point numbers.
        seed: of the order of the batches.
        rates: learning rates.
        track: shows progress.
        device: where the training is done.

    Raises:
        PlanError: ``steps`` is negative.
        SourceError: there are fewer than two batches.
    """
    if steps < 0:
        raise PlanError(f"the steps of recovery must be 0 or more, not {steps}")
    if len(batches) < 2:
        raise SourceError(f"recovery needs 2 batches at least, one to hold out, and found {len(batches)}")
    training, held_out = _split(batches)
    (network,) = placed(device, model)
    student = Student(network, sites, on(device, dict(layers)))
    teacher = Teacher(network, objective, batches[0], place)
    before = best = teacher.error_of(student.network, held_out)
    worse, kept, step = 0, None, 0
    optimizer, schedule = _optimizer(student, rates or Rates(), steps)
    for step, batch in enumerate(track(_shuffled(training, steps, seed), "Retraining", steps), start=1):
        teacher.backward(student.network, batch)
        student.pull()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        student.push()
        if step % max(20, steps // 10) == 0 or step == steps:
            error = teacher.error_of(student.network, held_out)
            worse = worse + 1 if error > _WORSE * best else 0
            if error < best:
                best, kept = error, student.snapshot()
            if worse == _PATIENCE:
                break
    if kept is None:
        return Recovered(copy.deepcopy(model), dict(layers), before, before, step)
    return Recovered(kept.model_of(model), on(CPU, dict(kept.layers)), before, best, step)


def _optimizer(
    student: Student, rates: Rates, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    groups: list[dict[str, Any]] = [{"params": student.floats, "lr": rates.floats}]
    for bits, share in _SHARES.items():
        tensors = [tensor for tensor in student.tensors if tensor.spec.bits == bits]
        groups.append({"params": [tensor.codes for tensor in tensors], "lr": share * rates.codes})
        groups.append({"params": [tensor.ratios for tensor in tensors], "lr": share * rates.steps})
    groups = [group for group in groups if group["params"]]
    # Gradients here are as small as 1e-8, the usual eps.
    optimizer = torch.optim.Adam(groups, betas=_BETAS, eps=1e-15, fused=True)
    warm_up = max(1, round(steps * _WARM_UP))
    peak = math.pow(min(1.0, _BRIEF / max(1, steps)), 0.75)

    def factor(step: int) -> float:
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to train on, and to hold out: evenly spread, because neighbours are often alike."""
    count = min(max(1, len(batches) // 6), _MOST_HELD_OUT)
    chosen = {(2 * i + 1) * len(batches) // (2 * count) for i in range(count)}
    training = [batch for i, batch in enumerate(batches) if i not in chosen]
    return training, [batches[i] for i in sorted(chosen)]


def _shuffled(batches: Sequence[Batch], steps: int, seed: int) -> Iterator[Batch]:
    """``steps`` batches: all of them in a random order, then again in another one."""
    order: list[int] = []
    generator = random.Random(seed)
    for _ in range(steps):
        if not order:
            order = generator.sample(range(len(batches)), len(batches))
        yield batches[order.pop()]
