"""Studies that need more than svd2onnx itself: its peers, their data, and a plot. Not in the wheel."""
