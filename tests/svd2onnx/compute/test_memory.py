"""Freed memory goes back to the system, also from behind what lives on."""

import subprocess
import sys

import pytest

START = """
import torch
from pathlib import Path
from svd2onnx.compute.memory import release_at_once, release_freed
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
"""
ASKED_FOR = """
blocks = [torch.ones(10_000) for _ in range(5_000)]
kept = blocks[::100]
del blocks
before = resident()
release_freed()
print(before - resident())
"""
AT_ONCE = """
release_at_once()
blocks = [torch.ones(1 << 20) for _ in range(100)]
kept = blocks[::10]
before = resident()
del blocks
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the memory")
@pytest.mark.parametrize(("program", "least"), [(ASKED_FOR, 100e6), (AT_ONCE, 300e6)])
def test_freed_tensors_between_others_are_given_back(program: str, least: float) -> None:
    # glibc learns from a freed block of 32 MB that such ones may be kept.
    before = "" if program == ASKED_FOR else "del_me = torch.ones(8_000_000); del del_me\n"
    command = [sys.executable, "-c", START + before + program]
    freed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(freed.stdout) > least
