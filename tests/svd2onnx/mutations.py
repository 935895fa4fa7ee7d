"""Damaged files for fuzz tests: what an editor, a bad disk or an attacker makes of a good one."""

import copy
import json
from typing import Any

import onnx
from hypothesis import strategies as st
from onnx import TensorProto

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.sampled_from([2**31, 2**63, -(2**63), 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    st.sampled_from(["\ud800", "../../x", "svd2onnx-plan/1", "int8", "float", "\n\n", "\x00"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = [0, 1, -1, 2, 7, 65536, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1]
NAMES = [
    "",
    "MatMul",
    "If",
    "ConstantOfShape",
    "Expand",
    "Conv",
    "com.microsoft",
    "x" * 1000,
    "a\nb",
    '"',
    "\\",
]
PLACES = [
    "../../../etc/passwd", "/etc/passwd", "weights.data", "graph.onnx", "", "//", "/dev/zero", "a/../../b",
    "x" * 300 + "/../../y",
]  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, cut out, repeated or made extreme; most of them where the structure is."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        if not result:
            break
        where = draw(st.sampled_from(["start", "end", "anywhere"]))
        within = len(result) if where == "anywhere" else min(len(result), 4000)
        place = draw(st.integers(0, within - 1))
        if where == "end":
            place = len(result) - 1 - place
        match draw(st.sampled_from(["change", "cut", "repeat", "extreme", "end"])):
            case "change":
                result[place] = draw(st.integers(0, 255))
            case "cut":
                del result[place : place + draw(st.integers(1, 60))]
            case "repeat":
                result[place:place] = result[place : place + draw(st.integers(1, 100))]
            case "extreme":
                result[place : place + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x80" * 4]))
            case "end":
                del result[place:]
    return bytes(result)


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> bytes:
    """A document with some of its parts replaced, dropped, renamed or repeated; or its text damaged."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holder = draw(st.sampled_from(_holders(result))) if _holders(result) else None
        if holder is None:
            result = draw(VALUES)
            continue
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        match draw(st.sampled_from(["replace", "replace", "drop", "rename", "move"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "drop":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(key)
            case _:
                others = _holders(result)
                holder[key] = copy.deepcopy(draw(st.sampled_from(others)))
    text = json.dumps(result).encode()
    return draw(damaged_bytes(text)) if draw(st.integers(0, 4)) == 0 else text


def _holders(value: Any) -> list[Any]:
    """All objects and arrays that hold something, the outer ones first."""
    if not isinstance(value, dict | list) or not value:
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(holder for part in inner for holder in _holders(part))]


@st.composite
def damaged_graph(draw: st.DrawFn, content: bytes) -> bytes:
    """Whole protobuf, with fields changed, dropped, repeated, in the place of others, or kept elsewhere."""
    model = onnx.load_from_string(content)
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 7)) == 0 and model.graph.initializer:
            _keep_elsewhere(draw, draw(st.sampled_from(list(model.graph.initializer))))
            continue
        owner, field = draw(st.sampled_from(_fields(model)))
        if draw(st.integers(0, 6)) == 0:
            owner.ClearField(field.name)
        else:
            _change(draw, owner, field)
    return bytes(model.SerializeToString())


def _fields(message: Any) -> list[tuple[Any, Any]]:
    """Every field that is set, with the message that holds it."""
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                found += _fields(part)
    return found


def _change(draw: st.DrawFn, owner: Any, field: Any) -> None:
    if field.type == field.TYPE_MESSAGE:
        if field.is_repeated:
            _rearrange(draw, getattr(owner, field.name))
        return
    value: Any
    if field.type in (field.TYPE_INT64, field.TYPE_UINT64):
        value = draw(st.sampled_from(NUMBERS) | st.integers(-300, 300))
    elif field.type == field.TYPE_ENUM:  # of which protobuf takes no others
        value = draw(st.sampled_from([known.number for known in field.enum_type.values]))
    elif field.type == field.TYPE_INT32:
        value = draw(st.integers(-300, 300) | st.sampled_from([2**31 - 1, -(2**31)]))
    elif field.type == field.TYPE_STRING:
        value = draw(st.sampled_from(NAMES))
    elif field.type == field.TYPE_BYTES:
        value = draw(st.binary(max_size=40))
    else:
        value = draw(st.floats(width=32))
    if field.is_repeated:
        values = getattr(owner, field.name)
        values[draw(st.integers(0, len(values) - 1))] = value
    else:
        setattr(owner, field.name, value)


def _rearrange(draw: st.DrawFn, messages: Any) -> None:
    place, other = (draw(st.integers(0, len(messages) - 1)) for _ in range(2))
    match draw(st.sampled_from(["drop", "repeat", "copy"])):
        case "drop":
            del messages[place]
        case "repeat":
            messages.add().CopyFrom(messages[place])
        case "copy":
            messages[place].CopyFrom(copy.deepcopy(messages[other]))


def _keep_elsewhere(draw: st.DrawFn, tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=draw(st.sampled_from(PLACES)))
    if draw(st.booleans()):
        number = draw(st.sampled_from(["-1", "0", "4096", "9" * 20, "abc"]))
        tensor.external_data.add(key=draw(st.sampled_from(["offset", "length"])), value=number)
    if draw(st.booleans()):
        tensor.ClearField("raw_data")
