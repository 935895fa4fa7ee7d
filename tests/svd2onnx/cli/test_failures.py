"""What the machine refuses is told in one line that says what to do, however a library wraps it."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from svd2onnx.cli.failures import refusal
from svd2onnx.cli.main import main
from svd2onnx.values.errors import ExportError, SourceError


def caused(error: Exception, cause: Exception) -> Exception:
    """``error`` as raised from ``cause``."""
    error.__cause__ = cause
    return error


def os_error(number: int, name: str | None = "out.onnx") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 1 bytes"
        ),
        caused(SourceError("the model file failed in build(): MemoryError: no message"), MemoryError()),
        caused(ExportError("torch.onnx cannot export"), caused(RuntimeError("x"), MemoryError())),
        RuntimeError("std::bad_alloc"),
    ],
    ids="plain torch source export native".split(),
)
def test_out_of_memory(error: Exception) -> None:
    line = refusal(error)
    assert line is not None
    assert line.startswith("out of memory: ")
    assert "--calibration-samples" in line


def test_out_of_memory_on_a_gpu() -> None:
    line = refusal(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"))
    assert line is not None
    assert line.startswith("out of memory on the GPU: use --device cpu, or ask for less there: ")


def test_an_allocation_that_torch_refuses() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert str(refusal(caught.value)).startswith("out of memory: ")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (os_error(errno.ENOSPC), "the disk is full (out.onnx): "),
        (os_error(errno.ENOSPC, None), "the disk is full: "),
        (os_error(errno.EDQUOT), "the disk is full (out.onnx): "),
        (caused(ExportError("x"), os_error(errno.ENOSPC)), "the disk is full (out.onnx): "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full: "),
        (os_error(errno.EFBIG), "a file would be larger than is allowed here (out.onnx): "),
        (os_error(errno.EACCES), "cannot use out.onnx: "),
        (os_error(errno.EROFS), "cannot use out.onnx: "),
    ],
    ids="room nameless quota wrapped text large rights readonly".split(),
)
def test_the_disk_refuses(error: Exception, start: str) -> None:
    assert str(refusal(error)).startswith(start)


@pytest.mark.parametrize("error", [ValueError("x"), SourceError("no such file"), OSError("unknown")])
def test_other_errors_are_none_of_these(error: Exception) -> None:
    assert refusal(error) is None


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert refusal(first) is None


@pytest.mark.parametrize(
    ("place", "told"),
    [
        # Large weights lie in files.
        ("    torch.manual_seed(0)", r"cannot keep 4,611,686,018,427,387,904 bytes in .*: set TMPDIR"),
        ("    torch.manual_seed({", "out of memory: "),
    ],
    ids=["build", "inputs"],
)
def test_a_network_or_data_too_large_for_the_machine(
    write_model_file: Callable[..., Path], tmp_path: Path, place: str, told: str
) -> None:
    source = write_model_file((place, f"    torch.empty(1 << 60)\n{place}"))
    result = CliRunner().invoke(main, ["compress-export", str(source), "-o", str(tmp_path / "out.onnx")])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.match(f"error: (the model file .*: )?{told}", line), line
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"network.py"}
