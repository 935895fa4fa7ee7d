"""A network whose forward fails, in one line."""

from __future__ import annotations

from svd2onnx.values.errors import SourceError, one_line

_OTHER_TYPES = ("Half", "BFloat16", "Double")


def forward_failed(error: Exception) -> SourceError:
    """What to raise where forward failed with ``error`` on the first calibration batch."""
    kind, line = type(error).__name__, one_line(error)
    told = f"the network's forward fails on the first calibration batch: {kind}: {line}"
    # A network of another type was turned into float32, which its forward need not expect.
    if "dtype" in str(error) and any(own in str(error) for own in _OTHER_TYPES):
        told += (
            "; networks are compressed in float32: let forward take types from its weights, as in "
            "x.to(self.layer.weight.dtype)"
        )
    return SourceError(told)
