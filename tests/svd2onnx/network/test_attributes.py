"""Attributes of networks by dotted names."""

import torch
from torch import nn

from svd2onnx.network.attributes import find, put


def test_what_is_put_is_found() -> None:
    root = nn.Sequential(nn.Linear(2, 2))
    layer, table = nn.Linear(2, 3), torch.zeros(2)
    put(root, "0", layer)
    put(root, "deep.below.table", table)
    put(root, "deep.weight", layer.weight)
    assert root[0] is find(root, "0") is layer
    assert find(root, "deep.below.table") is table
    assert dict(root.named_buffers()) == {"deep.below.table": table}
    assert dict(root.named_parameters(remove_duplicate=False))["deep.weight"] is layer.weight


def test_what_is_not_there_is_none() -> None:
    assert find(nn.Linear(2, 2), "weight.of.nothing") is None
    assert find(nn.Linear(2, 2, bias=False), "bias") is None
