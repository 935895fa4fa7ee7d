"""What the tables say in words."""

from svd2onnx.cli.tables import retraining_line
from svd2onnx.reporting.report import Retraining


def test_retraining_that_gained_nothing_says_so() -> None:
    assert "0.02000 to 0.01000" in retraining_line(Retraining(300, 0.02, 0.01))
    nothing = retraining_line(Retraining(80, 0.02, 0.02))
    assert "gained nothing" in nothing
    assert "80 steps" in nothing
