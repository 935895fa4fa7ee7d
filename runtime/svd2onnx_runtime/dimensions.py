"""Names of dynamic dimensions: "batch" here, and "batch_size" in files of Hugging Face networks.

The second names are those of Hugging Face's Optimum and transformers.js. Both of a pair mean the same
dimension, wherever a size is given by name.
"""

from __future__ import annotations

from collections.abc import Mapping

BATCH, SEQUENCE, PAST_LENGTH = "batch", "sequence", "past_sequence"
"""What they are called in files of other networks, and by options such as ``--dim``."""
HF_BATCH, HF_SEQUENCE, HF_PAST_LENGTH = "batch_size", "sequence_length", "past_sequence_length"
_SAME = {HF_BATCH: BATCH, HF_SEQUENCE: SEQUENCE, HF_PAST_LENGTH: PAST_LENGTH}


def canonical(name: str) -> str:
    """The one name for a dimension: "batch" for "batch_size" too."""
    return _SAME.get(name, name)


def is_batch(dim: object) -> bool:
    """Whether ``dim``, a size or the name of one, is the dimension along which samples lie."""
    return isinstance(dim, str) and canonical(dim) == BATCH


def by_canonical_name(sizes: Mapping[str, int]) -> dict[str, int]:
    """``sizes`` under the one name of each dimension; of two for the same one, the later."""
    return {canonical(name): size for name, size in sizes.items()}
