"""The values that options choose from; importing them is quick, so that a wrong one is found at once."""

METHODS = ("auto", "quantize", "svd")
BITS = (8, 4, 2)
"""Code widths that ONNX has a signed integer type for (int8, int4, int2)."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes for which onnxruntime fuses DequantizeLinear and MatMul into one kernel."""
ACTIVATIONS = ("auto", "float", "int8")
OPERATORS = ("dequantize", "folded", "matmulnbits")
DTYPES = ("float32", "float16")
OBJECTIVES = ("cosine", "kl", "mse")
DEVICES = ("auto", "cpu", "cuda")
