"""Text for the language model files in pieces of so many tokens, or random tokens where none can be read.

The text is the language reference that ``pydoc`` carries, by topics, so that everything runs offline;
wordings differ between Python versions. With ``data``, a folder that holds WikiText-2's validation text
(``valid.txt`` there or under ``wikitext2/``), its first half is for calibration and recovery and its second
half for evaluation.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

_SPLITS = ("calibration", "recovery", "evaluation")  # the position is the seed of random tokens

Tokenize = Callable[[str], list[int]]


def pieces(
    split: str, counts: Mapping[str, int], length: int, tokenize: Tokenize, data: Path | None = None
) -> Tensor:
    """Return the pieces of a split: token ids, int64 [counts[split] or fewer, length], always the same ones.

    No evaluation text occurs in another split; the recovery pieces begin with the calibration ones.

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` is given and WikiText-2 is not there.
    """
    _check(split)
    ids = torch.tensor(tokenize(text(split == "evaluation", data)))
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    if split == "evaluation":  # spread over the whole text
        whole = whole[:: max(1, len(whole) // counts[split])]
    return whole[: counts[split]]


def random_pieces(split: str, counts: Mapping[str, int], length: int, vocabulary: int) -> Tensor:
    """Return random token ids, int64 [counts[split], length]; the i-th has a share of 1 / i, as Zipf found.

    Raises:
        ValueError: the split is unknown.
    """
    _check(split)
    generator = torch.Generator().manual_seed(_SPLITS.index(split))
    shares = torch.arange(1, vocabulary + 1).float().reciprocal()
    drawn = torch.multinomial(shares, counts[split] * length, replacement=True, generator=generator)
    return drawn.reshape(-1, length)


def text(evaluation: bool, data: Path | None) -> str:
    """Return the text of evaluation, or that of the other splits.

    Raises:
        FileNotFoundError: ``data`` is given and WikiText-2 is not there.
    """
    if data is None:
        # By the text, not the name, because some topics repeat another.
        distinct = dict.fromkeys(topics.values())
        return "\n\n".join(t for t in distinct if (zlib.crc32(t.encode()) % 4 == 0) == evaluation)
    lines = _read_wikitext(data).splitlines(keepends=True)
    middle = len(lines) // 2
    return "".join(lines[middle:] if evaluation else lines[:middle])


def _check(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"expected a split out of {', '.join(_SPLITS)}; found {split!r}")


def _read_wikitext(data: Path) -> str:
    places = [data / "wikitext2" / "valid.txt", data / "valid.txt"]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(
        f"expected WikiText-2's validation text at {places[0]} or {places[1]}; found neither: "
        "put it there, or leave the data folder out to use text from the standard library"
    )
