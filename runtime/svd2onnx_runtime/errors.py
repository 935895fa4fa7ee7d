"""The root of every error that svd2onnx raises on purpose.

It lives in the runtime package because imports point downwards only: the compressor's own errors
(``svd2onnx.values.errors``) derive from it, and the command line catches this one class.

    Svd2OnnxError
    |- InstallationError  onnxruntime is missing or broken
    |- ProviderError      the execution provider asked for is not to be had here
    |- GraphError         a file is not a graph that onnxruntime can run as asked
    '- InputsError        the arrays given do not fit the graph, or the two graphs do not match
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class Svd2OnnxError(Exception):
    """A stated failure: one line that says what was expected, what was found and what to do."""


class InstallationError(Svd2OnnxError):
    """onnxruntime is missing, damaged, or installed twice in one place."""


class ProviderError(Svd2OnnxError):
    """The execution provider asked for is not available on this machine."""


class GraphError(Svd2OnnxError):
    """The file is missing, empty, or no ONNX graph that onnxruntime can load."""


class InputsError(Svd2OnnxError):
    """The given arrays do not fit the graph, or two graphs that are compared do not match."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` without its line breaks, at most 300 characters; its kind if it says none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the errors of the block that are ours name the file that they are about."""
    try:
        yield
    except Svd2OnnxError as error:
        if isinstance(error, InstallationError) or os.fspath(path) in str(error):
            raise
        raise type(error)(f"{os.fspath(path)}: {error}") from error
