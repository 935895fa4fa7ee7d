"""The reference is what the code says."""

import runpy

from tests.docs.documents import ROOT


def test_the_reference_is_up_to_date() -> None:
    generated = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"))["reference"]()
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert generated == written, "docs/reference.md is behind the code: run make reference"
