"""``python -m svd2onnx`` is ``svd2onnx``."""

from svd2onnx.cli.main import main

main(prog_name="svd2onnx")
