"""One file for each command; what they share is in ``svd2onnx.options`` and ``svd2onnx.console``."""
