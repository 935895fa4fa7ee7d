"""The ResNet-20 model file: its network, its weights, its images."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.errors import SourceError

PATH = Path(__file__).parents[2] / "models" / "resnet20.py"
FILE = "resnet20-12fca82f.th"


@pytest.fixture(scope="module")
def resnet20() -> ModuleType:
    return load_model_file(PATH).module


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """120 training and 60 test images, each of one brightness and labelled by it."""
    (tmp_path / "cifar10").mkdir()
    for name, first, count in (("train_first1000", 0, 120), ("test_first500", 120, 60)):
        labels = np.arange(first, first + count)
        images = np.broadcast_to(labels[:, None, None, None], (count, 32, 32, 3)).astype(np.uint8)
        np.savez(tmp_path / "cifar10" / f"{name}.npz", images=images, labels=labels.astype(np.uint8))
    return tmp_path


def _save_trained(network: nn.Module, path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)


def test_parameters_are_named_and_shaped_as_in_the_file(resnet20: ModuleType) -> None:
    network = resnet20.ResNet20()
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    shapes = {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}
    assert len(shapes) == 59
    known = {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.weight": (16,),
        "layer1.2.conv2.weight": (16, 16, 3, 3),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer3.0.conv1.weight": (64, 32, 3, 3),
        "layer3.2.bn2.bias": (64,),
        "linear.weight": (10, 64),
        "linear.bias": (10,),
    }
    assert {name: shapes.get(name) for name in known} == known


@pytest.mark.parametrize("folder", [".", "cifar10"])
def test_weights_load_from_the_folder(resnet20: ModuleType, tmp_path: Path, folder: str) -> None:
    saved = resnet20.ResNet20().eval()
    (tmp_path / folder).mkdir(exist_ok=True)
    _save_trained(saved, tmp_path / folder / FILE)
    loaded = resnet20.build(weights=tmp_path)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(image), saved(image))


def test_shortcut_takes_every_other_pixel_between_channels_of_zeros(resnet20: ModuleType) -> None:
    block = resnet20.Block(16, 32, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_calibration_has_training_images_and_evaluation_test_images(
    resnet20: ModuleType, cifar: Path
) -> None:
    labels = {}
    for split in ("calibration", "recovery", "evaluation"):
        batches = list(resnet20.inputs(split, cifar))
        labels[split] = torch.cat([batch["label"] for batch in batches])
        image = torch.cat([batch["image"] for batch in batches])
        expected = (labels[split] / 255 - 0.406) / 0.225
        torch.testing.assert_close(image[:, 2, 5, 7], expected)
        assert image.shape[1:] == (3, 32, 32)
    assert labels["calibration"].tolist() == list(range(120))
    assert torch.equal(labels["recovery"], labels["calibration"])
    assert labels["evaluation"].tolist() == list(range(120, 180))
    assert labels["evaluation"].dtype == torch.int64


def test_top1_of_known_logits(resnet20: ModuleType) -> None:
    assert resnet20.metric({"logits": np.eye(4)}, {"label": np.array([0, 1, 2, 0])}) == {"top1": 0.75}


def test_missing_options_and_files_are_told(resnet20: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"expected --weights DIR.*{FILE}.*akamaster"):
        load_model_file(PATH).build()
    with pytest.raises(SourceError, match=rf"expected {FILE} of https://github.com/akamaster.*neither"):
        load_model_file(PATH, weights=tmp_path).build()
    with pytest.raises(SourceError, match=r"expected --data DIR.*train_first1000\.npz"):
        next(load_model_file(PATH).inputs("recovery"))
    with pytest.raises(SourceError, match=r"expected test_first500\.npz.*found neither"):
        next(load_model_file(PATH, data=tmp_path).inputs("evaluation"))
    with pytest.raises(ValueError, match="found 'train'"):
        next(resnet20.inputs("train", tmp_path))


def test_exported_graph_takes_any_batch(resnet20: ModuleType, cifar: Path, tmp_path: Path) -> None:
    import onnxruntime

    network = resnet20.ResNet20().eval()
    image = next(resnet20.inputs("evaluation", cifar))["image"]
    program = torch.onnx.export(
        network,
        kwargs={"image": image[:2]},
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=resnet20.dynamic_shapes,
    )
    program.save(tmp_path / "resnet20.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "resnet20.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        (logits,) = session.run(None, {"image": image[:rows].numpy()})
        with torch.no_grad():
            expected = network(image[:rows]).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
