"""Links between the documents and to files lead somewhere; files that the text names exist."""

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, anchors_of, inline_codes, links_of
from tests.test_layering import WINGS

EACH = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@EACH
def test_links_lead_somewhere(path: Path) -> None:
    for link in links_of(path):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors_of(file), link


@EACH
def test_files_in_the_text_exist(path: Path) -> None:
    # Paths from the project's folder, from one of its packages, or bare names of its files.
    names = {file.name for file in ROOT.glob("[!.]*/**/*.*") if "node_modules" not in file.parts}
    for code in inline_codes(path):
        if re.fullmatch(r"(docs|models|svd2onnx|runtime|benchmarks|tests|examples)/[\w./-]+\.\w+", code):
            assert (ROOT / code).exists(), code
        elif re.fullmatch(r"svd2onnx_runtime/[\w./-]+\.py", code):
            assert (ROOT / "runtime" / code).exists(), code
        elif re.fullmatch(rf"({'|'.join(WINGS)})/[\w./-]+\.py", code):
            assert (ROOT / "svd2onnx" / code).exists(), code
        elif re.fullmatch(r"[\w-]+\.(py|md|cpp|js|sh)", code):
            assert code in names, code


def test_the_index_names_every_document() -> None:
    linked = set(links_of(ROOT / "docs" / "README.md"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_index_of_decisions_names_each_in_order() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    assert list(links_of(folder / "README.md")) == pages
    assert [page[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]


def test_the_readme_leads_to_the_documents_and_the_examples() -> None:
    assert {"docs/README.md", "docs/tutorial.md", "examples/README.md"} <= set(links_of(ROOT / "README.md"))
