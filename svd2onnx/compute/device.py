"""Where tensors are computed: on the CPU, or on a GPU that does the same with the same numbers.

``resolve_device`` decides once. From then on every function computes where the tensors lie that it is given:
a copy of a network is placed on the device for its passes, and a layer's weight and statistics for its work.
Results come back to the CPU, where everything is kept, exported and checked.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from svd2onnx.compute.executors import current
from svd2onnx.values.errors import DeviceError

T = TypeVar("T")
CPU = torch.device("cpu")


def resolve_device(asked: str) -> torch.device:
    """The device for ``asked``: "cpu", "cuda", or "auto", a GPU where there is one and work is done here.

    A GPU is made to compute as the CPU does for the rest of the process: float32 in float32, not in TF32, in
    which cuDNN convolves by default, and convolutions the same way each time.

    Raises:
        DeviceError: "cuda" is asked for and there is none, or ``executors`` has work done elsewhere.
    """
    if asked == "cpu" or (asked == "auto" and not current().in_process):
        return CPU
    if not current().in_process:
        raise DeviceError("--device cuda computes in this process: use --executor threads, or --device cpu")
    if not torch.cuda.is_available():
        if asked == "auto":
            return CPU
        built = "sees no GPU" if torch.version.cuda else "is built for the CPU alone"
        raise DeviceError(
            f"--device cuda needs a GPU and a PyTorch for CUDA, and PyTorch {torch.__version__} {built}: "
            "use a machine that has both, or --device cpu"
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", torch.cuda.current_device())


def signature_of(device: torch.device) -> str:
    """What tells this device from others that may round otherwise."""
    if device.type == "cpu":
        return "cpu"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def device_of(module: nn.Module) -> torch.device:
    """Where the tensors of ``module`` lie; the CPU if it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), CPU)


def on(device: torch.device, value: T) -> T:
    """``value`` with all tensors in it on ``device``, see ``each_tensor``."""
    return each_tensor(value, lambda tensor: tensor.to(device))


def each_tensor(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """``value``, a tensor or tuples, lists, dicts and dataclasses of them, with every tensor changed.

    It is ``value`` itself where ``change`` gives back what it was given.
    """
    held: Any = value
    rebuild: Callable[[dict[Any, Any]], Any]
    if isinstance(held, Tensor):
        made: Any = change(held)
        return cast(T, made)
    if isinstance(held, dict):
        parts, rebuild = held, dict
    elif isinstance(held, tuple | list):
        parts, rebuild = dict(enumerate(held)), lambda made: type(held)(made.values())
    elif dataclasses.is_dataclass(held) and not isinstance(held, type):
        names = [field.name for field in dataclasses.fields(held)]
        parts, rebuild = {n: getattr(held, n) for n in names}, lambda made: dataclasses.replace(held, **made)
    else:
        return value
    made = {name: each_tensor(own, change) for name, own in parts.items()}
    return value if all(made[name] is parts[name] for name in parts) else cast(T, rebuild(made))


def placed(device: torch.device, *networks: nn.Module) -> tuple[nn.Module, ...]:
    """``networks`` themselves on the CPU, copies of them on a GPU; what they share is copied once."""
    return networks if device.type == "cpu" else copied(device, *networks)


def copied(
    device: torch.device, *networks: nn.Module, known: Mapping[int, Any] | None = None
) -> tuple[nn.Module, ...]:
    """Copies of ``networks`` on ``device``, wherever they lie; what they share is copied once.

    ``known`` are, by the id of what they hold, what the copies have in its place.
    """
    memo: dict[int, Any] = dict(known or {})
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            if id(tensor) not in memo:
                there = tensor.detach().to(device, copy=True)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
        memo.update((id(own), own.detach().to(device, copy=True)) for own in _computed(network))
    made = tuple(copy.deepcopy(network, memo) for network in networks)
    for network in made:
        if isinstance(network, fx.GraphModule):
            _move_graph(network, device)
    return made


def _computed(network: nn.Module) -> Iterator[Tensor]:
    """Attributes that were computed with gradients, which ``deepcopy`` refuses.

    Such are pruned weights, those of ``torch.nn.utils.weight_norm``, and maps that a forward keeps to plot.
    """
    for module in network.modules():
        for value in vars(module).values():
            for own in tree_leaves(value):
                if isinstance(own, Tensor) and not own.is_leaf:
                    yield own


def _move_graph(network: fx.GraphModule, device: torch.device) -> None:
    """A graph says where it makes tensors: where it was traced."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in network.graph.nodes:
        node.args = tree_map(moved, node.args)
        node.kwargs = tree_map(moved, node.kwargs)
    network.recompile()
