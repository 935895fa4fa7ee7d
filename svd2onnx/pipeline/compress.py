"""One call for a network in memory: ``svd2onnx.compress``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.sources.live import LiveBatch, live_source
from svd2onnx.values.settings import AnyPath, Settings


def compress(
    network: nn.Module,
    calibration: Iterable[LiveBatch],
    output: AnyPath,
    *,
    evaluation: Iterable[LiveBatch] | None = None,
    reference: AnyPath | None = None,
    page: AnyPath | None = None,
    **settings: Any,
) -> CompressionReport:
    """Compress ``network`` and write it to ``output`` as verified ONNX, with a report and a plan beside it.

    The network is not changed: a copy on the CPU, in float32 and eval mode, is compressed, whatever mode and
    device the network itself is in. Files that are there are replaced, after the strict check passed.

    A batch is a tensor, a tuple or list of tensors in the order of forward's arguments, or a dict of tensors
    by argument name; samples lie along the first axis. Of a tuple or list, as of a DataLoader's ``[x, y]``,
    what exceeds the arguments that forward requires is a label and is left out. Of a dict, what is no
    argument of forward is left out; leave out yourself labels that forward would take.

    Args:
        network: any module. It is copied; what cannot be, such as a lock, its copy shares.
        calibration: batches like those the network is for. They are read once, in order, until there are
            ``calibration_samples``.
        output: the ONNX file.
        evaluation: batches to measure the fidelity on, read to their end. Without them, every fifth sample
            of what was read of ``calibration`` is held out, and at most 256.
        reference: where to write the float32 ONNX too.
        page: where to write the report as HTML.
        settings: fields of ``Settings``, such as ``target_size="0.15x"`` (what is aimed at without a goal),
            ``min_fidelity=0.99``, ``method="quantize"`` with ``bits=8``, ``objective="cosine"`` (without it
            "mse"), ``recover=50`` or ``seed=1``. Those that say how a file is loaded are refused.

    Raises:
        Svd2OnnxError: a stated failure; nothing is written then.
        TypeError: there is no such setting.
    """
    chosen = Settings(**settings)
    # What the caller's program has switched, and its random numbers, are for its own work.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(gpus):
        torch.manual_seed(chosen.seed)  # a loader that shuffles does so by it
        source = live_source(network, calibration, evaluation, chosen)
        return compress_export(source, output, chosen, reference=reference, page=page)
