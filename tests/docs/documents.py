"""What the tests read out of the documents: blocks, commands, links and headings."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# The changelog is none of them: it names what is no more.
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "examples").glob("**/*.md")),
]
DOCUMENTS = [path for path in DOCUMENTS if "node_modules" not in path.parts]
_PROGRAMS = {".venv/bin/svd2onnx": ["svd2onnx"], ".venv/bin/python": ["python"], "python3": ["python"]}


@dataclass(frozen=True)
class Block:
    """A block of code: what stands after its fence, its text, and the line that it begins on."""

    info: str
    text: str
    line: int

    @property
    def title(self) -> str | None:
        """Of a file that the block is: ```python title="digits.py"."""
        found = re.search(r'title="([^"]+)"', self.info)
        return found and found[1]


def tokens_of(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))


def blocks_of(path: Path) -> list[Block]:
    """The fenced and the indented blocks, in order."""
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens_of(path)
        if token.type in ("fence", "code_block")
    ]


def commands_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each command line of the blocks that hold any, in words, with the line that its block begins on."""
    for block in blocks_of(path):
        if block.info.split(" ")[0] not in ("", "sh"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = words_of(line)
            if words:
                yield block.line, words


def words_of(line: str) -> list[str]:
    """The words of a line of shell, without comments, remarks after wide spaces, and brackets of options."""
    line = re.sub(r"(?<=\S)\s{4,}\S.*$", "", line.strip()) if not line.strip().startswith("#") else ""
    line = re.sub(r"(?<=\s)\[(.*?)\](?=\s|$)", r"\1", line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a drawing or a sentence, with a lone quotation mark
        return []
    return [*_PROGRAMS.get(words[0], words[:1]), *words[1:]] if words else []


def inline_codes(path: Path) -> Iterator[str]:
    """What stands between backticks within the text."""
    for token in tokens_of(path):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content


def links_of(path: Path) -> Iterator[str]:
    """The targets of links and of images."""
    for token in tokens_of(path):
        for child in token.children or ():
            if child.type in ("link_open", "image"):
                yield str(child.attrGet("href") or child.attrGet("src"))


def anchors_of(path: Path) -> set[str]:
    """The names of the headings as GitHub gives them to links."""
    tokens = tokens_of(path)
    titles = [own.content for opening, own in itertools.pairwise(tokens) if opening.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
