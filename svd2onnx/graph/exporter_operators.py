"""The exporter's table of operators, read once in a process.

For each graph torch.onnx (2.13) asks onnxscript (0.7) for its 500 operators, and onnxscript parses the source
of each of them anew: a second or so, a third of a small export. A run exports two graphs or more, a sweep
dozens.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

_USER, _READER = "torch.onnx._internal.exporter._registration", "get_torchlib_ops"


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Within the block, exports share the table; where a release has no such reader, nothing changes."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):
            # By the name that torch has for it: onnxscript has one such module for each release of torch.
            operators = importlib.import_module(_USER).onnxscript_apis
            reader = getattr(operators, _READER)
            setattr(operators, _READER, lambda: list(_table(reader)))
            stack.callback(setattr, operators, _READER, reader)
        yield


@functools.cache
def _table(reader: Callable[[], list[Any]]) -> tuple[Any, ...]:
    return tuple(reader())
