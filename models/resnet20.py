"""ResNet-20 for CIFAR-10 (0.27M parameters), as a model file.

``weights`` is a folder that holds ``resnet20-12fca82f.th`` of https://github.com/akamaster/pytorch_resnet_cifar10,
and ``data`` one that holds ``train_first1000.npz``, for calibration and recovery, and
``test_first500.npz``, for evaluation: ``images``, uint8 [n, 32, 32, 3], and ``labels`` [n]. Either may hold
them in a folder ``cifar10``. There are no random weights and no synthetic images: such a small network is
of interest only for what it has learnt.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``objective`` and ``dynamic_shapes``.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from images import check, normalised
from images import metric as metric
from torch import Tensor, nn

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}

_WEIGHTS = "resnet20-12fca82f.th"
_REPOSITORY = "https://github.com/akamaster/pytorch_resnet_cifar10"
_TRAINING, _EVALUATION = "train_first1000.npz", "test_first500.npz"
_BATCH = 50


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of the article)."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.further = stride, outputs - channels
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, outputs, height / stride, width / stride]."""
        y: Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.further:  # every other pixel, between channels of zeros
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.further // 2
            x = nn.functional.pad(x, (0, 0, 0, 0, before, self.further - before))
        return torch.relu(x + y)


class ResNet20(nn.Module):
    """He et al. (2015), section 4.2, with n = 3."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify: float32 [batch, 3, 32, 32] -> logits [batch, classes]."""
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def build(weights: Path | None = None) -> nn.Module:
    """Return the trained network, in eval mode.

    Raises:
        ValueError: no folder is given.
        FileNotFoundError: it does not hold the weights.
    """
    path = _find(weights, _WEIGHTS, "--weights", f"of {_REPOSITORY}")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = ResNet20()
    # It was trained in a DataParallel, which calls it "module".
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return network.eval()


def inputs(split: str, data: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``image``, float32 [50, 3, 32, 32], normalised, and ``label``, int64 [50]. Calibration and
    recovery have the same training images, evaluation has test images.

    Raises:
        ValueError: the split is unknown, or no folder is given.
        FileNotFoundError: it does not hold the images.
    """
    check(split)
    name = _EVALUATION if split == "evaluation" else _TRAINING
    path = _find(data, name, "--data", "with CIFAR-10's arrays images, uint8 [n, 32, 32, 3], and labels")
    with np.load(path) as arrays:
        images, labels = arrays["images"], torch.from_numpy(arrays["labels"]).long()
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        yield {"image": normalised(images[rows]), "label": labels[rows]}


def _stage(channels: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Block(channels, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1)
    )


def _find(folder: Path | None, name: str, option: str, origin: str) -> Path:
    if folder is None:
        raise ValueError(f"expected {option} DIR, a folder that holds {name} {origin}; found none given")
    places = [folder / "cifar10" / name, folder / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"expected {name} {origin} at {places[0]} or {places[1]}; found neither")
