"""The graph of an exported program as a network of modules, so that its layers are found like any other."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from svd2onnx.network.outputs import NAMELESS, names_of
from svd2onnx.sources.graph_operators import Tensors, layer_of, operator_of

_ASSERTIONS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"}


def as_modules(graph: fx.Graph, tensors: Tensors) -> fx.GraphModule:
    """The network that ``graph`` computes, with flat inputs, and outputs flat or in a dict.

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
        layer = layer_of(node, known)
        if layer is None:
            continue
        key = operator_of(node), layer.weight, *layer.settings
        if key not in made:
            aliases = names[_place_of(known[layer.weight])]
            made[key] = _free_name(root, [layer.weight, *aliases], set(made.values()))
            _put(root, made[key], layer.build())
        with graph.inserting_before(node):
            call = graph.create_node("call_module", made[key], (layer.input,))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    _tidy(graph)
    for node in graph.nodes:
        if node.op == "get_attr" and not _has(root, node.target):
            _put(root, node.target, known[node.target])
    graph.set_codegen(fx.graph.CodeGen())
    network = fx.GraphModule(root, graph)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network


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
            index = user.args[1]
            assert isinstance(results, tuple | list) and isinstance(index, int)
            user.replace_all_uses_with(results[index])
            module.graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(results)
        module.graph.erase_node(node)
        if not inner.users:
            module.graph.erase_node(inner)


def _place_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _free_name(root: nn.Module, weights: Sequence[str], taken: set[str]) -> str:
    """A module's name, after one of its weight's names, that no other module has."""
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
        if not node.users and (operator_of(node) in _ASSERTIONS or node.op == "get_attr"):
            graph.erase_node(node)
    (output,) = (node for node in graph.nodes if node.op == "output")
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]
    if not leaves:
        raise ValueError("the program gives no tensor")
    names = _output_names(graph, output)
    output.args = (
        dict(zip(names, leaves, strict=True)) if names else tuple(leaves) if len(leaves) > 1 else leaves[0],
    )


def _output_names(graph: fx.Graph, output: fx.Node) -> list[str]:
    """What the program's structure calls its tensors; nothing where it has no names."""
    structure = getattr(graph._codegen, "pytree_info", None)
    if structure is None or structure.out_spec is None:
        return []
    leaves = torch.utils._pytree.tree_leaves(output.args)
    if structure.out_spec.num_leaves != len(leaves):
        return []
    stand_ins = [torch.empty(0) if isinstance(leaf, fx.Node) else None for leaf in leaves]
    names = names_of(torch.utils._pytree.tree_unflatten(stand_ins, structure.out_spec))
    return names if any(name.split("_")[0] != NAMELESS for name in names) else []
