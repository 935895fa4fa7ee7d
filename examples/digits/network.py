"""The network and its data: what a project of your own has already."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Digits(nn.Module):
    """pixels [batch, 1, 8, 8] from 0 to 1 -> scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.hidden, self.scores = nn.Linear(512, 128), nn.Linear(128, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scores(torch.relu(self.hidden(self.features(pixels).flatten(1))))


def images(part: str) -> tuple[Tensor, Tensor]:
    """Pixels [rows, 1, 8, 8] and labels [rows]: "train" is the first 1,297 images, "test" the last 500."""
    digits = load_digits()
    rows = slice(None, -500) if part == "train" else slice(-500, None)
    pixels = torch.tensor(digits.images[rows], dtype=torch.float32)[:, None] / 16
    return pixels, torch.tensor(digits.target[rows])
