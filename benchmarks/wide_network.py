"""A model file: a network like EfficientNet-lite2, of random weights, for what wide inputs cost.

    WIDE_IMAGES=256 python -m benchmarks.stages benchmarks/wide_network.py w.onnx '{"target_size": "0.17x"}'

6.1 million weights see images of 260 x 260, so that what a pass keeps is much larger than the network. Its
convolutions pad as TensorFlow does, in a forward of their own. Source: Tan and Le, "EfficientNet"
(arXiv 1905.11946); of lite, the TensorFlow TPU repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 260
IMAGES = int(os.environ.get("WIDE_IMAGES", "256"))
"""Of them one in five is for evaluation."""
_BATCH = 32
_WIDTH, _DEPTH, _STEM, _HEAD, _CLASSES = 1.1, 1.2, 32, 1280, 1000
_BLOCKS = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
objective = "kl"


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: by the size of its input, more behind."""

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, kernel, stride in zip(
            reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            sides += [total // 2, total - total // 2]
        if any(sides):
            x = functional.pad(x, sides)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    convolution = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs, eps=1e-3)]


class _Block(nn.Module):
    """MBConv without squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        widened = [*_unit(inputs, inner, 1, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_unit(inner, inner, kernel, stride, inner), nn.ReLU6()]
        self.layers = nn.Sequential(*widened, *depthwise, *_unit(inner, outputs, 1, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class Lite2(nn.Module):
    """Images [batch, 3, side, side] to logits [batch, classes]."""

    def __init__(self) -> None:
        super().__init__()
        channels, blocks = _STEM, []
        for place, (repeats, kernel, stride, expansion, width) in enumerate(_BLOCKS):
            # The first and the last stage are not deepened.
            deep = repeats if place in (0, len(_BLOCKS) - 1) else -(-repeats * _DEPTH // 1)
            for number in range(int(deep)):
                outputs = _rounded(width * _WIDTH)
                blocks.append(_Block(channels, outputs, kernel, stride if number == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(
            *_unit(3, _STEM, 3, 2), nn.ReLU6(), *blocks, *_unit(channels, _HEAD, 1, 1), nn.ReLU6()
        )
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def _rounded(width: float) -> int:
    """To a multiple of 8, and not much smaller."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def build() -> nn.Module:
    """The network; its normalization has the statistics of a few images."""
    torch.manual_seed(0)
    model = Lite2()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.ones_(module.bias)  # with 0 so many units are dead that float rounding grows to 1e-5
    with torch.no_grad():
        model.train()(images(8, 0, SIDE // 2))
    return model.eval()


def images(count: int, seed: int, side: int = SIDE) -> Tensor:
    """Random colours that change smoothly, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 9, 9, generator=generator)
    smooth = functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return smooth + 0.3 * torch.randn(count, 3, side, side, generator=generator)


def inputs(split: str) -> Iterator[dict[str, Tensor]]:
    """Batches of images."""
    judged = IMAGES // 5
    left = judged if split == "evaluation" else IMAGES - judged
    seed = 1_000_000 if split == "evaluation" else 0
    while left > 0:
        count = min(_BATCH, left)
        yield {"images": images(count, seed + left)}
        left -= count
