"""Weights from a folder of state dicts, and the messages where they are not as expected."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

PATH = Path(__file__).parents[2] / "models" / "state_dicts.py"
PATTERN, URL = "net-*.pth", "https://example.org/net-1234.pth"


@pytest.fixture(scope="module")
def state_dicts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("state_dicts_under_test", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))


def test_network_has_the_tensors_of_the_file(state_dicts: ModuleType, tmp_path: Path) -> None:
    saved = _network()
    saved(torch.randn(4, 3, 2, 2))  # statistics of their own
    torch.save(saved.state_dict(), tmp_path / "net-1234.pth")
    loaded = state_dicts.pretrained_or_random(_network, tmp_path, False, PATTERN, URL)
    assert not any(module.training for module in loaded.modules())
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_other_shapes_are_refused(state_dicts: ModuleType, tmp_path: Path) -> None:
    torch.save(_network(4).state_dict(), tmp_path / "net-1234.pth")
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        state_dicts.pretrained_or_random(_network, tmp_path, False, PATTERN, URL)


def test_missing_tensors_are_refused(state_dicts: ModuleType, tmp_path: Path) -> None:
    state = _network().state_dict()
    del state["1.running_var"]
    torch.save(state, tmp_path / "net-1234.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.running_var"):
        state_dicts.pretrained_or_random(_network, tmp_path, False, PATTERN, URL)


def test_files_that_run_code_are_refused(state_dicts: ModuleType, tmp_path: Path) -> None:
    torch.save(_network(), tmp_path / "net-1234.pth")  # a pickled module
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        state_dicts.pretrained_or_random(_network, tmp_path, False, PATTERN, URL)


def test_random_weights_are_always_the_same_and_leave_other_randomness_alone(
    state_dicts: ModuleType,
) -> None:
    before = torch.get_rng_state()
    first, second = (state_dicts.pretrained_or_random(_network, None, True, PATTERN, URL) for _ in range(2))
    assert torch.equal(first[0].weight, second[0].weight)
    assert len(first[0].weight.unique()) == 9
    assert not first.training
    assert torch.equal(torch.get_rng_state(), before)


def test_neither_option_says_what_is_wanted(state_dicts: ModuleType) -> None:
    with pytest.raises(ValueError, match=rf"^expected --weights DIR.*net-\*\.pth from {URL}.*--random-we"):
        state_dicts.pretrained_or_random(_network, None, False, PATTERN, URL)


def test_folder_without_the_file_says_where_it_is_published(state_dicts: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^expected net-\*\.pth in .*found none: {URL}"):
        state_dicts.find(tmp_path, PATTERN, URL)


def test_two_files_are_ambiguous(state_dicts: ModuleType, tmp_path: Path) -> None:
    for name in ("net-1.pth", "net-2.pth"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"found net-1\.pth, net-2\.pth: keep one"):
        state_dicts.find(tmp_path, PATTERN, URL)
