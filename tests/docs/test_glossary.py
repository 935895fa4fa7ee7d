"""The glossary is in order, short, and refers only to words that it has."""

import re

from tests.docs.documents import ROOT

TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^\*\*(.+?)\.\*\* ((?:.+\n)+)", TEXT, re.MULTILINE))


def test_terms_are_in_alphabetical_order() -> None:
    assert len(ENTRIES) > 50
    assert list(ENTRIES) == sorted(ENTRIES, key=str.casefold)


def test_every_paragraph_is_an_entry() -> None:
    assert TEXT.count("\n\n") == len(ENTRIES) + 1  # the title and the line below it


def test_references_lead_to_entries() -> None:
    words = {word.casefold() for term in ENTRIES for word in term.split(", ")}
    for text in ENTRIES.values():
        for reference in re.findall(r"(?<!\*)\*([a-z -]+)\*(?!\*)", text):
            assert reference in words, reference
