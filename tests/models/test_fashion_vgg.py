"""The VGG of Fashion-MNIST: its network, its files, its images, and its training."""

import gzip
import json
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.errors import SourceError

PATH = Path(__file__).parents[2] / "models" / "fashion_vgg.py"
FILE = "fashion_vgg.safetensors"
COUNTS = {"train": 2200, "t10k": 260}


@pytest.fixture(scope="module")
def fashion() -> ModuleType:
    return load_model_file(PATH).module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that tell their number in two pixels; test images go on where training images end."""
    folder = tmp_path_factory.mktemp("data")
    first = 0
    for part, count in COUNTS.items():
        numbers = np.arange(first, first + count)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 14, 10], images[:, 14, 11] = numbers // 250, numbers % 250
        _write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (numbers % 10).astype(np.uint8))
        first += count
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


def test_parameters_are_named_as_in_torchvision_and_mostly_in_two_layers(fashion: ModuleType) -> None:
    with torch.device("meta"):
        network = fashion.FashionVGG()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    known = {
        "features.0.weight": (32, 1, 3, 3),
        "features.1.running_mean": (32,),
        "features.4.weight": (64, 32, 3, 3),
        "features.21.weight": (256, 256, 3, 3),
        "classifier.0.weight": (4096, 2304),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.weight": (10, 4096),
        "classifier.6.bias": (10,),
    }
    assert {name: shapes.get(name) for name in known} == known
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 27_426_922
    assert 4096 * (2304 + 4096) / count > 0.95


def test_weights_load_from_the_folder(
    fashion: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = fashion.FashionVGG(2, 16).eval()
    save_file(saved.state_dict(), tmp_path / FILE)
    monkeypatch.setattr(fashion, "FashionVGG", lambda: type(saved)(2, 16))
    loaded = fashion.build(weights=tmp_path)
    image = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert loaded(image).shape == (2, 10)
        assert torch.equal(loaded(image), saved(image))
        drawn, again = (fashion.build(random_weights=True) for _ in range(2))
        assert torch.equal(drawn(image), again(image))


def test_missing_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"--weights DIR.*{FILE}.*train -o DIR.*--random-weights"):
        load_model_file(PATH).build()
    with pytest.raises(SourceError, match=rf"expected {FILE} in .*found none.*train -o DIR"):
        load_model_file(PATH, weights=tmp_path).build()


def test_splits_share_no_image_and_labels_go_with_their_images(fashion: ModuleType, data: Path) -> None:
    numbers = {}
    for split in ("calibration", "recovery", "evaluation"):
        batches = list(fashion.inputs(split, data))
        image = torch.cat([batch["image"] for batch in batches])
        label = torch.cat([batch["label"] for batch in batches])
        assert image.shape[1:] == (1, 28, 28)
        pixels = (image[:, 0] * fashion._DEVIATION + fashion._MEAN).mul(255).round().long()
        numbers[split] = 250 * pixels[:, 14, 10] + pixels[:, 14, 11]
        assert torch.equal(label, numbers[split] % 10)
        sizes = [len(batch["image"]) for batch in batches]
        assert sizes[0] == (250 if split == "evaluation" else 64)
    assert numbers["calibration"].tolist() == list(range(2048))
    assert numbers["recovery"].tolist() == list(range(2048, 2200))
    assert numbers["evaluation"].tolist() == list(range(2200, 2460))


def test_images_are_also_found_in_the_folder_of_the_data_folder(fashion: ModuleType, data: Path) -> None:
    outer = data / "outer"
    outer.mkdir()
    (outer / "fashion-mnist").symlink_to(data)
    image, label = fashion.read("t10k", outer)
    assert image.shape == (260, 28, 28)
    assert label.dtype == torch.int64


def test_missing_images_say_how_to_get_them(
    fashion: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError, match=r"expected train-images.*apt-get install dataset-fashion-mnist"):
        next(load_model_file(PATH, data=tmp_path).inputs("calibration"))
    monkeypatch.setattr(fashion, "_PACKAGED", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected t10k-images.* in .*nowhere; found none: apt-get"):
        next(fashion.inputs("evaluation"))
    with pytest.raises(ValueError, match="found 'train'"):
        next(fashion.inputs("train", tmp_path))
    with pytest.raises(SystemExit):
        fashion.main(["train", "-o", str(tmp_path / "out")])
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


def test_idx_files_are_read_and_others_refused(fashion: ModuleType, tmp_path: Path) -> None:
    path, array = tmp_path / "some.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    _write_idx(path, array)
    np.testing.assert_array_equal(fashion.read_idx(path), array)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"whole gz file in .*some\.gz"):
        fashion.read_idx(path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match=r"expected 24 bytes of data in .*; found 23"):
        fashion.read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x0d\1"))
    with pytest.raises(ValueError, match="bytes in the IDX format"):
        fashion.read_idx(path)
    path.write_bytes(b"no gz")
    with pytest.raises(ValueError, match="whole gz file"):
        fashion.read_idx(path)


def test_labels_of_another_number_than_images_are_refused(fashion: ModuleType, tmp_path: Path) -> None:
    _write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((5, 28, 28), np.uint8))
    _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"found \[5, 28, 28\] and \[4\]"):
        fashion.read("train", tmp_path)


def test_protocol() -> None:
    file = load_model_file(PATH)
    assert file.objective == "kl"
    assert file.dynamic_shapes == {"image": {0: "batch"}}
    assert file.metric({"logits": np.eye(4)}, {"label": np.array([0, 1, 2, 0])}) == {"top1": 0.75}


def test_steps_on_one_batch_lower_its_loss(fashion: ModuleType) -> None:
    torch.manual_seed(0)
    network = fashion.FashionVGG(4, 1024)
    image, label = torch.randn(20, 1, 28, 28), torch.arange(20) % 10
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    losses = [fashion.train_step(network, optimizer, image, label) for _ in range(40)]
    assert losses[0] == pytest.approx(np.log(10), rel=0.05)
    assert max(losses[-5:]) < 0.5 * losses[0]


def test_augmentation_shifts_and_mirrors_by_whole_pixels(fashion: ModuleType) -> None:
    pixels = torch.zeros(400, 28, 28, dtype=torch.uint8)
    pixels[:, 14, 9] = 255
    made = fashion.augmented(pixels, torch.Generator().manual_seed(0))
    black, white = (-fashion._MEAN / fashion._DEVIATION, (1 - fashion._MEAN) / fashion._DEVIATION)
    assert made.shape == (400, 1, 28, 28)
    _, _, rows, columns = torch.nonzero((made - white).abs() < 1e-5, as_tuple=True)
    assert len(rows) == 400
    assert ((made - black).abs() < 1e-5).sum() == 400 * (28 * 28 - 1)
    assert set(rows.tolist()) == set(range(12, 17))
    assert set(columns.tolist()) == {*range(7, 12), *range(16, 21)}


def test_rate_rises_then_falls_to_nothing(fashion: ModuleType) -> None:
    rates = [fashion.rate(step, 3000) for step in range(3000)]
    peak = int(np.argmax(rates))
    assert np.all(np.diff(rates[:peak]) > 0)
    assert np.all(np.diff(rates[peak:]) < 0)
    assert 0.95 * fashion._RATE < rates[peak] < fashion._RATE
    assert rates[-1] < 1e-5 * fashion._RATE


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_ranks_against_numpy(fashion: ModuleType, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((n, n)))[0] for n in shape)
    values = np.array([3.0, 1.0, 0.5, 0.2, 0.1])  # energies 9, 1, 0.25, 0.04, 0.01
    weight = left[:, :5] * values @ right[:, :5].T
    shares = (0.5, 0.9, 0.99, 0.999)
    assert fashion.ranks(torch.from_numpy(weight), shares=shares) == [1, 2, 3, 4]

    root = generator.standard_normal((shape[1], shape[1])) * 2.0 ** -np.arange(shape[1])
    energy = np.linalg.svd(weight @ root, compute_uv=False) ** 2
    expected = [int(np.argmax(np.cumsum(energy) >= share * energy.sum())) + 1 for share in shares]
    assert fashion.ranks(torch.from_numpy(weight), torch.from_numpy(root @ root.T), shares) == expected


def test_moment_is_the_covariance_of_what_a_layer_is_given(fashion: ModuleType) -> None:
    network = fashion.FashionVGG(2, 16).eval()
    images = torch.randint(256, (30, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = network.features(fashion.normalised(images)).flatten(1)
        moment = fashion._moment(network, network.classifier[0], images)
    expected = np.cov(x.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moment.numpy(), expected, atol=1e-9)
    assert not network.classifier[0]._forward_pre_hooks


def test_training_writes_weights_and_a_report(
    fashion: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = fashion.FashionVGG(2, 16)
    monkeypatch.setattr(fashion, "FashionVGG", lambda: network)
    monkeypatch.setattr(fashion, "_HELD_OUT", 1900)
    threads = torch.get_num_threads()
    fashion.main(
        ["train", "-o", str(tmp_path), "--data", str(data), "--epochs", "2", "--threads", str(threads)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["epoch", "1"], ["epoch", "2"]]
    assert len(lines) == 2 + 1 + 4
    report = json.loads((tmp_path / "fashion_vgg.json").read_text())
    assert 0 <= report["test_accuracy"] <= 1
    assert set(report["ranks"]) == {"classifier.0", "classifier.3"}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not list(tmp_path.glob("*.partial"))
    loaded = fashion.build(weights=tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())


def test_exported_graph_takes_any_batch(fashion: ModuleType, tmp_path: Path) -> None:
    import onnxruntime

    network = fashion.FashionVGG(2, 16).eval()
    image = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        network,
        kwargs={"image": image[:2]},
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=fashion.dynamic_shapes,
    )
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        (logits,) = session.run(None, {"image": image[:rows].numpy()})
        with torch.no_grad():
            expected = network(image[:rows]).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
