"""The values that travel between the steps: layer sites, storage forms, plans, compressed layers.

All are frozen. A layer's weight W [out, in] is stored as

    W ~ dequantize(dense) + dequantize(left) @ dequantize(right)

where either term may be missing: ``LayerForm`` says which terms, at which bits and rank;
``CompressedLayer`` holds their codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from svd2onnx.values.choices import BITS as BITS
from svd2onnx.values.choices import BLOCK_SIZES as BLOCK_SIZES
from svd2onnx.values.choices import METHODS
from svd2onnx.values.errors import PlanError
from svd2onnx.values.scales import widen

ACTIVATIONS = ("float", "int8")
"""What a layer computes with, see ``graph.int8_matmul`` and ``graph.int8_convolution``."""
PLAN_FORMAT = "svd2onnx-plan/1"


@dataclass(frozen=True)
class Geometry:
    """Which patches a convolution takes; one number for each axis of space, and ``padding`` as ONNX has it.

    That is, the padding before each axis, and then the padding behind each.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __str__(self) -> str:
        """Such as "3x3 stride 2x2 padding 1x1x1x1 dilation 1x1 groups 1"."""
        sizes = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        named = " ".join(f"{name} {'x'.join(map(str, own))}" for name, own in sizes.items())
        return f"{'x'.join(map(str, self.kernel))} {named} groups {self.groups}"


@dataclass(frozen=True)
class LayerSite:
    """Where a weight sits in the network, and whether it can be compressed.

    ``shape`` is that of the weight: [out, in] of a Linear, [rows, width] of an Embedding, and
    [out, in / groups * kernel] of a convolution, whose weight is flattened. A "stored" weight, which some
    other operator takes (a transposed convolution, an LSTM), is flattened to a matrix.
    ``aliases`` are further module names that share the very same weight. ``calls`` counts how often
    one forward pass multiplies by the weight: each fused kernel needs a copy of its own, unless the file's
    form lets them share one (``shared``). ``skip_reason`` is None where the weight can be compressed, else it
    says why it stays float. ``geometry`` is that of a convolution, and ``fits_int8`` says of one whether its
    values may be rounded.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    calls: int = 1
    skip_reason: str | None = None
    shared: bool = False
    geometry: Geometry | None = None
    fits_int8: bool = False

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        return self.geometry.groups if self.geometry else 1

    @property
    def multiplies(self) -> bool:
        """Whether its weight is a matrix that multiplies rows of inputs: it can be a low-rank pair."""
        return self.kind in ("linear", "convolution") and self.groups == 1

    @property
    def computes_in_int8(self) -> bool:
        """Whether it may compute on activations of 8 bits."""
        return self.kind == "linear" or self.fits_int8

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def copies(self) -> int:
        """Copies of the codes in the file: only a fused MatMul needs one of its own."""
        return self.calls if self.kind == "linear" and not self.shared else 1

    @property
    def float_bytes(self) -> int:
        return 4 * self.weights


@dataclass(frozen=True)
class QuantSpec:
    """Signed symmetric codes of ``bits`` with one scale for each ``block_size`` inputs of a row."""

    bits: int
    block_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise PlanError(f"bits must be one of {BITS}, not {self.bits!r}")
        if self.block_size not in BLOCK_SIZES:
            raise PlanError(
                f"block size must be one of {BLOCK_SIZES} (others do not fuse in onnxruntime), "
                f"not {self.block_size!r}"
            )

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code, for example (-8, 7) at 4 bits."""
        half = 1 << (self.bits - 1)
        return -half, half - 1

    def blocks(self, columns: int) -> int:
        return -(-columns // self.block_size)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes in the ONNX file of the packed codes and of scales of one byte; units come on top."""
        return -(-rows * columns * self.bits // 8) + rows * self.blocks(columns)

    def __str__(self) -> str:
        return f"int{self.bits}/{self.block_size}"


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes int8 [rows, columns] and ``scale`` [rows, blocks], int8 in units of ``unit``.

    The unit is float32 [1, 1] or float16 [rows, 1], or None where the scales need float16 or float32
    themselves; see ``scales``. Blocks run along the columns, which are the inputs of the MatMul; the last
    may be partial.
    """

    codes: Tensor
    scale: Tensor
    spec: QuantSpec
    unit: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """The scales as factors, float32 [rows, blocks]; exact, because units are powers of two."""
        return widen(self.scale, self.unit)

    def dequantize(self) -> Tensor:
        """Float32 [rows, columns]: the exact product that DequantizeLinear computes."""
        columns = self.codes.shape[1]
        steps = self.steps.repeat_interleave(self.spec.block_size, dim=1)[:, :columns]
        return self.codes.float() * steps

    @property
    def stored_bytes(self) -> int:
        packed = -(-self.codes.numel() * self.spec.bits // 8)
        units = 0 if self.unit is None else self.unit.nbytes
        return packed + self.scale.nbytes + units


@dataclass(frozen=True)
class LayerForm:
    """How one layer is stored: a dense quantized term, a low-rank pair, both, or neither.

    ``LayerForm()`` has no term: the layer's output is its bias alone (rank 0). ``activations`` say what the
    MatMuls compute with, which the stored tensors do not depend on.
    """

    dense: QuantSpec | None = None
    rank: int = 0
    factors: QuantSpec | None = None
    activations: str = "float"

    def __post_init__(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise PlanError(f"activations must be one of {ACTIVATIONS}, not {self.activations!r}")
        if (self.rank > 0) != (self.factors is not None):
            raise PlanError(
                f"a low-rank pair needs both a rank and the bits of its factors, "
                f"not rank {self.rank} with {self.factors}"
            )

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of codes and scales for a weight of ``shape`` [out, in] (biases not counted)."""
        rows, columns = shape
        total = self.dense.stored_bytes(rows, columns) if self.dense else 0
        if self.factors:
            total += self.factors.stored_bytes(rows, self.rank)
            total += self.factors.stored_bytes(self.rank, columns)
        return total

    def problem_with(self, site: LayerSite) -> str | None:
        """Why onnxruntime would not compute this form of ``site`` rightly, or None."""
        rows, columns = site.shape
        if site.kind == "embedding":
            if self.factors or not self.dense:
                return "a table has a dense term and no pair"
            if self.activations != "float":
                return "a table is looked up and multiplies nothing"
            if columns % self.dense.block_size:
                return f"its rows of {columns} are not whole blocks of {self.dense.block_size}"
            return None
        if site.kind == "stored":
            if self.factors or not self.dense:
                return "a stored weight has a dense term and no pair"
            return None if self.activations == "float" else "a stored weight is made a float at load"
        if site.kind == "convolution":
            if self.activations != "float" and not site.fits_int8:
                return "its values leave the network as floats"
            if self.activations != "float" and self.dense and self.factors:
                return "in int8 it is one convolution or a pair"
            if not self.specs:
                return "without a term its output has no size"
            if self.factors and site.groups > 1:
                return "a grouped convolution has no low-rank pair"
        if self.rank > min(rows, columns):
            return f"the rank exceeds {min(rows, columns)}"
        outputs = [(self.dense, rows), (self.factors, rows), (self.factors, self.rank)]
        if site.kind == "linear" and any(spec and spec.bits == 2 and count % 4 for spec, count in outputs):
            return "2 bits need a number of outputs that is a multiple of 4"
        return None

    @property
    def specs(self) -> tuple[QuantSpec, ...]:
        return tuple(spec for spec in (self.dense, self.factors) if spec)

    @property
    def stored(self) -> LayerForm:
        """This form with float activations: what the stored tensors depend on."""
        return replace(self, activations="float")

    def __str__(self) -> str:
        terms = [str(self.dense)] if self.dense else []
        if self.factors:
            terms.append(f"rank {self.rank} {self.factors}")
        activations = "" if self.activations == "float" else f", {self.activations} activations"
        return (" + ".join(terms) or "rank 0") + activations

    def to_json(self) -> dict[str, Any]:
        def spec(value: QuantSpec) -> dict[str, int]:
            return {"bits": value.bits, "block_size": value.block_size}

        record: dict[str, Any] = {}
        if self.dense:
            record["dense"] = spec(self.dense)
        if self.factors:
            record |= {"rank": self.rank, "factors": spec(self.factors)}
        if self.activations != "float":
            record["activations"] = self.activations
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LayerForm:
        unknown = set(record) - {"dense", "rank", "factors", "activations"}
        if unknown:
            raise PlanError(f"a layer form has dense, rank, factors and activations, not {sorted(unknown)}")
        dense, factors, rank = record.get("dense"), record.get("factors"), record.get("rank", 0)
        if not isinstance(rank, int):
            raise PlanError(f"the rank must be a whole number, not {rank!r}")
        form = cls(
            dense=QuantSpec(**dense) if dense else None,
            rank=rank,
            factors=QuantSpec(**factors) if factors else None,
            activations=record.get("activations", "float"),
        )
        # 4.0 and True equal integers, but are none where codes are counted.
        numbers = [rank, *(number for spec in form.specs for number in (spec.bits, spec.block_size))]
        if any(type(number) is not int for number in numbers):
            raise PlanError(f"rank, bits and block_size must be whole numbers, not {numbers}")
        return form


@dataclass(frozen=True)
class CompressedLayer:
    """A layer's stored tensors: W [out, in] ~ dense + left @ right.

    ``left`` is [out, rank], ``right`` is [rank, in]. ``bias_shift`` float32 [out] is what the
    compression adds to the layer's bias (D E[x], with D = W - W~), or None. ``kind`` is that of its site.
    """

    shape: tuple[int, int]
    dense: QuantizedTensor | None = None
    left: QuantizedTensor | None = None
    right: QuantizedTensor | None = None
    bias_shift: Tensor | None = None
    kind: str = "linear"

    @property
    def form(self) -> LayerForm:
        return LayerForm(
            dense=self.dense.spec if self.dense else None,
            rank=self.right.codes.shape[0] if self.right else 0,
            factors=self.right.spec if self.right else None,
        )

    def weight(self) -> Tensor:
        """The float32 matrix [out, in] that the stored tensors stand for; of none, zeros on the CPU."""
        total = self.dense.dequantize() if self.dense else None
        if self.left is not None and self.right is not None:
            pair = self.left.dequantize() @ self.right.dequantize()
            total = pair if total is None else total + pair
        return torch.zeros(self.shape) if total is None else total

    @property
    def stored_bytes(self) -> int:
        return sum(part.stored_bytes for part in (self.dense, self.left, self.right) if part)


@dataclass(frozen=True)
class CompressionPlan:
    """The form of each layer that is compressed, by site name; the others stay float.

    ``predicted_error`` is the error of the whole network that the plan was chosen by, in the units of the
    objective; None where nothing was predicted.
    """

    method: str
    forms: Mapping[str, LayerForm]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Why a layer got its form, where that needs saying (for example a fallback), by site name."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """The predicted error of each layer, by site name."""

    @property
    def predicted_error(self) -> float | None:
        return sum(self.errors.values()) if self.errors else None

    @property
    def common_form(self) -> str:
        """The form of most layers."""
        forms = [str(form) for form in self.forms.values()]
        return max(sorted(set(forms)), key=forms.count)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "method": self.method,
            "layers": {name: form.to_json() for name, form in self.forms.items()},
            "notes": dict(self.notes),
            "predicted_errors": dict(self.errors),
        }

    @classmethod
    def from_json(cls, record: Any) -> CompressionPlan:
        """The plan of a record that ``to_json`` made and a person may have edited.

        Predictions are not taken over: they belong to the forms that were planned.

        Raises:
            PlanError: the record is not a plan, or holds a form that cannot be.
        """
        if not isinstance(record, Mapping) or record.get("format") != PLAN_FORMAT:
            raise PlanError(f'a plan is a JSON object with "format": "{PLAN_FORMAT}"')
        layers = record.get("layers")
        if not isinstance(layers, Mapping) or not all(isinstance(form, Mapping) for form in layers.values()):
            raise PlanError('the "layers" of a plan must be an object: layer name to form')
        forms = {}
        for name, form in layers.items():
            try:
                forms[str(name)] = LayerForm.from_json(form)
            except (PlanError, TypeError, ValueError) as error:
                raise PlanError(f"the plan's form of layer {name!r} is wrong: {error}") from error
        method = record.get("method", "auto")
        if method not in METHODS:
            raise PlanError(f"the method of a plan must be one of {METHODS}, not {method!r}")
        return cls(method, forms)
