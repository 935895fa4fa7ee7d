"""The compressor's errors; one root (see ``svd2onnx_runtime.errors``), so that a caller can catch them all.

Svd2OnnxError
|- SourceError        the network cannot be loaded, or holds what cannot be compressed
|- PlanError          the goal, the plan or a layer pattern cannot be met
|- ExportError        PyTorch or ONNX cannot express the network as asked
|- VerificationError  the exported graph does not compute what the compressed network computes
|- DeviceError        the device asked for is not to be had here
|- ReportError        what should be a report is none, or holds what cannot be shown
|- OutputError        the result cannot be written where it was asked for
'- ExecutorError      the work cannot be done where it was asked for
"""

from svd2onnx_runtime.errors import Svd2OnnxError, one_line

__all__ = [
    "DeviceError",
    "ExecutorError",
    "ExportError",
    "OutputError",
    "PlanError",
    "ReportError",
    "SourceError",
    "Svd2OnnxError",
    "VerificationError",
    "one_line",
]


class SourceError(Svd2OnnxError):
    """The network or its data cannot be loaded, or its weights are unusable."""


class PlanError(Svd2OnnxError):
    """The compression asked for does not fit the network."""


class ExportError(Svd2OnnxError):
    """The network cannot be written as ONNX."""


class VerificationError(Svd2OnnxError):
    """The exported graph does not equal the compressed PyTorch network."""


class DeviceError(Svd2OnnxError):
    """The device to compute on is not available on this machine."""


class ReportError(Svd2OnnxError):
    """The report of an earlier run cannot be read or shown."""


class OutputError(Svd2OnnxError):
    """The output cannot be written."""


class ExecutorError(Svd2OnnxError):
    """The workers cannot be reached, are lost, or would compute something else."""
