"""A network that does not run at all is told of as that, whoever runs it first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from svd2onnx.values.errors import ExportError, SourceError, one_line


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
        raise SourceError(
            f"the network's forward fails on the first calibration batch: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
