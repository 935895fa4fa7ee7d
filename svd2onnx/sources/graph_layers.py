"""The graph of an exported program as a network of modules, so that its layers are found like any other.

    linear(x, w, b)                          nn.Linear
    matmul(x, m), addmm(b, x, m), m = w or w^T   nn.Linear
    conv1d, conv2d, conv3d, convolution      nn.Conv1d, nn.Conv2d, nn.Conv3d
    embedding(w, ids)                        nn.Embedding
    batch_norm(x, ...)                       nn.BatchNorm1d, 2d, 3d, which is then folded

where the weights are parameters, named as these are. All other operators stay as they are.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

Tensors = dict[str, Tensor]
"""The tensors of a program by name; those that share memory are one parameter."""
_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    3: nn.Conv1d,
    4: nn.Conv2d,
    5: nn.Conv3d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_ASSERTIONS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"}


def as_modules(graph: fx.Graph, tensors: Tensors) -> fx.GraphModule:
    """The network that ``graph`` computes, with flat inputs and outputs.

    Args:
        graph: of an unlifted program: its weights are its ``get_attr`` nodes. It is changed.
        tensors: what these nodes name.
    """
    shared: dict[tuple[Any, ...], nn.Parameter] = {}
    names: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            key = _place_of(tensor)
            names[key].append(name)
            shared.setdefault(key, nn.Parameter(tensor.detach(), requires_grad=False))
    parameters = {name: shared[key] for key, own in names.items() for name in own}
    known = {**tensors, **parameters}
    root = nn.Module()
    made: dict[tuple[Any, ...], str] = {}
    for node in list(graph.nodes):
        layer = _layer(node, known)
        if layer is None:
            continue
        key, weight, x, build = layer
        if key not in made:
            aliases = names[_place_of(known[weight])]
            made[key] = _free_name(root, [weight, *aliases], made)
            _put(root, made[key], build())
        with graph.inserting_before(node):
            call = graph.call_module(made[key], (x,))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    _tidy(graph)
    for node in graph.nodes:
        if node.op == "get_attr" and not _has(root, node.target):
            _put(root, node.target, known[node.target])
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(root, graph)


def inline_modes(module: fx.GraphModule) -> None:
    """Put the nodes of ``wrap_with_set_grad_enabled`` into the graph itself: gradients are wanted here."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or str(node.target) != "wrap_with_set_grad_enabled":
            continue
        _enabled, inner, *arguments = node.args
        body = module.get_submodule(inner.target)
        assert isinstance(body, fx.GraphModule)
        inline_modes(body)
        places = [own for own in body.graph.nodes if own.op == "placeholder"]
        values: dict[fx.Node, Any] = dict(zip(places, arguments, strict=True))
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(body.graph, values)
        for user in list(node.users):
            if user.target is not operator.getitem:
                continue
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(results)
        module.graph.erase_node(node)


def _layer(
    node: fx.Node, tensors: Tensors
) -> tuple[tuple[Any, ...], str, fx.Node, Callable[[], nn.Module]] | None:
    """What makes its module one, the name of its weight, its input, and the module; None for other operators."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    kind = node.target.name().partition("::")[2].partition(".")[0]
    if kind not in _BUILDERS:
        return None
    arguments = _bound(node)
    found = _BUILDERS[kind](arguments, tensors)
    if found is None:
        return None
    weight, x, build, settings = found
    return (kind, weight, *settings), weight, x, build


Found = tuple[str, fx.Node, Callable[[], nn.Module], tuple[Any, ...]]


def _linear(a: dict[str, Any], tensors: Tensors) -> Found | None:
    weight, bias = _name(a["weight"], tensors), _name(a["bias"], tensors)
    if weight is None or tensors[weight].ndim != 2 or (a["bias"] is not None and bias is None):
        return None
    return weight, a["input"], lambda: _linear_of(tensors, weight, bias, is_transposed=False), (bias,)


def _product(a: dict[str, Any], tensors: Tensors) -> Found | None:
    """Of x with a matrix [in, out], or with the transposed of one."""
    x, matrix = a.get("mat1", a.get("self")), a.get("mat2", a.get("other"))
    added = a["self"] if "mat1" in a else None
    bias = _name(added, tensors)
    if a.get("alpha", 1) != 1 or a.get("beta", 1) != 1 or (added is not None and bias is None):
        return None
    if bias is not None and tensors[bias].ndim != 1:
        return None
    turned = _is_transposing(matrix)
    weight = _name(matrix.args[0] if turned else matrix, tensors)
    if weight is None or tensors[weight].ndim != 2 or not isinstance(x, fx.Node):
        return None
    return weight, x, lambda: _linear_of(tensors, weight, bias, is_transposed=not turned), (bias, turned)


def _convolution(a: dict[str, Any], tensors: Tensors) -> Found | None:
    weight, bias = _name(a["weight"], tensors), _name(a["bias"], tensors)
    if weight is None or tensors[weight].ndim not in _CONVOLUTIONS or a.get("transposed"):
        return None
    if a["bias"] is not None and bias is None:
        return None
    w, dims = tensors[weight], tensors[weight].ndim - 2
    padding = a["padding"] if isinstance(a["padding"], str) else _spread(a["padding"], dims)
    stride, dilation, groups = _spread(a["stride"], dims), _spread(a["dilation"], dims), a["groups"]

    def build() -> nn.Module:
        module = _CONVOLUTIONS[w.ndim](
            w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), stride, padding, dilation, groups,
            bias is not None, device="meta",
        )  # fmt: skip
        return _with(module, weight=w, bias=None if bias is None else tensors[bias])

    return weight, a["input"], build, (bias, stride, padding, dilation, groups)


def _embedding(a: dict[str, Any], tensors: Tensors) -> Found | None:
    weight = _name(a["weight"], tensors)
    if weight is None or tensors[weight].ndim != 2:
        return None

    def build() -> nn.Module:
        return _with(nn.Embedding(*tensors[weight].shape, device="meta"), weight=tensors[weight])

    return weight, a["indices"], build, ()


def _batch_norm(a: dict[str, Any], tensors: Tensors) -> Found | None:
    parts = {name: _name(a[name], tensors) for name in ("weight", "bias", "running_mean", "running_var")}
    value = a["input"].meta.get("val")
    if None in parts.values() or a["training"] or not isinstance(value, Tensor) or value.ndim not in _NORMS:
        return None
    weight = parts["weight"]
    assert weight is not None

    def build() -> nn.Module:
        norm = _NORMS[value.ndim](len(tensors[weight]), eps=a["eps"], momentum=a["momentum"], device="meta")
        norm.num_batches_tracked = None
        return _with(norm, **{name: tensors[own] for name, own in parts.items() if own is not None})

    return weight, a["input"], build, (*parts.values(), a["eps"])


_BUILDERS: dict[str, Callable[[dict[str, Any], Tensors], Found | None]] = {
    "linear": _linear,
    "matmul": _product,
    "mm": _product,
    "addmm": _product,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
}


def _bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, with the defaults of its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        bound[argument.name] = (
            node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        )
    return bound


def _name(value: Any, tensors: Tensors) -> str | None:
    """The name of the tensor that a node reads, None if it is no tensor of the program."""
    if isinstance(value, fx.Node) and value.op == "get_attr" and value.target in tensors:
        return str(value.target)
    return None


def _is_transposing(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    kind, rest = str(node.target), list(node.args[1:])
    turns = kind == "aten.permute.default" and rest == [[1, 0]]
    swaps = kind == "aten.transpose.int" and sorted(d % 2 for d in rest if isinstance(d, int)) == [0, 1]
    return kind in ("aten.t.default", "aten.numpy_T.default") or turns or swaps


def _linear_of(tensors: Tensors, weight: str, bias: str | None, *, is_transposed: bool) -> nn.Module:
    w = tensors[weight]
    matrix = nn.Parameter(w.detach().T.contiguous(), requires_grad=False) if is_transposed else w
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, device="meta")
    return _with(linear, weight=matrix, bias=None if bias is None else tensors[bias])


def _with(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        setattr(module, name, tensor)
    return module.eval()


def _spread(value: Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(value) * dims if len(value) == 1 else tuple(value)


def _place_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _free_name(root: nn.Module, weights: Sequence[str], made: dict[tuple[Any, ...], str]) -> str:
    """A module's name, after one of its weight's names, that no other module has."""
    taken = set(made.values())
    names = [weight.removesuffix(".weight") if weight != "weight" else "layer" for weight in weights]
    numbered = (f"{names[0]}_{count}" for count in range(2, 2 + len(taken) + len(names)))
    return next(name for name in (*names, *numbered) if name not in taken and not _has(root, name))


def _has(root: nn.Module, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(root, part):
            return False
        root = getattr(root, part)
    return True


def _put(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        if not hasattr(root, folder):
            setattr(root, folder, nn.Module())
        root = getattr(root, folder)
    if isinstance(value, nn.Module | nn.Parameter):
        setattr(root, last, value)
    else:
        root.register_buffer(last, value)


def _tidy(graph: fx.Graph) -> None:
    """Remove assertions, which hold for any input that the network takes, and what nothing reads."""
    for node in reversed(list(graph.nodes)):
        kind = node.target.name().partition("::")[2].partition(".")[0] if _is_operator(node) else ""
        if not node.users and (kind in _ASSERTIONS or node.op == "get_attr"):
            graph.erase_node(node)
    for node in _outputs(graph):
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)]
        node.args = (tuple(leaves) if len(leaves) > 1 else leaves[0],) if leaves else node.args
    graph.eliminate_dead_code()


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _outputs(graph: fx.Graph) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if node.op == "output")
