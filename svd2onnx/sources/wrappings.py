"""What is put around a network to run it on several devices, to compile it, or to average it."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel


def unwrapped(network: nn.Module) -> nn.Module:
    """The module within what runs it on several devices, compiles it or averages it."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            network = network.module
        elif isinstance(network._modules.get("_orig_mod"), nn.Module):  # as torch.compile leaves it
            network = network.get_submodule("_orig_mod")
        else:
            return network
