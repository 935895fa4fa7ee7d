"""What PyTorch tells of itself is not heard, and everything is as before afterwards."""

import logging
import warnings

import pytest

from svd2onnx.compute.quiet import quiet


def test_named_loggers_and_warnings_are_quiet_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    named, other = logging.getLogger("tests.quiet.named"), logging.getLogger("tests.quiet.other")
    for logger in (named, other):
        logger.setLevel(logging.INFO)

    def failing() -> None:
        with quiet([named.name], logging.ERROR):
            named.warning("hidden")
            named.error("shown")
            other.warning("shown too")
            warnings.warn("hidden", stacklevel=1)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert caplog.messages == ["shown", "shown too"]
    assert named.level == logging.INFO
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
