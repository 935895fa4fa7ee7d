"""Stands in for the model files of networks on images: image [batch, 3, 16, 16] -> logits [batch, 400]."""

import torch
from torch import nn

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
            ),
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
            ),
            nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU6()),
        )
        self.classifier = nn.Linear(64, 400)

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))


def build(weights=None, random_weights=False):
    torch.manual_seed(0)
    return Network()


def inputs(split, data=None):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    for _ in range(4):
        yield {"image": torch.randn(8, 3, 16, 16), "label": torch.randint(0, 400, (8,))}


def metric(outputs, batch):
    (logits,) = outputs.values()
    return {"top-1": float((logits.argmax(1) == batch["label"]).mean())}
