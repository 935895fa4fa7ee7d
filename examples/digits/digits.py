"""The model file: tells svd2onnx what network, data and judgement it is to work with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from network import Digits, images
from torch import Tensor, nn

objective = "kl"  # the outputs are logits: "the same output" means the same probabilities
dynamic_shapes = {"pixels": {0: "batch"}}


def build() -> nn.Module:
    network = Digits()
    network.load_state_dict(torch.load(Path(__file__).with_name("digits.pt"), weights_only=True))
    return network


def inputs(split: str) -> Iterator[dict[str, Tensor]]:
    """Batches of 50: "pixels" are the network's argument, "label" is for the metric alone."""
    pixels, labels = images("test" if split == "evaluation" else "train")
    for start in range(0, len(pixels), 50):
        rows = slice(start, start + 50)
        yield {"pixels": pixels[rows], "label": labels[rows]}


def metric(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float]:
    (scores,) = outputs.values()
    return {"accuracy": float((scores.argmax(1) == batch["label"]).mean())}
