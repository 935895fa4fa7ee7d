"""Networks of operators that are no layers, and take their weights from a ``StoredWeight``."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.network.modules import StoredWeight
from tests.svd2onnx.networks import Batch


def stored(*shape: int, rows_of: int = 1) -> StoredWeight:
    """A weight that keeps the size of what it multiplies."""
    weight = torch.randn(shape) / shape[-1] ** 0.5
    return StoredWeight(nn.Parameter(weight, requires_grad=False), rows_of)


class Upsampled(nn.Module):
    """x [batch, 24, height, width] -> [batch, 16, *]: two transposed convolutions, the second grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.grouped = stored(24, 32, 3, 3), stored(32, 8, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(functional.conv_transpose2d(x, self.up(), stride=2, padding=1))
        return functional.conv_transpose2d(x, self.grouped(), groups=2)


class Recurrent(nn.Module):
    """x [batch, length, 40] -> [batch, length, 48]: an LSTM that goes both ways, and a GRU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.ModuleList([stored(128, 40), stored(128, 40)])
        self.hidden = nn.ModuleList([stored(128, 32), stored(128, 32)])
        self.biases = nn.ParameterList([nn.Parameter(0.1 * torch.randn(128)) for _ in range(4)])
        self.gru_inputs, self.gru_hidden = stored(144, 64), stored(144, 48)

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(2, x.shape[0], 32)
        parameters = []
        for i in range(2):
            parameters += [self.inputs[i](), self.hidden[i](), self.biases[2 * i], self.biases[2 * i + 1]]
        y, _, _ = torch.lstm(x, (start, start), parameters, True, 1, 0.0, False, True, True)
        start = x.new_zeros(1, x.shape[0], 48)
        y, _ = torch.gru(y, start, [self.gru_inputs(), self.gru_hidden()], False, 1, 0.0, False, False, True)
        return y


class Experts(nn.Module):
    """x [batch, 4, 32] -> [batch, 4, 48]: each expert has a matrix of its own; a bilinear form behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = stored(4, 32, 48, rows_of=2)
        self.pairs = stored(48, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x.transpose(0, 1), self.experts()).transpose(0, 1)
        return functional.bilinear(y[..., :16].contiguous(), y[..., 16:32].contiguous(), self.pairs())


class Bags(nn.Module):
    """ids [batch, length] -> [batch, 64]: the mean of rows, by a weight that a matrix product takes too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = stored(150, 64), stored(64, 64)

    def forward(self, ids: Tensor) -> Tensor:
        y = functional.embedding_bag(ids, self.table(), mode="mean")
        return torch.tanh(y @ self.mix()) @ self.mix()


STORED_NETWORKS: list[type[nn.Module]] = [Upsampled, Recurrent, Experts, Bags]


def stored_batches(network: nn.Module, seed: int = 1) -> list[Batch]:
    """Two batches for one of the networks here, of different sizes in each dynamic dimension."""
    torch.manual_seed(seed)
    if isinstance(network, Bags):
        return [{"ids": torch.randint(0, 150, shape)} for shape in ((6, 5), (4, 5))]
    if isinstance(network, Upsampled):
        return [{"x": torch.randn(shape)} for shape in ((5, 24, 6, 4), (3, 24, 5, 7))]
    if isinstance(network, Recurrent):
        return [
            {"x": torch.randn(shape)} for shape in ((5, 6, 40), (3, 6, 40))
        ]  # torch.export fixes an LSTM's length
    return [{"x": torch.randn(size, 4, 32)} for size in (12, 7)]
