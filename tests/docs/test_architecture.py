"""docs/architecture.md and its picture show the wings that there are, and a chain of calls that exists."""

import ast
import itertools
import re

import pytest

from tests.docs.documents import ROOT, tokens_of
from tests.test_layering import WINGS

PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.svg"


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the table in a section, as written, without its head."""
    title, inside, rows = "", False, []
    tokens = tokens_of(PAGE)
    for token, following in itertools.pairwise(tokens):
        if token.type == "heading_open":
            title = following.content
        inside = token.type == "tbody_open" or (inside and token.type != "tbody_close")
        if not inside or title != heading:
            continue
        if token.type == "tr_open":
            rows.append([])
        if token.type == "td_open":
            rows[-1].append(following.content.strip("`"))
    return rows


HOPS = rows_under("From the command to the tensor function in at most five hops")


def test_the_page_lists_every_wing_in_order() -> None:
    assert [row[0] for row in rows_under("The wings")] == WINGS


def test_each_wing_begins_in_itself() -> None:
    for wing, _, start in rows_under("The wings"):
        assert start.startswith(f"svd2onnx/{wing}/")


def test_the_picture_lists_every_wing_in_order() -> None:
    names = re.findall(r'class="name"[^>]*>(\w+)<', PICTURE.read_text(encoding="utf-8"))
    assert names == [*WINGS, "svd2onnx_runtime"]


def test_there_are_at_most_five_hops() -> None:
    assert [row[0] for row in HOPS] == [str(number) for number in range(len(HOPS))]
    assert 2 <= len(HOPS) <= 6


@pytest.mark.parametrize("hop", HOPS, ids=lambda hop: hop[0])
def test_each_hop_defines_its_function_and_calls_the_next(hop: list[str]) -> None:
    _, file, function, callee = hop
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    assert function in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        for node in nodes
        if isinstance(node, ast.Call)
    }
    assert not callee or callee in called


def test_each_hop_calls_the_function_of_the_next() -> None:
    assert [row[3] for row in HOPS[:-1]] == [row[2] for row in HOPS[1:]]
