"""Exported programs (.pt2 of torch.export.save): no Python class is needed, the graph itself is rewritten."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from svd2onnx.sources.graph_layers import as_modules, inline_modes
from svd2onnx.sources.graph_operators import operator_of
from svd2onnx.sources.inputs import ROWS, InputSpec
from svd2onnx.sources.network import Network
from svd2onnx.sources.program_safety import safe_copy
from svd2onnx.values.errors import SourceError, one_line

_SEQUENCE = 16
"""Of a dynamic axis that the program's example does not tell."""
_TRAINING = "it was exported in training mode: call .eval() on the network and export it again"


def load_exported(path: Path) -> Network:
    """The network of the program at ``path``, with flat inputs named as the program names them.

    Raises:
        SourceError: the file is damaged or not safe, or the program changes its weights or inputs as it runs.
    """
    with safe_copy(path) as copy, _quiet():
        try:
            program = torch.export.load(copy)
            _check(program, path)
            unlifted = program.module(check_guards=False)
            assert isinstance(unlifted, fx.GraphModule)
            model, specs = _network(unlifted, program)
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
    written = {name for node in program.graph.nodes for name in _written(node)}
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


def _written(node: fx.Node) -> Iterator[str]:
    """The inputs of a program that an operator changes in place."""
    if operator_of(node):
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):  # type: ignore[union-attr]
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written and isinstance(value, fx.Node) and value.op == "placeholder":
                yield value.name


def _network(
    unlifted: fx.GraphModule, program: torch.export.ExportedProgram
) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    inline_modes(unlifted)
    graph = unlifted.graph
    specs: list[InputSpec] = []
    names: dict[str, str] = {}
    examples = _examples(program)
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            if node.users:
                raise ValueError(f"the input {node.target!r} is no tensor, and the network depends on it")
            graph.erase_node(node)
            continue
        specs.append(_spec(node, value, examples.get(node.target), names, program, not specs))
    tensors = {node.target: _tensor(unlifted, node.target) for node in graph.nodes if node.op == "get_attr"}
    model = as_modules(graph, tensors)
    return model.eval(), tuple(_spec_with_limit(spec, model) for spec in specs)


def _spec(
    node: fx.Node,
    value: Tensor,
    example: Tensor | None,
    names: dict[str, str],
    program: torch.export.ExportedProgram,
    is_first: bool,
) -> InputSpec:
    """``names`` are those given to symbols so far: "batch", "sequence" for texts, "dim_1" and so on."""
    shape: list[int] = []
    dynamic: dict[int, str] = {}
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        symbol = str(size.node.expr)
        text = (
            "sequence"
            if axis == 1 and not value.is_floating_point() and "sequence" not in names.values()
            else ""
        )
        name = names.setdefault(symbol, "batch" if is_first and axis == 0 else text or f"dim_{len(names)}")
        dynamic[axis] = name
        known = example.shape[axis] if example is not None else ROWS if axis == 0 else _SEQUENCE
        wanted = max(known, ROWS) if name == "batch" else max(known, 2)
        shape.append(_within(wanted, size.node.expr, program))
    return InputSpec(
        str(node.target), tuple(shape), value.dtype, dynamic, 0 if example is None else int_limit(example)
    )


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
    modules = [model.get_submodule(user.target) for user in node.users if user.op == "call_module"]
    tables = [module.num_embeddings for module in modules if isinstance(module, nn.Embedding)]
    limit = min(tables) if tables else spec.limit or 2
    return InputSpec(spec.name, spec.shape, spec.dtype, spec.dynamic, limit)


def _examples(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    if program.example_inputs is None:
        return {}
    leaves = torch.utils._pytree.tree_leaves(program.example_inputs)
    names = program.graph_signature.user_inputs
    found = zip(names, leaves, strict=False) if len(names) == len(leaves) else ()
    return {str(name): leaf for name, leaf in found if isinstance(leaf, Tensor)}


def _tensor(module: nn.Module, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """What the loader says of its own formats is not the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
