"""ResNet-101, an image classifier of the article (44.5M parameters), as a model file.

Parameters are named as in torchvision, whose weights load unchanged from the folder ``weights``
(``resnet101-63fe2227.pth``; ``resnet101-cd907fc2.pth`` too, which was tuned for images of another size).
With ``random_weights`` it has torchvision's initial ones, and shows size, speed and memory. Its batch
normalizations then divide by the size that their inputs have for noise: as they are initially they change
nothing, every block adds to the next, and logits of 10,000 come out.

``data`` is a folder of JPEGs called by the indices of their classes, see ``images.py``; without it,
calibration and evaluation see noise.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``objective`` and ``dynamic_shapes``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from images import inputs as inputs
from images import metric as metric
from state_dicts import pretrained_or_random
from torch import Tensor, nn

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}

_FILE = "resnet101-*.pth"
_URL = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
_EXPANSION = 4  # a block's outputs have so many times the channels of its 3x3 convolution


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one has the stride, as in torchvision."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or channels != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, 4 * width, height / stride, width / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """He et al. (2015), of bottleneck blocks: ``blocks`` in each of the four stages."""

    def __init__(self, blocks: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        first, second, third, fourth = blocks
        self.layer1 = _stage(width, width, first, 1)
        self.layer2 = _stage(4 * width, 2 * width, second, 2)
        self.layer3 = _stage(8 * width, 4 * width, third, 2)
        self.layer4 = _stage(16 * width, 8 * width, fourth, 2)
        self.fc = nn.Linear(32 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Classify: float32 [batch, 3, height, width] -> logits [batch, classes]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def architecture(*, blocks: Sequence[int] = (3, 4, 23, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """Return ResNet-101, or a smaller one like it, with torchvision's initial weights."""
    return ResNet(blocks, width, classes)


def build(weights: Path | None = None, random_weights: bool = False) -> nn.Module:
    """Return the network with torchvision's published or initial weights, in eval mode.

    Raises:
        ValueError: neither is asked for.
        FileNotFoundError: the folder ``weights`` does not hold them.
    """
    network = pretrained_or_random(architecture, weights, random_weights, _FILE, _URL)
    if random_weights:
        _settle(network, next(inputs("calibration"))["image"])
    return network


def _settle(network: nn.Module, images: Tensor) -> None:
    """Let every batch normalization divide by the size, over all channels, of what it gets for ``images``.

    Means and variances of the channels, as training has them, would make it a network that magnifies
    rounding a hundredfold: its random blocks pull alike inputs apart.
    """

    def take(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
        norm.running_var.fill_(float(arguments[0].square().mean()))

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    further = (Bottleneck(_EXPANSION * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels, width, stride), *further)
