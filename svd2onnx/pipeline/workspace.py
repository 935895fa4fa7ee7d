"""What the acts of a run share beside the network: where they write, what they measure by, and a memo."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from svd2onnx.compression.lowrank import Decompose, factorize
from svd2onnx.compute.device import signature_of
from svd2onnx.memo.cache import Cache
from svd2onnx.memo.disk_memo import DiskMemo, disk_memo
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx_runtime import graph_bytes


@dataclass(frozen=True)
class Workspace:
    """One run's.

    Attributes:
        graph: where the compressed graph is drafted.
        float32: the float32 graph that it is measured against.
        memo: remembers what an earlier run has done.
        decompose: the singular value decomposition of the article's pairs.
    """

    graph: Path
    float32: Path
    memo: DiskMemo = field(default_factory=DiskMemo)
    decompose: Decompose = factorize

    @cached_property
    def float_bytes(self) -> int:
        """Bytes of the float32 graph with its weights."""
        return graph_bytes(self.float32)


def memo_of_run(cache: Cache, prepared: Prepared, float32: Path) -> DiskMemo:
    """For all that depends on the network, whose float32 graph is ``float32``, and on its batches."""
    settings = prepared.settings
    mode = (prepared.gradients_of, prepared.judged) if settings.calibration_samples else "no data"
    asked = settings.resume or settings.cache is not None
    # Written for an interruption that may not come, the statistics of a large network cost too much.
    remembers = cache if asked or not prepared.is_large else None
    devices = signature_of(prepared.device), signature_of(prepared.passes)  # sums round by them
    about = devices, list(prepared.sites), settings.seed, mode, prepared.fit, prepared.judging
    return disk_memo(remembers, prepared.model, float32, *about)
