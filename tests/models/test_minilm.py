"""The MiniLM model file: its network, its texts, its metric."""

import csv
import importlib.util
import socket
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.sources.model_file import load_model_file

PATH = Path(__file__).parents[2] / "models" / "minilm.py"
SPLITS = ("calibration", "recovery", "evaluation")


@pytest.fixture(scope="module")
def minilm() -> ModuleType:
    return load_model_file(PATH).module


@pytest.fixture(scope="module")
def network(minilm: ModuleType) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", _refuse)
        patch.setattr(socket.socket, "connect", _refuse)
        return minilm.build()


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    """A folder with 100 labelled pairs; of the held-out ones, the first repeats a training text."""
    rows = [(f"First text {i}.", f"Second text {i}.", i / 20) for i in range(100)]
    rows[50] = ("First text 0.", "Second text 50.", 2.5)
    (tmp_path / "sts").mkdir()
    with (tmp_path / "sts" / "stsb-en-dev.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def _refuse(*_: object) -> None:
    raise AssertionError("the model file must work offline")


def _token_rows(batches: list[dict[str, Tensor]]) -> list[tuple[int, ...]]:
    """Return each text's tokens without the padding."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def _tokens_of(minilm: ModuleType, texts: list[str]) -> list[tuple[int, ...]]:
    return _token_rows(list(minilm._batches(texts, len(texts))))


def _arrays(batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def test_network_is_float32_in_eval_mode_and_has_no_dead_pooler(network: nn.Module) -> None:
    assert not any(module.training for module in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not [name for name, _ in network.named_parameters() if "pooler" in name]


def test_own_mask_equals_that_of_transformers(minilm: ModuleType, network: nn.Module) -> None:
    batch = next(minilm.inputs("evaluation"))
    with torch.no_grad():
        hidden = network.encoder(**batch).last_hidden_state
        embedding = network(**batch)
    weight = batch["attention_mask"][:, :, None].float()
    expected = nn.functional.normalize((hidden * weight).sum(1), dim=-1)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(len(embedding)))


def test_padding_does_not_change_an_embedding(minilm: ModuleType, network: nn.Module) -> None:
    texts = ["A short one.", "A text that is a good deal longer than the other one in its batch."]
    together, alone = (next(minilm._batches(group, 2)) for group in (texts, texts[:1]))
    with torch.no_grad():
        torch.testing.assert_close(network(**together)[:1], network(**alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("split", "texts", "rows"),
    [("calibration", 1536, 32), ("recovery", 3990, 32), ("evaluation", 256, 64)],
)
def test_batches_of_a_split(minilm: ModuleType, split: str, texts: int, rows: int) -> None:
    batches = list(minilm.inputs(split))
    whole, rest = divmod(texts, rows)
    assert [len(batch["input_ids"]) for batch in batches] == [rows] * whole + [rest] * (rest > 0)
    for batch in batches:
        assert list(batch) == list(minilm.dynamic_shapes)
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] <= 128


def test_texts_are_distinct_and_evaluation_is_held_out(minilm: ModuleType) -> None:
    rows = {split: _token_rows(list(minilm.inputs(split))) for split in SPLITS}
    assert all(len(set(split)) > 0.99 * len(split) for split in rows.values())
    assert not set(rows["evaluation"]) & set(rows["recovery"])
    assert rows["recovery"][:1536] == rows["calibration"]


def test_texts_are_the_same_ones_when_made_anew(minilm: ModuleType) -> None:
    before = minilm._stdlib_texts("evaluation")
    minilm._sections.cache_clear()
    assert minilm._stdlib_texts("evaluation") == before


def test_passages_leave_out_what_is_no_prose(minilm: ModuleType) -> None:
    document = (
        'A Title\n*******\n\nThe "assert" statement is a way to insert *debugging* assertions\n'
        'into a program, see :ref:`assert`.\n\n   assert_stmt ::= "assert" expression\n\n'
        ">>> print(1)\n1\n\nToo short.\n\nname      what it is for and which values it may have\n"
    )
    assert list(minilm._passages(document)) == [
        "The assert statement is a way to insert debugging assertions into a program, see assert."
    ]


def test_retrieval_counts_the_rows_that_find_their_neighbour(minilm: ModuleType) -> None:
    first = np.eye(4, dtype=np.float32)
    second = first[[0, 1, 3, 2]]  # the last two pairs are crossed
    embedding = np.stack([first, second], axis=1).reshape(8, 4)
    assert minilm.metric({"any name": embedding}, {}) == {"retrieval_top1": 0.5}
    assert minilm.summary({}) == {}


def test_network_finds_neighbours_far_above_chance(minilm: ModuleType, network: nn.Module) -> None:
    batch = next(minilm.inputs("evaluation"))
    with torch.no_grad():
        embedding = network(**batch).numpy()
    assert minilm.metric({"embedding": embedding}, _arrays(batch))["retrieval_top1"] > 0.4


def test_sts_evaluation_keeps_pairs_and_labels_together(minilm: ModuleType, sts: Path) -> None:
    batches = list(minilm.inputs("evaluation", sts))
    assert [len(batch["input_ids"]) for batch in batches] == [64, 36]
    texts = [text for i in range(51, 100) for text in (f"First text {i}.", f"Second text {i}.")]
    assert _token_rows(batches)[2:] == _tokens_of(minilm, texts)
    scores = torch.cat([batch["score"] for batch in batches])
    torch.testing.assert_close(scores, torch.arange(50, 100) / 20)


def test_sts_training_texts_are_mixed_and_hold_nothing_out_of_evaluation(
    minilm: ModuleType, sts: Path
) -> None:
    training = minilm._training_texts("calibration", sts)
    sentences = [text for text in training if " text " in text and len(text.split()) == 3]
    expected = {f"{order} text {i}." for order in ("First", "Second") for i in range(50)}
    assert set(sentences) == expected - {"First text 0."}
    # 99 sentences, two for each passage, all in the first stretch, which goes by length.
    assert len(set(training[:256]) & set(minilm._stdlib_texts("calibration"))) == 256 - 99
    assert training[:256] == sorted(training[:256], key=len)


def test_wikitext_adds_clean_passages_of_its_first_half(minilm: ModuleType, sts: Path) -> None:
    lines = [
        " = Lobster = \n",
        " \n",
        " The <unk> 's length is 5 @.@ 3 m ( or 17 @-@ 18 ft ) , at most . It may grow and grow and grow !\n",
        " \n",
        " A passage of the second half may not be used for any training .\n",
        " \n",
    ]
    (sts / "valid.txt").write_text("".join(lines), encoding="utf-8")
    expected = "The's length is 5.3 m (or 17-18 ft), at most. It may grow and grow and grow!"
    assert minilm._wikitext_passages(sts) == [expected]
    assert expected in minilm._training_texts("calibration", sts)


def test_three_words_in_ten_are_foreign(minilm: ModuleType) -> None:
    ids = torch.randint(1996, 30522, (64, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 20:] = 101, 0
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    changed = minilm._with_foreign_words(batch)
    differs = changed["input_ids"] != ids
    assert 0.25 < float(differs[:, 1:20].float().mean()) < 0.35
    words = changed["input_ids"][differs]
    assert int(words.min()) >= 1996
    assert not differs[:, 20:].any()
    assert not differs[:, 0].any()
    assert changed["attention_mask"] is batch["attention_mask"]
    assert torch.equal(changed["input_ids"], minilm._with_foreign_words(batch)["input_ids"])


def test_sts_metric_and_spearman_with_ties(minilm: ModuleType) -> None:
    angles = np.array([0.1, 0.9, 0.5, 0.5], dtype=np.float32)
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    embedding = np.stack([np.tile(np.float32([1, 0]), (4, 1)), second], axis=1).reshape(8, 2)
    columns = minilm.metric({"embedding": embedding}, {"score": np.float32([5, 1, 2, 4])})
    np.testing.assert_allclose(columns["similarity"], np.cos(angles), rtol=1e-6)
    # Ranks of the similarities: 4, 1, 2.5, 2.5; of the scores: 4, 1, 2, 3.
    assert minilm.summary(columns) == {"spearman": pytest.approx(4.5 / np.sqrt(4.5 * 5))}


def test_data_folder_without_the_file_is_refused(minilm: ModuleType, tmp_path: Path) -> None:
    for split in SPLITS:
        with pytest.raises(FileNotFoundError, match=r"^expected the STS-B dev set at .*csv.*$"):
            next(minilm.inputs(split, tmp_path))


def test_unknown_split_is_refused(minilm: ModuleType) -> None:
    with pytest.raises(ValueError, match="found 'train'"):
        next(minilm.inputs("train"))


def test_missing_weights_name_the_extra(minilm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"svd2onnx\[minilm\]"):
        minilm._weights()


@pytest.mark.slow
def test_exported_graph_takes_any_batch_and_length(
    minilm: ModuleType, network: nn.Module, tmp_path: Path
) -> None:
    import onnxruntime

    example = next(minilm.inputs("calibration"))
    program = torch.onnx.export(
        network,
        kwargs=example,
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=minilm.dynamic_shapes,
    )
    program.save(tmp_path / "minilm.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "minilm.onnx", providers=["CPUExecutionProvider"])
    for texts in (["One."], ["A few words.", "And a few words more, to be padded.", "So."]):
        batch = next(minilm._batches(texts, len(texts)))
        (output,) = session.run(None, _arrays(batch))
        with torch.no_grad():
            np.testing.assert_allclose(output, network(**batch).numpy(), rtol=0, atol=1e-6)
