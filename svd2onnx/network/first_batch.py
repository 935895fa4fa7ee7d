"""A network that does not run at all is told of as that, whoever runs it first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from svd2onnx.values.errors import ExportError, SourceError, one_line

_OTHER_TYPES = ("Half", "BFloat16", "Double")


@contextmanager
def first_batch() -> Iterator[None]:
    """Around a run of the network on the first calibration batch.

    Raises:
        SourceError: forward fails.
    """
    try:
        yield
    except ExportError:  # of a hook: it ran, and gave what no file can
        raise
    except Exception as error:
        told = f"the network's forward fails on the first calibration batch: {type(error).__name__}: "
        raise SourceError(told + one_line(error) + _remedy(str(error))) from error


def _remedy(text: str) -> str:
    """A network of another type was turned into float32, which its forward need not expect."""
    if "dtype" in text and any(own in text for own in _OTHER_TYPES):
        return (
            "; networks are compressed in float32: let forward take types from its weights, as in "
            "x.to(self.layer.weight.dtype)"
        )
    return ""
