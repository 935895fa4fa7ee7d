"""Freed memory goes back to the system, also from behind what lives on."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from pathlib import Path
from svd2onnx.memory import release_freed
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [torch.ones(10_000) for _ in range(5_000)]
kept = blocks[::100]
del blocks
before = resident()
release_freed()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the memory")
def test_freed_tensors_between_others_are_given_back() -> None:
    freed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(freed.stdout) > 100e6
