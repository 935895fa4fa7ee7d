"""VGG19, an image classifier of the article (143.7M parameters, 102.8M in one Linear), as a model file.

Parameters are named as in torchvision, whose weights load unchanged from the folder ``weights``
(``vgg19-dcbb9e9d.pth``). With ``random_weights`` it has torchvision's initial ones, and shows size, speed
and memory.

``data`` is a folder of JPEGs called by the indices of their classes, see ``images.py``; without it,
calibration and evaluation see noise.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``objective`` and ``dynamic_shapes``.
"""

from pathlib import Path

from images import inputs as inputs
from images import metric as metric
from state_dicts import pretrained_or_random
from torch import Tensor, nn

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}

_FILE = "vgg19-*.pth"
_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))  # channels, in multiples of the width, and convolutions
_SIDE = 7  # of an image of 224 after the five poolings: torchvision's adaptive pooling changes nothing then


class VGG(nn.Module):
    """Simonyan and Zisserman (2014), configuration E."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        channels = 3
        layers: list[nn.Module] = []
        for multiple, count in _STAGES:
            for _ in range(count):
                outputs = multiple * width
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                channels = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = classifier(channels * _SIDE * _SIDE, hidden, classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Classify: float32 [batch, 3, 224, 224] -> logits [batch, classes]."""
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits


def classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """Return the fully-connected layers of a VGG."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    )


def initialize(network: nn.Module) -> None:
    """Draw the initial weights of a VGG."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def architecture(*, width: int = 64, hidden: int = 4096, classes: int = 1000) -> nn.Module:
    """Return VGG19, or a smaller one like it, with torchvision's initial weights."""
    return VGG(width, hidden, classes)


def build(weights: Path | None = None, random_weights: bool = False) -> nn.Module:
    """Return the network with torchvision's published or initial weights, in eval mode.

    Raises:
        ValueError: neither is asked for.
        FileNotFoundError: the folder ``weights`` does not hold them.
    """
    return pretrained_or_random(architecture, weights, random_weights, _FILE, _URL)
