"""What layers are called: as their modules in the network, for a graph knows operators alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from svd2onnx.tracing.constants import Place, place_of

_ENDINGS = re.compile(r"\.(weight|parametrizations\.weight\.\w+|weight_(g|v|orig|mask|u)|running_mean)$")
"""Of parameters that a module's weight is, or is computed from."""
_REPEATED = re.compile(r"@\d+")


@dataclass(frozen=True)
class Names:
    """Names of a network's tensors by their place, and of its modules by where the tracer finds them."""

    tensors: Mapping[Place, Sequence[str]] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, traced: nn.Module | None = None) -> Names:
        """Those of ``network``, where ``traced`` is traced in its place and holds its modules elsewhere."""
        parameters = network.named_parameters(remove_duplicate=False)
        tensors = (*parameters, *network.named_buffers(remove_duplicate=False))
        own = {module: name for name, module in network.named_modules()}
        modules = [] if traced is None else traced.named_modules(remove_duplicate=False)
        found = {path: own[module] for path, module in modules if module in own}
        return cls(by_place(tensors), found)

    def of_tensor(self, name: str, tensor: Tensor) -> Sequence[str]:
        """All names of a tensor, which the tracer calls ``name``."""
        return self.tensors.get(place_of(tensor)) or (name,)

    def of_layer(self, node: fx.Node, weights: Sequence[str]) -> list[str]:
        """Names for the layer that ``node`` computes with what is made of ``weights``, the best first.

        That is the module that calls the operator, if the weight is its own, or else the weight.
        """
        path = self._path(node)
        own = [re.sub(_ENDINGS, "", name) for name in weights if re.search(_ENDINGS, name)]
        whole = len(weights) > 1 and all(name.startswith(f"{path}.") for name in weights)
        first = [path] if path and (path in own or whole) else []
        rest = own or [re.sub(r"_weight$", "", name) if name != "weight" else "layer" for name in weights]
        return list(dict.fromkeys((*first, *rest)))

    def _path(self, node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = re.sub(_REPEATED, "", stack[-1][0]) if stack else ""
        return self.modules.get(path, path)


def by_place(tensors: Iterable[tuple[str, Tensor]]) -> dict[Place, list[str]]:
    """The names of ``tensors`` by their place, in order."""
    names: dict[Place, list[str]] = defaultdict(list)
    for name, tensor in tensors:
        names[place_of(tensor)].append(name)
    return dict(names)
