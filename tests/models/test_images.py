"""The images of the vision model files: their splits, their preparation, the noise, and top-1."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

PATH = Path(__file__).parents[2] / "models" / "images.py"
SPLITS = ("calibration", "recovery", "evaluation")


@pytest.fixture(scope="module")
def images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images_under_test", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """70 JPEGs, each of one brightness; the name says which."""
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "imagenet").mkdir()
    for i in range(70):
        image.new("RGB", (10, 8), (2 * i, 2 * i, 2 * i)).save(tmp_path / "imagenet" / f"{2 * i:04d}.jpg")
    (tmp_path / "imagenet" / "notes.txt").write_text("no image")
    return tmp_path


def _joined(batches: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([batch[name] for batch in batches])


def _brightness(images: ModuleType, batches: list[dict[str, Tensor]]) -> Tensor:
    red = _joined(batches, "image")[:, 0].mean((1, 2))
    return (red * images.DEVIATION[0] + images.MEAN[0]) * 255


def test_every_other_file_is_for_evaluation_and_labels_go_with_their_images(
    images: ModuleType, folder: Path
) -> None:
    batches = {split: list(images.inputs(split, folder, resize=8, crop=6)) for split in SPLITS}
    labels = {split: _joined(own, "label") for split, own in batches.items()}
    assert labels["evaluation"].tolist() == list(range(2, 140, 4))
    assert sorted(labels["calibration"].tolist()) == list(range(0, 140, 4))
    assert labels["calibration"].tolist() != list(range(0, 140, 4))  # a batch sees a bit of all
    assert torch.equal(labels["recovery"], labels["calibration"])
    for split in SPLITS:
        brightness = _brightness(images, batches[split])
        torch.testing.assert_close(brightness, labels[split].float(), rtol=0, atol=1.5)
    assert [len(batch["image"]) for batch in batches["calibration"]] == [16, 16, 3]
    assert [len(batch["image"]) for batch in batches["evaluation"]] == [25, 10]


def test_images_may_lie_in_the_data_folder_itself(images: ModuleType, folder: Path) -> None:
    outer, inner = (next(images.inputs("calibration", f, 8, 6)) for f in (folder, folder / "imagenet"))
    assert torch.equal(outer["image"], inner["image"])


def test_images_of_one_size_for_the_networks_by_default(images: ModuleType, folder: Path) -> None:
    batch = next(images.inputs("evaluation", folder))
    assert batch["image"].shape == (25, 3, 224, 224)
    assert batch["image"].dtype == torch.float32


def test_files_called_by_words_have_no_label(images: ModuleType, folder: Path) -> None:
    (folder / "imagenet" / "0000.jpg").rename(folder / "imagenet" / "lobster.JPEG")
    batches = list(images.inputs("evaluation", folder, 8, 6))
    assert [set(batch) for batch in batches] == [{"image"}, {"image"}]
    assert sum(len(batch["image"]) for batch in batches) == 35


def test_middle_is_cut_out_as_torchvision_does(images: ModuleType, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    # Nothing to scale; (5 - 2) / 2 = 1.5 is rounded to the even 2.
    np.testing.assert_array_equal(images.read(tmp_path / "a.png", 4, 2), pixels[1:3, 2:4])


def test_shorter_side_is_scaled_by_means_over_what_it_covers(images: ModuleType, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    columns = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 2)  # 48 columns in pairs of equals
    image.fromarray(np.tile(columns, (24, 1))).convert("RGB").save(tmp_path / "a.png")
    scaled = images.read(tmp_path / "a.png", 12, 12)
    assert scaled.shape == (12, 12, 3)
    # 48 x 24 becomes 24 x 12, whose middle columns are pairs 6 to 17; a ramp stays a ramp.
    np.testing.assert_allclose(scaled[5, :, 0].astype(int), np.arange(60, 180, 10), atol=1)


def test_grey_images_become_colours(images: ModuleType, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (6, 6), 90).save(tmp_path / "grey.jpg")
    np.testing.assert_array_equal(images.read(tmp_path / "grey.jpg", 6, 4), np.full((4, 4, 3), 90))


def test_colours_are_normalised_one_by_one(images: ModuleType) -> None:
    pixels = np.array([[[[255, 0, 51]]]], dtype=np.uint8)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(images.normalised(pixels), torch.tensor(expected).reshape(1, 3, 1, 1))


def test_noise_is_that_of_its_split(images: ModuleType) -> None:
    first = {split: [batch["image"] for batch in images.inputs(split, crop=32)] for split in SPLITS}
    again = {split: [batch["image"] for batch in images.inputs(split, crop=32)] for split in SPLITS}
    assert {split: len(torch.cat(own)) for split, own in first.items()} == {
        "calibration": 64,
        "recovery": 64,
        "evaluation": 50,
    }
    for split in SPLITS:
        assert torch.equal(torch.cat(first[split]), torch.cat(again[split]))
    everything = torch.cat([image for own in first.values() for image in own]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 64 + 64 + 50


def test_noise_looks_like_normalised_photographs(images: ModuleType) -> None:
    noise = images.noise(200, 64, torch.Generator().manual_seed(0))
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.var()) == pytest.approx(1, abs=0.1)
    colours = torch.corrcoef(noise.transpose(0, 1).flatten(1))
    assert float(colours[0, 1]) == pytest.approx(0.9, abs=0.03)
    amplitude = torch.fft.fft2(noise).abs().square().mean((0, 1)).sqrt()
    for low, high in ((1, 2), (2, 8), (8, 32)):  # cycles per image
        assert float(amplitude[0, low] / amplitude[0, high]) == pytest.approx(high / low, rel=0.2)


def test_top1_counts_labels_at_the_largest_logit(images: ModuleType) -> None:
    logits = np.array([[0.1, 0.9, 0.0], [5.0, 1.0, 4.0], [-3.0, -2.0, -1.0], [0, 1, 0]], dtype=np.float32)
    assert images.metric({"any name": logits}, {"label": np.array([1, 2, 2, 1])}) == {"top1": 0.75}
    assert images.metric({"any name": logits}, {}) == {}


@pytest.mark.parametrize("split", SPLITS)
def test_folder_without_images_is_refused(images: ModuleType, tmp_path: Path, split: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"^expected JPEG images in .*imagenet or .*found none"):
        next(images.inputs(split, tmp_path))


def test_unknown_split_is_refused(images: ModuleType) -> None:
    with pytest.raises(ValueError, match="found 'train'"):
        next(images.inputs("train"))


def test_missing_pillow_names_the_extra(
    images: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'svd2onnx\[vision\]'"):
        next(images.inputs("calibration", folder))
    assert next(images.inputs("calibration", crop=8))["image"].shape == (16, 3, 8, 8)
