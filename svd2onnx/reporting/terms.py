"""The words of a report, explained: tooltips where they are used, and a list for those who cannot point."""

from __future__ import annotations

import re

TERMS = {
    "fidelity": (
        "How close the outputs are to those of the float32 network: 1 is a perfect copy. For the objectives "
        "cosine and mse it is 1 minus the mean error, for kl it is exp(-mean error)."
    ),
    "objective": (
        "How an output is compared with that of the float32 network: cosine is 1 minus their cosine "
        "similarity, kl the KL divergence of their softmax in nats, mse the squared error relative to the "
        "squared output."
    ),
    "deployed": (
        "Measured in a default onnxruntime session, as an application opens the file. On a CPU it rounds the "
        "activations of quantized MatMuls to 8 bits too."
    ),
    "strict": "Measured on the graph as written, all optimizations off: what the weights alone lose.",
    "held out": "Calibration data that was kept back: nothing was fitted to it.",
    "predicted error": (
        "The mean error that compressing this layer is expected to add to the network's output. The "
        "prediction for the network is the sum over its layers, times the gauge."
    ),
    "gauge": (
        "Measured error over predicted error of a uniform quantization, on the evaluation data. It corrects "
        "predictions for what they do not know, such as evaluation data unlike the calibration data."
    ),
    "uniform quantization": (
        "Every layer at the same bits and block size: the baseline that a plan must beat to be shipped."
    ),
    "fused": (
        "onnxruntime runs the quantized MatMul as one kernel on the stored integers. One that is not fused "
        "is dequantized on every call and runs many times slower."
    ),
    "folded": (
        "The weight becomes float32 once, when the file is loaded: small on disk, float32's memory and speed "
        "when it runs."
    ),
    "int4/64": "Integers of 4 bits; each block of 64 weights in a row shares one scale.",
    "rank 32": (
        "A low-rank pair: two thin matrices of rank 32, whose product is the weight, or is added to what the "
        "integers hold of it. rank 0 keeps only the bias."
    ),
}

_INTEGERS = re.compile(r"int([248])/(\d{1,6})")
_PAIR = re.compile(r"rank (\d{1,9}) (int[248]/\d{1,6})")


def explained_form(form: str) -> str | None:
    """What a form such as "int4/64 + rank 32 int4/32" means, in words; None for text that is no form."""
    storage, comma, activations = form.partition(", ")
    if comma and activations != "int8 activations":
        return None
    parts = [_explained_part(part) for part in storage.split(" + ")]
    if None in parts:
        return None
    computing = ", computed on activations rounded to 8 bits" if comma else ""
    return ", plus ".join(part for part in parts if part) + computing


def _explained_part(part: str) -> str | None:
    if part == "rank 0":
        return "nothing but the bias"
    if found := _INTEGERS.fullmatch(part):
        return f"{found[1]}-bit integers with one scale for each {found[2]} weights"
    if found := _PAIR.fullmatch(part):
        return f"a low-rank pair of rank {found[1]} in {_explained_part(found[2])}"
    return None
