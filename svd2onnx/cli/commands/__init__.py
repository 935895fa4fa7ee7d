"""One file for each command; what they share is in ``svd2onnx.cli.options`` and ``svd2onnx.cli.console``."""
