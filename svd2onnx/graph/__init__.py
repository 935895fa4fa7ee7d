"""ONNX: the exporter, and passes over the graph that it writes."""
