"""What errors say."""

import pytest

from svd2onnx_runtime.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 301), "x" * 297 + "..."),
    ],
)
def test_a_quoted_error_is_one_short_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
