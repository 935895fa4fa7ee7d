"""Do a piece of work once: a later run that depends on the same things takes the result from a cache.

Every piece is known by its kind and by the digest of all that it depends on: this package's code, torch,
the processor's instructions and the threads (sums round by them), the network's code and weights, its graph,
the batches, the settings that matter, and the seed. No names of files and no times are among them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from svd2onnx.compression.lowrank import Decompose, Factorization, factorize
from svd2onnx.compute.device import CPU, on
from svd2onnx.compute.environment import digest_of, kernels, own_code
from svd2onnx.memo.cache import Cache
from svd2onnx.memo.records import digest

T = TypeVar("T")


class DiskMemo:
    """Remembers in ``cache``, or nowhere; ``about`` is the digest of what all of its pieces depend on."""

    def __init__(self, cache: Cache | None = None, about: str = "") -> None:
        self._cache, self._about = cache, about

    def of(self, *more: object) -> DiskMemo:
        """For pieces that depend on ``more`` too: records, see ``records``."""
        if self._cache is None:
            return self
        return DiskMemo(self._cache, digest(self._about, more))

    def __call__(self, kind: str, key: object, make: Callable[[], T]) -> T:
        """What ``make`` made for ``key`` in an earlier run, or makes now: what a record holds, not None."""
        if self._cache is None:
            return make()
        name = self._name(kind, key)
        found: T | None = self._cache.get(name)
        if found is None:
            found = make()
            self._cache.put(name, found)
        return found

    def knows(self, kind: str, key: object) -> bool:
        """Whether ``make`` made something for ``key`` in an earlier run; it may turn out to be damaged."""
        return self._cache is not None and self._cache.has(self._name(kind, key))

    def _name(self, kind: str, key: object) -> str:
        return f"{kind}-{digest(self._about, kind, key)}"

    def decompose(self, device: torch.device = CPU) -> Decompose:
        """``factorize``, computed on ``device``, that remembers."""

        def remembered(weight: Tensor) -> Factorization:
            return self("decomposition", weight, lambda: on(CPU, factorize(weight.to(device))))

        return remembered


def disk_memo(cache: Cache | None, model: nn.Module, graph: Path, *more: object) -> DiskMemo:
    """For pieces of work on ``model``, whose float32 file is ``graph``, that all depend on ``more``."""
    if cache is None:
        return DiskMemo()
    with graph.open("rb") as file:
        exported = hashlib.file_digest(file, "sha256").hexdigest()
    machine = *kernels(), torch.get_num_threads()
    about = digest(own_code(), machine, exported, _code_of(model), dict(model.state_dict()), more)
    return DiskMemo(cache, about)


def _code_of(model: nn.Module) -> str:
    """A digest of the files that define the network's modules: gradients may differ where graphs do not."""
    names = {type(module).__module__ for module in model.modules()}
    paths = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    return digest_of(sorted(Path(path) for path in paths if path is not None))
