"""The contenders of the frontier: one file each, with ``compress(task, output, **setting)``.

Each reads the float32 graph of the task (svd2onnx its model file), writes a graph to ``output`` and
leaves the embedding tables in float. It imports its library when called, so that one that is not
installed is a row with that reason and not the end of the run.
"""
