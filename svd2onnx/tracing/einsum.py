"""Sums of products with a constant, in Einstein's notation, as a linear layer with its axes moved.

bld,df->blf      y = x W^T,  W = m^T
bld,dhk->bhlk    W = m [d, h k]^T, and the axes of the result in another order
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svd2onnx.tracing.nodes import Step


@dataclass(frozen=True)
class Product:
    """``weight`` [out, in] on the last axis, after ``before`` is applied to the input; then ``after``."""

    weight: Tensor
    before: Sequence[Step]
    after: Sequence[Step]


def product_of(equation: str, place: int, rank: int, constant: Tensor) -> Product | None:
    """What ``equation`` says, if it is a linear layer of its other operand; else None.

    Args:
        equation: of two operands.
        place: which of them is ``constant``.
        rank: of the other one.
        constant: the operand that does not depend on the input.
    """
    sides = equation.replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or len(operands) != 2:
        return None
    own, other, result = operands[place], operands[1 - place], sides[1]
    if "..." in other or "..." in result:
        letters = _free_letters(equation, rank - len(other.replace("...", "")))
        other, result = other.replace("...", letters), result.replace("...", letters)
    if "..." in own or any(len(set(axes)) != len(axes) for axes in (own, other, result)):
        return None
    summed = [axis for axis in other if axis in own]
    free = [axis for axis in other if axis not in own]
    made = [axis for axis in own if axis not in other]
    if not summed or not made or sorted(result) != sorted(free + made):
        return None
    sizes = dict(zip(own, constant.shape, strict=True))
    weight = constant.permute([own.index(axis) for axis in (*made, *summed)])
    weight = weight.reshape(math.prod(sizes[axis] for axis in made), -1)
    before = [_permuted(other, [*free, *summed])]
    if len(summed) > 1:
        before.append((torch.ops.aten.flatten.using_ints, (len(free), -1)))
    after: list[Step | None] = []
    if len(made) > 1:
        after.append((torch.ops.aten.unflatten.int, (-1, [sizes[axis] for axis in made])))
    after.append(_permuted([*free, *made], result))
    return Product(weight, [step for step in before if step], [step for step in after if step])


def _permuted(axes: Sequence[str], wanted: Sequence[str]) -> Step | None:
    order = [list(axes).index(axis) for axis in wanted]
    return None if order == sorted(order) else (torch.ops.aten.permute.default, (order,))


def _free_letters(equation: str, count: int) -> str:
    letters = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    return "".join(letters[: max(0, count)])
