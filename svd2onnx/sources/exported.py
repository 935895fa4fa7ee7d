"""Exported programs (.pt2 of torch.export.save): no Python class is needed, the graph itself is rewritten."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from svd2onnx.compute.quiet import quiet
from svd2onnx.network.attributes import find, put
from svd2onnx.network.outputs import is_named, names_of
from svd2onnx.sources.inputs import ROWS, InputSpec
from svd2onnx.sources.network import Network
from svd2onnx.sources.program_safety import safe_copy
from svd2onnx.sources.sample_axis import are_samples
from svd2onnx.tracing.constants import written_by
from svd2onnx.tracing.graph_network import flattened, is_tensor, unlifted
from svd2onnx.tracing.operators import bound, operator_of
from svd2onnx.tracing.trace import LOGGERS
from svd2onnx.values.errors import SourceError, one_line
from svd2onnx_runtime.dimensions import BATCH, SEQUENCE

_SEQUENCE = 16
"""Of a dynamic axis that the program's example does not tell."""
_TRAINING = "it was exported in training mode: call .eval() on the network and export it again"


def load_exported(path: Path) -> Network:
    """The network of the program at ``path``, with flat inputs named as the program names them.

    Raises:
        SourceError: the file is damaged or not safe, or the program changes its weights or inputs as it runs.
    """
    with safe_copy(path) as copy, quiet(LOGGERS, logging.CRITICAL):
        try:
            program = torch.export.load(copy)
            _check(program, path)
            model, specs = _network(unlifted(program), program)
        except SourceError:
            raise
        except Exception as error:
            line = one_line(error.__cause__ or error)
            raise SourceError(
                f"{path} cannot be loaded: {type(error).__name__}: {line}; expected a program that "
                f"torch.export.save of PyTorch {torch.__version__} or a little older wrote: copy it again, "
                "or export it again"
            ) from error
    if not specs:
        raise SourceError(f"{path} takes no tensor as input; expected a program that does")
    return Network(path, model, specs)


def _check(program: torch.export.ExportedProgram, path: Path) -> None:
    """A network in evaluation leaves its weights and its inputs as they are, and drops nothing."""
    inputs = set(program.graph_signature.user_inputs)
    states = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    written = {
        own.name for node in program.graph.nodes for own in written_by(node) if own.op == "placeholder"
    }
    written |= set((program.graph_signature.user_inputs_to_mutate or {}).values())
    changed = [states[name] for name in written if name in states]
    changed += (program.graph_signature.buffers_to_mutate or {}).values()
    if changed:
        raise SourceError(f"{path} changes {changed[0]!r} as it runs: {_TRAINING}")
    if written & inputs:
        raise SourceError(
            f"{path} changes its inputs as it runs; expected a program that leaves them as they are"
        )
    for node in program.graph.nodes:
        if operator_of(node) == "dropout" and node.args[2] is True:
            raise SourceError(f"{path} drops values at random: {_TRAINING}")


def _network(
    module: fx.GraphModule, program: torch.export.ExportedProgram
) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    graph = module.graph
    specs: list[InputSpec] = []
    names: dict[Any, str] = {}
    examples = _examples(program)
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            if node.users:
                raise ValueError(f"the input {node.target!r} is no tensor, and the network depends on it")
            graph.erase_node(node)
            continue
        specs.append(_spec(node, value, examples.get(node.target), names, program, not specs))
    flat = flattened(module, _output_names(module))
    # Of a tensor with several names the graph keeps one, and the others tell what layers are called.
    for name, tensor in program.state_dict.items():
        if find(flat, name) is None:
            put(flat, name, tensor)
    flat = flat.eval().requires_grad_(False)
    limited = tuple(_spec_with_limit(spec, flat) for spec in specs)
    symbol = next((symbol for symbol, name in names.items() if name == BATCH), None)
    if symbol is not None and not are_samples(flat, limited, symbol):
        limited = tuple(_renamed(spec, BATCH, "dim_0") for spec in limited)
    return flat, limited


def _spec(
    node: fx.Node,
    value: Tensor,
    example: Tensor | None,
    names: dict[Any, str],
    program: torch.export.ExportedProgram,
    is_first: bool,
) -> InputSpec:
    """``names`` are those given to sizes so far: "batch", "sequence" for texts, "dim_1" and so on."""
    shape: list[int] = []
    dynamic: dict[int, str] = {}
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        symbol = size.node.expr
        is_texts = is_first or dynamic.get(0) == BATCH  # and no edges [2, count] of a graph
        is_text = axis == 1 and is_texts and not value.is_floating_point() and SEQUENCE not in names.values()
        text = SEQUENCE if is_text else ""
        name = names.setdefault(symbol, BATCH if is_first and axis == 0 else text or f"dim_{len(names)}")
        dynamic[axis] = name
        known = example.shape[axis] if example is not None else ROWS if axis == 0 else _SEQUENCE
        if not symbol.is_Symbol:  # not every size fits, such as 4 * s, and that of the example does
            shape.append(known if example is not None else int(size.node.hint or known))
            continue
        wanted = max(known, ROWS) if name == BATCH else max(known, 2)
        shape.append(_within(wanted, symbol, program))
    return InputSpec(
        str(node.target), tuple(shape), value.dtype, dynamic, 0 if example is None else int_limit(example)
    )


def _renamed(spec: InputSpec, old: str, new: str) -> InputSpec:
    dynamic = {axis: new if name == old else name for axis, name in (spec.dynamic or {}).items()}
    return replace(spec, dynamic=dynamic)


def _within(wanted: int, expression: Any, program: torch.export.ExportedProgram) -> int:
    limits = program.range_constraints.get(expression)
    if limits is None:
        return wanted
    upper = int(limits.upper) if limits.upper.is_Integer else wanted
    lower = int(limits.lower) if limits.lower.is_Integer else 0
    return max(min(wanted, upper), lower)


def int_limit(example: Tensor) -> int:
    """One more than the largest number of an example of integers."""
    if example.is_floating_point() or not example.numel():
        return 0
    return max(2, int(example.max()) + 1)


def _spec_with_limit(spec: InputSpec, model: fx.GraphModule) -> InputSpec:
    """Integers that go to tables directly are below the rows of the least of them."""
    (node,) = [node for node in model.graph.nodes if node.op == "placeholder" and node.target == spec.name]
    tables = [bound(user)["weight"].meta["val"] for user in node.users if operator_of(user) == "embedding"]
    limit = min((len(table) for table in tables), default=spec.limit or 2)
    return InputSpec(spec.name, spec.shape, spec.dtype, spec.dynamic, limit)


def _examples(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    if program.example_inputs is None:
        return {}
    leaves = torch.utils._pytree.tree_leaves(program.example_inputs)
    names = program.graph_signature.user_inputs
    found = zip(names, leaves, strict=False) if len(names) == len(leaves) else ()
    return {str(name): leaf for name, leaf in found if isinstance(leaf, Tensor)}


def _output_names(module: fx.GraphModule) -> list[str]:
    """What the program's structure calls its tensors; nothing where it has no names."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    structure = getattr(module.graph._codegen, "pytree_info", None)
    leaves = torch.utils._pytree.tree_leaves(output.args)
    if structure is None or structure.out_spec is None or structure.out_spec.num_leaves != len(leaves):
        return []
    stand_ins = [torch.empty(0) if is_tensor(leaf) else None for leaf in leaves]
    names = names_of(torch.utils._pytree.tree_unflatten(stand_ins, structure.out_spec))
    return names if is_named(names) else []
