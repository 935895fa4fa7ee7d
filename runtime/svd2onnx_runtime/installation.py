"""Import onnxruntime, or say in one line which command installs it.

Several distributions provide the package ``onnxruntime``: onnxruntime for the CPU, onnxruntime-gpu for CUDA,
onnxruntime-directml, onnxruntime-openvino and others. Any one of them will do. Two in the same folder
overwrite each other's files, and uninstalling one deletes files of the other, so two are refused even where
the import would still succeed. Two in different folders of ``sys.path`` are harmless: the first is used.

The check takes about 2 ms, once in a process; the import itself takes some 250 ms.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from svd2onnx_runtime.errors import InstallationError, one_line

_PACKAGE = "onnxruntime"
_EXTRAS = {"onnxruntime": '"svd2onnx[cpu]"', "onnxruntime-gpu": '"svd2onnx[gpu]"'}


@functools.cache
def onnxruntime() -> Any:
    """The module ``onnxruntime``, imported on the first call.

    Raises InstallationError where no distribution provides it, where several do in one folder, where one is
    recorded but its files are gone, and where the import fails.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:  # no origin: a folder left behind, without an __init__.py
        recorded = _providers(sys.path)
        if recorded:
            raise InstallationError(
                f"the files of {' and '.join(recorded)} are gone, most likely because another onnxruntime "
                f"was uninstalled: run {_reinstall(recorded)}"
            )
        raise InstallationError(
            f"onnxruntime is not installed: run pip install {_EXTRAS['onnxruntime']}, or with an NVIDIA GPU "
            f"pip install {_EXTRAS['onnxruntime-gpu']}"
        )
    found = _providers([str(Path(spec.origin).parents[1])])
    if len(found) > 1:
        raise InstallationError(
            f"expected one onnxruntime, found {' and '.join(found)}, which overwrite each other's files: "
            f"run {_reinstall(found)}"
        )
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise InstallationError(
            f"onnxruntime cannot be imported ({one_line(error)}): run {_reinstall(found or [_PACKAGE])}"
        ) from error


def _providers(folders: list[str]) -> list[str]:
    """The names of the distributions in ``folders`` that provide the package onnxruntime."""
    return sorted(
        {
            distribution.name
            for distribution in distributions(path=folders)
            if _PACKAGE in (distribution.read_text("top_level.txt") or "").split()
        }
    )


def _reinstall(found: list[str]) -> str:
    """The command that leaves one of ``found``: the most special one, with the CPU's as the last choice."""
    kept = max(found, key=lambda name: (name not in _EXTRAS, name))
    command = f"pip uninstall -y {' '.join(found)} && pip install {_EXTRAS.get(kept, kept)}"
    return command if kept == _PACKAGE else f"{command} (or {_EXTRAS[_PACKAGE]} for the CPU alone)"
