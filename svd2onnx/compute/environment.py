"""What results depend on beside their inputs: this package's code, torch, and the kernels that it takes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch


@functools.cache
def own_code() -> str:
    """A digest of this package: its version does not change with every change of its code."""
    return digest_of(sorted(Path(__file__).parents[1].rglob("*.py")))


def kernels() -> tuple[str, str]:
    """The version of torch, and the processor's instructions that it takes its kernels for."""
    return torch.__version__, torch.backends.cpu.get_cpu_capability()


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of what is in ``files``, whatever their names; missing ones count as none."""
    sha = hashlib.sha256()
    for content in sorted(hashlib.sha256(path.read_bytes()).digest() for path in files if path.is_file()):
        sha.update(content)
    return sha.hexdigest()
