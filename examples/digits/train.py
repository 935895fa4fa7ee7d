"""Train a small convolutional network on scikit-learn's digits (8 x 8 grey images): seconds on one core."""

from pathlib import Path

import torch
from network import Digits, images
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(*images("train")), batch_size=64, shuffle=True)
network = Digits()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
for _ in range(15):
    for pixels, labels in loader:
        loss = cross_entropy(network(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save(network.state_dict(), Path(__file__).with_name("digits.pt"))

pixels, labels = images("test")
with torch.no_grad():
    print(f"accuracy {(network.eval()(pixels).argmax(1) == labels).float().mean():.3f}")
