"""The graph of a program as a network of modules: its layers are modules, all else are operators.

    GraphModule
        encoder.layer.0.query    nn.Linear, called by the graph
        positions                a parameter that another operator takes

Nothing can depend on more of a layer than what it computes, so another module may take its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from svd2onnx.network.attributes import find, put
from svd2onnx.network.modules import StoredWeight
from svd2onnx.tracing.complex_numbers import without_complex
from svd2onnx.tracing.constants import Constant, Constants, Place, place_of, written_by
from svd2onnx.tracing.higher_order import inline_modes
from svd2onnx.tracing.names import Names
from svd2onnx.tracing.nodes import call_steps
from svd2onnx.tracing.operators import Layer, bound, layer_of, operator_of
from svd2onnx.tracing.promotion import with_equal_types
from svd2onnx.tracing.stored import StoredArgument, stored_arguments
from svd2onnx.values.errors import ExportError

_ASSERTIONS = {
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size",
    "sym_constrain_range",
}  # fmt: skip
_IDENTITIES = {"detach", "alias", "dropout", "feature_dropout"}
"""In evaluation: gradients are wanted everywhere."""


def unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program with its weights as ``get_attr`` nodes, and no modes.

    What it writes into its own tensors goes into copies: each call begins with the state it was traced in.

    Raises:
        ExportError: see ``inline_modes``.
    """
    if any(_is_of_vmap(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # which leaves operators on whole batches
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    inline_modes(module)
    _renormalize_at_once(module.graph)
    written = {own for node in module.graph.nodes for own in written_by(node) if own.op == "get_attr"}
    for node in written:
        with module.graph.inserting_after(node):
            copy = module.graph.call_function(torch.ops.aten.clone.default, (node,))
        copy.meta = dict(node.meta)
        for user in [user for user in node.users if user is not copy]:
            user.replace_input_with(node, copy)
    return module


def flattened(module: fx.GraphModule, outputs: Sequence[str] = ()) -> fx.GraphModule:
    """``module`` with flat inputs, and outputs flat or in a dict.

    Args:
        module: see ``unlifted``; its graph is changed.
        outputs: names of its outputs; none where they have none.
    """
    _tidy(module.graph, outputs)
    module.graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, module.graph)


def as_network(module: fx.GraphModule, names: Names) -> fx.GraphModule:
    """The network that ``module`` computes.

    Args:
        module: see ``flattened``; its graph is changed.
        names: of its tensors and layers.

    Raises:
        ExportError: it draws from a generator of its own.
    """
    graph = module.graph
    tensors: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in tensors:
            tensors[node.target] = find(module, node.target)
    without_complex(graph, tensors)
    with_equal_types(graph)
    builder = _Builder(graph, tensors, names)
    _forget_updates(graph)
    for node in list(graph.nodes):
        if operator_of(node) in _IDENTITIES and not _drops(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    builder.replace_layers()
    _remove_unread(graph)
    builder.keep_the_rest()
    network = fx.GraphModule(builder.root, graph)
    for node in network.graph.nodes:
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network.eval().requires_grad_(False)


class _Builder:
    """Puts layers in the place of operators; their modules hang under ``root``."""

    def __init__(self, graph: fx.Graph, tensors: dict[str, Any], names: Names) -> None:
        self.root = nn.Module()
        self._graph, self._tensors, self._names = graph, tensors, names
        self._constants = Constants(graph, tensors)
        self._parameters: dict[Place, nn.Parameter] = {}
        self._made: dict[tuple[Any, ...], str] = {}

    def replace_layers(self) -> None:
        for node in list(self._graph.nodes):
            layer = layer_of(node, self._constants)
            if layer is not None:
                constant = self._constants.of(node)
                if constant is None:
                    self._replace(node, layer)
                else:
                    self._settle(node, constant)
                continue
            for argument in stored_arguments(node, self._constants):
                self._store(node, argument)

    def keep_the_rest(self) -> None:
        """The tensors and parts of the graph that other operators take."""
        kept: dict[str, str] = {}
        for node in self._graph.nodes:
            if node.op == "get_attr":
                if node.target not in kept:
                    kept[node.target] = self._kept(node.target)
                node.target = kept[node.target]

    def _kept(self, target: str) -> str:
        """Keep a tensor or a part of the graph, and say under which name."""
        name, value = target, self._tensors[target]
        if isinstance(value, torch.Generator):
            raise ExportError(
                "forward draws random numbers from a torch.Generator, and an ONNX file cannot draw the same: "
                "draw them once, in __init__, and keep them by register_buffer"
            )
        if isinstance(value, nn.Parameter):
            value = self._parameter(value)
        if isinstance(value, Tensor):
            name = self._names.of_tensor(target, value)[0]
        # A layer that is replaced takes its tensors along: what else reads one needs it elsewhere.
        if find(self.root, name) is not value or not self._is_reachable(name):
            name = self._unused(name)
            put(self.root, name, value)
        return name

    def _replace(self, node: fx.Node, layer: Layer) -> None:
        parameters = {name: self._parameter(own.tensor) for name, own in layer.weights.items()}
        key = (operator_of(node), layer.settings, *(id(own) for own in parameters.values()))
        if key not in self._made:
            self._made[key] = self._unused(
                *self._names.of_layer(node, self._aliases(next(iter(layer.weights.values()))))
            )
            put(self.root, self._made[key], _with(layer.build(), parameters))
        with self._graph.inserting_before(node):
            x = call_steps(self._graph, layer.input, layer.before)
            call = self._graph.create_node("call_module", self._made[key], (x,))
            call.meta = {**node.meta, "val": _output(node, x, layer)}
            result = call_steps(self._graph, call, layer.after)
        node.replace_all_uses_with(result)
        self._graph.erase_node(node)

    def _settle(self, node: fx.Node, constant: Constant) -> None:
        """A layer of constants is a constant too: what it gives is kept, and it is not."""
        name = f"constant_{len(self._tensors)}"
        self._tensors[name] = constant.tensor
        with self._graph.inserting_before(node):
            kept = self._graph.get_attr(name)
        kept.meta = dict(node.meta)
        node.replace_all_uses_with(kept)

    def _store(self, node: fx.Node, argument: StoredArgument) -> None:
        parameter = self._parameter(argument.weight.tensor)
        key = ("stored", argument.rows_of, id(parameter))
        if key not in self._made:
            self._made[key] = self._unused(*self._names.of_layer(node, self._aliases(argument.weight)))
            put(self.root, self._made[key], StoredWeight(parameter, argument.rows_of))
        with self._graph.inserting_before(node):
            call = self._graph.create_node("call_module", self._made[key], ())
        call.meta = dict(argument.node.meta)
        node.replace_input_with(argument.node, call)

    def _aliases(self, weight: Constant) -> list[str]:
        return [alias for name in weight.names for alias in self._names.of_tensor(name, self._tensors[name])]

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        """One for each tensor, laid out as layers expect it; new ones, for the user's stay as they are."""
        key = place_of(tensor)
        if key not in self._parameters:
            own = tensor.detach().contiguous()
            self._parameters[key] = nn.Parameter(own, requires_grad=False)
        return self._parameters[key]

    def _unused(self, *names: str) -> str:
        """The first of ``names`` that is free, or the first one with a number behind it."""
        free = next((name for name in names if self._is_free(name)), None)
        if free is not None:
            return free
        name = names[0] if self._is_reachable(names[0]) else names[0].replace(".", "_")
        numbered, number = name, 1
        while not self._is_free(numbered):
            number += 1
            numbered = f"{name}_{number}"
        return numbered

    def _is_free(self, name: str) -> bool:
        return find(self.root, name) is None and self._is_reachable(name)

    def _is_reachable(self, name: str) -> bool:
        """Whether no tensor or layer stands on the way to ``name``."""
        folders, made = name.split(".")[:-1], set(self._made.values())
        paths = [".".join(folders[:count]) for count in range(1, len(folders) + 1)]
        return not any(path in made or isinstance(find(self.root, path), Tensor) for path in paths)


def _output(node: fx.Node, x: fx.Node, layer: Layer) -> Any:
    """What stands for the layer's output; the node's own, where nothing follows."""
    value = node.meta.get("val")
    if not layer.after or not isinstance(value, Tensor):
        return value
    before: Tensor = x.meta["val"]
    return before.new_empty((*before.shape[:-1], layer.weights["weight"].tensor.shape[0]))


def _with(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """``module`` with these tensors; what is a buffer there stays one."""
    for name, parameter in parameters.items():
        is_parameter = isinstance(getattr(module, name), nn.Parameter)
        setattr(module, name, parameter if is_parameter else parameter.detach())
    return module.eval()


def _has_effects(node: fx.Node) -> bool:
    return node.op == "call_function" and node.is_impure()


def _is_of_vmap(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "_add_batch_dim"


def _renormalize_at_once(graph: fx.Graph) -> None:
    """An embedding with ``max_norm`` scales the rows it is asked for and writes them back: here all, once."""
    for node in list(graph.nodes):
        if operator_of(node) != "embedding_renorm_":
            continue
        written, _rows, most, order = node.args
        table = written.args[0] if operator_of(written) == "detach" else written
        with graph.inserting_before(node):
            scaled = graph.call_function(torch.ops.aten.renorm.default, (table, order, 0, most))
        scaled.meta = dict(table.meta)
        for user in list(table.users):
            if operator_of(user).lstrip("_") in ("embedding", "embedding_bag"):
                user.replace_input_with(table, scaled)
        node.replace_all_uses_with(scaled)
        graph.erase_node(node)


def _forget_updates(graph: fx.Graph) -> None:
    """A normalization that stays in training takes the batch's statistics, and only writes to its own.

    Given both, the exporter takes the wrong ones.
    """
    for node in graph.nodes:
        if operator_of(node) == "batch_norm" and bound(node)["training"]:
            node.args = (*node.args[:3], None, None, *node.args[5:])


def _drops(node: fx.Node) -> bool:
    return operator_of(node).endswith("dropout") and node.args[2] is True


def _tidy(graph: fx.Graph, names: Sequence[str]) -> None:
    (output,) = (node for node in graph.nodes if node.op == "output")
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output.args) if is_tensor(leaf)]
    if not leaves:
        raise ValueError("the program gives no tensor")
    if names:
        output.args = (dict(zip(names, leaves, strict=True)),)
    else:
        output.args = (tuple(leaves) if len(leaves) > 1 else leaves[0],)
    _remove_unread(graph)


def is_tensor(leaf: object) -> bool:
    """Whether ``leaf`` of a graph's output is computed, and no number, such as a size of an input."""
    return isinstance(leaf, fx.Node) and not isinstance(leaf.meta.get("val"), torch.SymInt | torch.SymFloat)


def _remove_unread(graph: fx.Graph) -> None:
    """Remove assertions, which hold for any input that the network takes, and what nothing reads."""
    for node in reversed(list(graph.nodes)):
        is_read = node.users or node.op in ("placeholder", "output")
        if not is_read and (operator_of(node) in _ASSERTIONS or not _has_effects(node)):
            graph.erase_node(node)
