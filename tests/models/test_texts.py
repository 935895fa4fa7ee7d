"""The text of the language model files, its pieces, and the random ones."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "models" / "texts.py"


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("texts_under_test", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    (tmp_path / "wikitext2").mkdir()
    lines = [f"line {i}\n" for i in range(10)]
    (tmp_path / "wikitext2" / "valid.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def _numbers(text: str) -> list[int]:
    """One token a line, its number."""
    return [int(line.split()[1]) for line in text.splitlines()]


def test_wikitext_halves_do_not_overlap(texts: ModuleType, wikitext: Path) -> None:
    assert texts.text(False, wikitext).splitlines() == [f"line {i}" for i in range(5)]
    assert texts.text(True, wikitext).splitlines() == [f"line {i}" for i in range(5, 10)]


def test_stdlib_topics_belong_to_one_side(texts: ModuleType) -> None:
    training, evaluation = (texts.text(side, None) for side in (False, True))
    assert len(training) > 100_000
    assert len(evaluation) > 50_000
    held = [text for text in texts.topics.values() if len(text) > 200]
    assert all((text in training) != (text in evaluation) for text in held)


def test_pieces_are_whole_and_recovery_begins_with_calibration(texts: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("".join(f"line {i}\n" for i in range(46)), encoding="utf-8")
    counts = {"calibration": 2, "recovery": 9, "evaluation": 3}
    pieces = {split: texts.pieces(split, counts, 3, _numbers, tmp_path).tolist() for split in counts}
    assert pieces["calibration"] == [[0, 1, 2], [3, 4, 5]]
    assert pieces["recovery"] == [[i, i + 1, i + 2] for i in range(0, 21, 3)]  # 23 lines hold no more
    assert pieces["evaluation"] == [[23, 24, 25], [29, 30, 31], [35, 36, 37]]  # two apart, of seven


def test_random_pieces_are_those_of_their_split_and_follow_zipf(texts: ModuleType) -> None:
    counts = {"calibration": 1000, "recovery": 1000, "evaluation": 1000}
    drawn = {split: texts.random_pieces(split, counts, 64, 500) for split in counts}
    for split, ids in drawn.items():
        assert ids.shape == (1000, 64)
        assert torch.equal(ids, texts.random_pieces(split, counts, 64, 500))
        shares = torch.bincount(ids.flatten(), minlength=500) / ids.numel()
        assert len(shares) == 500
        for rank in (2, 5, 10):
            assert float(shares[0] / shares[rank - 1]) == pytest.approx(rank, rel=0.1)
    assert not torch.equal(drawn["calibration"], drawn["recovery"])
    assert not torch.equal(drawn["calibration"], drawn["evaluation"])
    assert not torch.equal(drawn["recovery"], drawn["evaluation"])


def test_data_folder_without_the_file_is_refused(texts: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^expected WikiText-2's validation text at .*$"):
        texts.text(False, tmp_path)


def test_unknown_split_is_refused(texts: ModuleType) -> None:
    with pytest.raises(ValueError, match="found 'train'"):
        texts.pieces("train", {}, 3, _numbers)
    with pytest.raises(ValueError, match="found 'train'"):
        texts.random_pieces("train", {}, 3, 10)
