"""The graph of an exported program, as text from a stranger: only what is known to be harmless passes.

``torch.export.load`` evaluates sizes as Python expressions, looks targets up by name, imports what the layout
of inputs names, and writes node names into source code that it then compiles. So each string has a rule:

    target            an operator of ATen, or arithmetic of sizes; none that opens files
    expr_str          arithmetic of symbols and integers
    in_spec, out_spec tuples, lists and dicts of leaves
    name, as_name     an identifier
    as_string         a text that is only compared by operators
    any other         a dotted name; none that begins with two underscores, none that nn.Module has

What is not needed is left out (metadata, guards), and everything is put on the CPU.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,999}|")
_DOTTED = re.compile(r"[A-Za-z0-9_.-]{0,999}")
_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_SIZES = re.compile(r"_operator\.[a-z]+_?|math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt)")
_MODES = {"torch.ops.higher_order.wrap_with_set_grad_enabled"}
_OPENS_FILES = {"from_file"}
_ARITHMETIC = set(
    "Add Mul Max Min Abs Integer Rational Float floor ceiling Mod PythonMod FloorDiv CleanDiv CeilDiv "
    "IntTrueDiv FloatTrueDiv ToFloat TruncToInt TruncToFloat FloorToInt CeilToInt RoundToInt "
    "ModularIndexing Identity Where Eq Ne Lt Le Gt Ge Equality Unequality LessThan StrictLessThan "
    "GreaterThan StrictGreaterThan And Or "
    "Not".split()
)
_SYMBOL = re.compile(r"z?[suf]{1,2}\d{1,6}|[A-Za-z]\w{0,30}_\d{1,6}")
_LARGEST_POWER = 8
_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_LEFT_OUT: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
_NEVER = {"as_operator", "as_custom_obj", "custom_obj", "class_fqn"}
_DEEPEST = 200


class Unsafe(Exception):  # noqa: N818 - the sentence it makes is that of its caller
    """The text holds what an exported network does not need; the message says what."""


def cleaned(program: Any) -> Any:
    """The JSON of an exported program without what is not needed.

    Raises:
        Unsafe: a string in it breaks its rule.
    """
    if not isinstance(program, dict):
        raise Unsafe("its graph is no JSON object")
    return _cleaned(program, "", 0)


def _cleaned(value: Any, key: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise Unsafe(f"its graph is nested more than {_DEEPEST} deep")
    if key in _LEFT_OUT:
        return _LEFT_OUT[key]
    if key in _NEVER:
        raise Unsafe(f"it has an object of code of its own ({str(value)[:80]})")
    if key in ("device", "as_device") and isinstance(value, dict):
        return {"type": "cpu", "index": None}
    if key == "range_constraints" and isinstance(value, dict):
        # Those of sizes like 4*s0 follow from those of their symbols.
        value = {name: entry for name, entry in value.items() if _SYMBOL.fullmatch(name)}
    if isinstance(value, dict):
        for name in value:
            _check_dotted(name)
        return {name: _cleaned(entry, name, depth + 1) for name, entry in value.items()}
    if isinstance(value, list):
        return [_cleaned(entry, key, depth + 1) for entry in value]
    if isinstance(value, str):
        _RULES.get(key, _check_dotted)(value)
    return value


def _check_dotted(text: str) -> None:
    parts = text.split(".")
    if not _DOTTED.fullmatch(text) or any(part.startswith("__") for part in parts):
        raise Unsafe(f"it has the name {text[:80]!r}")


def check_tensor_name(text: str) -> None:
    """Names of weights and of constants become attributes of a module.

    Raises:
        Unsafe: one would change what a module is.
    """
    _check_dotted(text)
    if any(hasattr(nn.Module, part) for part in text.split(".")):
        raise Unsafe(f"a weight has the name {text[:80]!r}")


def _check_name(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise Unsafe(f"it has the name {text[:80]!r}, which is no identifier")


def _check_target(text: str) -> None:
    if _SIZES.fullmatch(text) or text in _MODES:
        return
    found = _OPERATOR.fullmatch(text)
    if found is None or found[1] in _OPENS_FILES:
        raise Unsafe(f"it calls {text[:80]!r}, which is no operator of PyTorch's own on tensors")
    packet = getattr(torch.ops.aten, found[1], None)
    if not isinstance(getattr(packet, found[2], None), torch._ops.OpOverload):
        raise Unsafe(f"it calls {text[:80]!r}, which PyTorch {torch.__version__} does not have")


def _check_expression(text: str) -> None:
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= 2000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _is_arithmetic(tree.body):
        raise Unsafe(f"it has the size {text[:80]!r}, which is no arithmetic")


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Constant(value=bool() | float()):
            return True
        case ast.Constant(value=int() as number):
            return number.bit_length() <= 64
        case ast.UnaryOp(operand=operand):
            return _is_arithmetic(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _is_arithmetic(left) and _is_small(right)
        case ast.BinOp(
            left=left,
            op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod(),
            right=right,
        ):
            return _is_arithmetic(left) and _is_arithmetic(right)
        case ast.Compare(left=left, comparators=others):
            return all(map(_is_arithmetic, (left, *others)))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=traits):
            known = _SYMBOL.fullmatch(name) is not None
            return known and all(isinstance(trait.value, ast.Constant) for trait in traits)
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[left, right], keywords=[]):
            return _is_arithmetic(left) and _is_small(right)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return name in _ARITHMETIC and all(map(_is_arithmetic, arguments))
    return False


def _is_small(power: ast.AST) -> bool:
    """Whether it is an exponent that no number becomes huge by: a size is raised to 2, and seldom to more."""
    match power:
        case ast.Constant(value=int() as number):
            return abs(number) <= _LARGEST_POWER
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _is_small(inner)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_small(inner)
    return False


def _check_layout(text: str) -> None:
    try:
        _version, layout = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Unsafe("the layout of its inputs or outputs is no JSON") from None
    _check_node(layout)


def _check_node(layout: Any) -> None:
    if not isinstance(layout, dict) or not {"type", "context", "children_spec"} <= set(layout):
        raise Unsafe("the layout of its inputs or outputs is none")
    kind, context, children = layout["type"], layout["context"], layout["children_spec"]
    if kind is not None and kind not in _CONTAINERS:
        raise Unsafe(f"its inputs or outputs are in a {str(kind)[:80]}; expected tuples, lists and dicts")
    try:
        keys = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        keys = {}
    if keys is not None and not (isinstance(keys, list) and all(isinstance(k, str | int) for k in keys)):
        raise Unsafe("the layout of its inputs or outputs has keys that are no texts")
    for child in children if isinstance(children, list) else ():
        _check_node(child)


def _check_text(text: str) -> None:
    if len(text) > 1000 or not text.isprintable():
        raise Unsafe(f"it has the text {text[:80]!r}")


_RULES: dict[str, Callable[[str], None]] = {
    "target": _check_target,
    "expr_str": _check_expression,
    "in_spec": _check_layout,
    "out_spec": _check_layout,
    "as_string": _check_text,
    "as_strings": _check_text,
    "torch_version": _check_text,
    "name": _check_name,
    "as_name": _check_name,
    "user_input_name": _check_name,
    "parameter_name": check_tensor_name,
    "buffer_name": check_tensor_name,
    "tensor_constant_name": check_tensor_name,
}
