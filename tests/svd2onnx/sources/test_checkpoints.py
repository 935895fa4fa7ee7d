"""Checkpoints as training scripts write them: the right weights are loaded, or one line says what to do."""

import json
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from svd2onnx.cli.main import main
from svd2onnx.sources.checkpoint import choose, is_average, preferred
from svd2onnx.sources.load import load_source
from svd2onnx.sources.pickled import unwrapped
from svd2onnx.sources.source import Source
from svd2onnx.sources.state_dict import load_into
from svd2onnx.values.errors import SourceError
from svd2onnx.values.settings import Settings
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.sources import files
from tests.svd2onnx.sources.files import Harm

SCRIPT = """
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.model = nn.Sequential(nn.Linear(8, 4))

        def forward(self, x):
            return self.model(self.norm(self.conv(x)).mean((2, 3)))

    def build():
        torch.manual_seed(0)
        return Small()

    def inputs(split):
        yield {"x": torch.randn(4, 3, 8, 8)}
"""
Weights = dict[str, Tensor]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The training script: its network has a part that is itself called ``model``."""
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    return tmp_path / "train.py"


def weights(seed: int = 1) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "norm.weight": (8,), "norm.bias": (8,),
        "norm.running_mean": (8,), "norm.running_var": (8,), "model.0.weight": (4, 8), "model.0.bias": (4,),
    }  # fmt: skip
    made = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "norm.num_batches_tracked": torch.tensor(3)}


def before(prefix: str, own: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in own.items()}


def loaded(script: Path, content: object, key: str | None = None, *, trusted: bool = False) -> Source:
    torch.save(content, script.parent / "x.pt")
    return load_source(
        script.parent / "x.pt", Settings(model=script, checkpoint_key=key, trust_pickle=trusted)
    )


def check(source: Source, seed: int = 1) -> None:
    """The source's network has the weights of this ``seed``, all of them."""
    found = source.build().state_dict()
    for name, tensor in weights(seed).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], tensor), name


def refusal(script: Path, content: object, key: str | None = None) -> str:
    with pytest.raises(SourceError) as error:
        loaded(script, content, key)
    assert "\n" not in str(error.value)
    assert "x.pt" in str(error.value)
    return str(error.value)


OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]}
USUAL: dict[str, Any] = {
    "as it is": weights(),
    "DataParallel": before("module.", weights()),
    "torch.compile": before("_orig_mod.", weights()),
    "DDP of a compiled one": before("module._orig_mod.", weights()),
    "a compiled part": {name.replace("model.", "model._orig_mod."): t for name, t in weights().items()},
    "a sharded part": {
        name.replace("conv.", "conv._fsdp_wrapped_module."): t for name, t in weights().items()
    },
    "Lightning": {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": before("model.", weights()),
        "optimizer_states": [OPTIMIZER],
        "hyper_parameters": {"lr": 1e-3, "name": None},
    },
    "Lightning, net": {"state_dict": before("net.", weights())},
    "ImageNet example": {"state_dict": before("module.", weights()), "best_acc1": torch.tensor(71.0)},
    "model_state_dict": {"model_state_dict": weights(), "optimizer_state_dict": OPTIMIZER, "loss": 0.1},
    "network": {"network": weights()},
    "nested": {"model": {"state_dict": weights()}, "epoch": 3},
    "timm's average": {"state_dict_ema": weights(), "epoch": 1},
    "ema": {"ema": weights(), "updates": 7},
    "model_ema": {"model_ema": before("module.", weights())},
    "AveragedModel": {"n_averaged": torch.tensor(3), **before("module.", weights())},
    "before batches were counted": {n: t for n, t in weights().items() if "num_batches" not in n},
    "a list": [OrderedDict(weights()), 3],
    "an epoch among them": {**weights(), "epoch": 3, "arch": "small"},
    "the same twice": (lambda own: {"model": own, "net": dict(own)})(weights()),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_wrappings_are_taken_off(name: str, script: Path) -> None:
    source = loaded(script, USUAL[name])
    check(source)
    assert source.warnings == ()


def test_names_in_safetensors_lose_their_prefix_too(script: Path, tmp_path: Path) -> None:
    save_file(before("module.", weights()), tmp_path / "x.safetensors")
    check(load_source(tmp_path / "x.safetensors", Settings(model=script)))
    both = {**before("student.", weights(1)), **before("teacher.", weights(2))}
    save_file(both, tmp_path / "y.safetensors")
    check(load_source(tmp_path / "y.safetensors", Settings(model=script, checkpoint_key="teacher")), 2)


def test_old_checkpoints_leave_the_count_of_batches(script: Path) -> None:
    own = {name: tensor for name, tensor in weights().items() if "num_batches" not in name}
    assert loaded(script, own).build().state_dict()["norm.num_batches_tracked"] == 0


@pytest.mark.parametrize("average", ["ema", "model_ema", "state_dict_ema", "swa_state_dict"])
def test_plain_weights_come_before_an_average(average: str, script: Path) -> None:
    content = {average: weights(2), "model": weights(1)}
    source = loaded(script, content)
    check(source, 1)
    (warning,) = source.warnings
    assert "'model' was taken" in warning
    assert f"--checkpoint-key {average}" in warning
    chosen = loaded(script, content, average)
    check(chosen, 2)
    assert chosen.warnings == ()


def test_an_average_among_the_names_of_lightning(script: Path) -> None:
    own = {**before("ema.module.", weights(2)), **before("model.", weights(1)), "loss.scale": torch.ones(1)}
    source = loaded(script, {"state_dict": own})
    check(source, 1)
    several, left = source.warnings
    assert "--checkpoint-key state_dict.ema.module" in several
    assert "'loss.scale'" in left
    assert "'ema." not in left
    check(loaded(script, {"state_dict": own}, "state_dict.ema.module"), 2)
    check(loaded(script, {"state_dict": own}, "state_dict.ema"), 2)


def test_an_average_does_not_hide_the_weights_it_is_of(script: Path) -> None:
    """Under names that are no wrapper's: the average was taken, and the others told to be strangers."""
    own = {**before("online_model.", weights(1)), **before("ema_model.", weights(2)), "step": torch.ones(1)}
    source = loaded(script, own)
    check(source, 1)
    assert "--checkpoint-key ema_model" in source.warnings[0]
    assert not any("left out" in warning for warning in source.warnings)
    check(loaded(script, own, "ema_model"), 2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_codes_are_no_weights(dtype: torch.dtype, script: Path) -> None:
    """Copied into floats they would load without a word."""
    own = weights()
    line = refusal(script, {**own, "conv.weight": (own["conv.weight"] * 100).to(dtype)})
    assert f"has 'conv.weight' in {str(dtype)[6:]}, where the network has float32" in line


def test_what_counted_operations_is_passed_over(script: Path) -> None:
    own = {**weights(), "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}
    source = loaded(script, own)
    check(source)
    assert source.warnings == ()


class Kept(nn.Module):
    """A layer with weight norm, and places that are made anew whenever it is."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.register_buffer("places", torch.arange(6), persistent=False)


def test_buffers_that_were_stored_once_may_still_be_there() -> None:
    own = seeded(Kept).state_dict()
    where = Path("x.pt"), Path("net.py")
    for prefix in ("", "module."):
        stored = {**before(prefix, own), f"{prefix}places": torch.arange(6)}
        assert load_into(Kept(), stored, *where) == ()
    with pytest.raises(SourceError, match=r"has 'places' that build\(\) does not"):
        load_into(Kept(), {**own, "places": torch.arange(6) + 1}, *where)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_names_that_the_network_itself_knows(prefix: str) -> None:
    """PyTorch gave weight norm other names, and takes the old ones."""
    own = seeded(Kept).state_dict()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor + 1
        for name, tensor in own.items()
    }
    assert "layer.weight_g" in old
    network = Kept()
    load_into(network, before(prefix, old), Path("x.pt"), Path("net.py"))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, own[name] + 1)
    with pytest.raises(SourceError, match=r"lacks 'layer\.bias'"):
        load_into(Kept(), {n: t for n, t in old.items() if n != "layer.bias"}, Path("x.pt"), Path("net.py"))


def test_the_usual_name_comes_before_others(script: Path) -> None:
    source = loaded(script, {"best": weights(2), "model": weights(1)})
    check(source, 1)
    assert "--checkpoint-key best" in source.warnings[0]


@pytest.mark.parametrize(
    "content",
    [
        {"model": weights(1), "state_dict": weights(2)},
        {"student": weights(1), "teacher": weights(2)},
        {"ema": weights(1), "ema_slow": weights(2)},
        {"state_dict": {**before("student.", weights(1)), **before("teacher.", weights(2))}},
    ],
    ids=["usual", "unusual", "averages", "names"],
)
def test_two_that_fit_equally_are_not_guessed_between(content: dict[str, Any], script: Path) -> None:
    line = refusal(script, content)
    assert "2 networks that fit equally" in line
    key = line.rpartition("--checkpoint-key ")[2]
    assert repr(key) in line
    check(loaded(script, content, key), 1)


def test_an_unusual_prefix_is_taken_off_and_said_so(script: Path) -> None:
    source = loaded(script, before("encoder.", weights()))
    check(source)
    assert "'encoder.'" in source.warnings[0]


def test_a_part_of_another_network_is_taken_only_where_asked_for(script: Path) -> None:
    content = {"state_dict": {**before("encoder.", weights()), "head.weight": torch.ones(3)}}
    line = refusal(script, content)
    assert "'head.weight'" in line
    assert line.endswith("--checkpoint-key state_dict.encoder")
    check(loaded(script, content, "state_dict.encoder"))


def test_missing_and_unexpected_names_are_counted(script: Path) -> None:
    own = {name: t for name, t in weights().items() if not name.startswith("norm.")}
    line = refusal(
        script, {"model": before("module.", {**own, "extra": torch.ones(1)}), "optimizer": OPTIMIZER}
    )
    assert "under 'model'" in line
    assert "without 'module.'" in line
    assert "lacks 'norm.weight', 'norm.bias', 'norm.running_mean' and 1 more" in line
    assert "has 'extra' that build() does not" in line


def test_a_prefix_is_kept_where_the_rest_does_not_fit(script: Path) -> None:
    """``model.0`` is a part of the network: of its names alone nothing is made."""
    line = refusal(script, {n: t for n, t in weights().items() if n.startswith("model.")})
    assert "lacks 'conv.weight'" in line
    other = {**weights(), "model.0.weight": torch.ones(5, 8)}
    assert "'model.0.weight' of other shapes ([5, 8], not [4, 8])" in refusal(
        script, before("module.", other)
    )


@pytest.mark.parametrize(
    ("content", "key", "parts"),
    [
        ({"model": weights(), "ema": weights(2)}, "emma", ("nothing under", "emma", "'model', 'ema'")),
        ({"model": weights(), "ema": weights(2)}, "model.state_dict", ("nothing under", "'model', 'ema'")),
        ({"model": weights(), "epoch": 3}, "epoch", ("int under", "no weights", "'model'")),
        (weights(), "model_", ("nothing under", "'conv', 'norm', 'model'")),
        ([weights()], "1", ("nothing under", "one of '0'")),
    ],
    ids=["unknown", "too deep", "number", "flat", "list"],
)
def test_an_unknown_key_lists_those_there_are(
    content: object, key: str, parts: tuple[str, ...], script: Path
) -> None:
    line = refusal(script, content, key)
    for part in parts:
        assert part in line


def test_keys_may_have_dots(tmp_path: Path) -> None:
    content = {"a": {"b": {}}, "a.b": {"c.d": {"w": torch.ones(1)}}, 3: {"w": torch.ones(2)}}
    assert list(choose(tmp_path, content, "a.b.c.d")) == ["w"]
    assert choose(tmp_path, content, "3")["w"].numel() == 2


def test_a_chosen_table_must_fit_all_the_same(script: Path) -> None:
    content = {"model": weights(), "ema": {"conv.weight": torch.ones(8, 3, 3, 3)}}
    assert "lacks 'conv.bias'" in refusal(script, content, "ema")


def test_the_key_is_refused_where_there_is_no_checkpoint(script: Path, tmp_path: Path) -> None:
    torch.save(seeded(Mlp), tmp_path / "n.pt")
    for source, options in ((script, ()), (tmp_path / "n.pt", ("--trust-pickle", "--input-shape", "1,64"))):
        result = CliRunner().invoke(main, ["inspect", str(source), "--checkpoint-key", "ema", *options])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: --checkpoint-key was given, and ")
        assert result.stderr.endswith("leave it out\n")


def test_the_report_says_what_was_taken(tmp_path: Path) -> None:
    own = files.state_dict()
    torch.save(
        {"model": before("module.", own), "ema": own | {"norm.bias": torch.ones(128)}}, tmp_path / "x.pt"
    )
    options = ["--model", files.model_file(tmp_path / "n.py"), "-o", tmp_path / "x.onnx", "--provider", "cpu"]
    for key in ([], ["--checkpoint-key", "ema"]):
        arguments = ["compress-export", tmp_path / "x.pt", "--method", "quantize", *options, *key]
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "x.onnx.report.json").read_text())
        assert report["settings"]["checkpoint_key"] == (key[1] if key else None)
        assert any("--checkpoint-key ema" in warning for warning in report["warnings"]) is not bool(key)


def test_what_a_module_keeps_beside_tensors_is_loaded(tmp_path: Path) -> None:
    class Scaled(nn.Linear):
        scale = 1.0

        def get_extra_state(self) -> float:
            return self.scale

        def set_extra_state(self, state: float) -> None:
            self.scale = state

    network, other = Scaled(2, 2), Scaled(2, 2)
    other.scale = 3.0
    load_into(network, before("module.", other.state_dict()), tmp_path, tmp_path)
    assert network.scale == 3.0
    own = {name: value for name, value in other.state_dict().items() if name != "_extra_state"}
    with pytest.raises(SourceError, match="lacks '_extra_state'"):
        load_into(network, own, tmp_path, tmp_path)


def test_names_of_many_parts_end(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not fit"):
        load_into(nn.Linear(2, 2), {"a." * 5000 + "weight": torch.ones(2, 2)}, tmp_path, tmp_path)


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, compiled], ids=lambda f: f.__name__)
def test_a_pickled_network_is_taken_out_of_what_runs_it(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(seeded(Mlp)), tmp_path / "x.pt")
    source = load_source(tmp_path / "x.pt", Settings(trust_pickle=True, input_shape=("1,64",)))
    assert type(source.build()) is Mlp
    assert type(unwrapped(nn.DataParallel(wrap(seeded(Mlp))))) is Mlp


def test_pickled_networks_in_a_checkpoint(tmp_path: Path) -> None:
    """And not its criterion, which has no parameters."""
    content = {
        "criterion": nn.MSELoss(), "ema": seeded(Mlp, seed=2), "model": seeded(Mlp).half(), "optimizer": None
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    settings = {"trust_pickle": True, "input_shape": ("1,64",)}
    source = load_source(tmp_path / "x.pt", Settings(**settings))
    assert torch.equal(source.build().first.weight, seeded(Mlp).first.weight.half().float())
    assert "--checkpoint-key ema" in source.warnings[-1]
    source = load_source(tmp_path / "x.pt", Settings(**settings, checkpoint_key="ema"))
    assert torch.equal(source.build().first.weight, seeded(Mlp, seed=2).first.weight)
    assert "ema" not in "".join(source.warnings)
    torch.save({"a": seeded(Mlp), "b": seeded(Mlp)}, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="fit equally, under 'a', 'b'"):
        load_source(tmp_path / "x.pt", Settings(**settings))


def by_main(script: Path, content: str) -> Path:
    """What ``torch.save`` writes where ``script`` is the program that runs."""
    import subprocess
    import sys

    program = f"{script.read_text()}\nnetwork = build()\ntorch.save({content}, 'x.pt')\n"
    (script.parent / "program.py").write_text(program)
    subprocess.run([sys.executable, "program.py"], cwd=script.parent, check=True)
    return script.parent / "x.pt"


def test_classes_of_the_script_are_found_in_the_model_file(script: Path) -> None:
    source = by_main(script, "network")
    with pytest.raises(SourceError, match=r"__main__\.Small.*--trust-pickle with --model FILE\.py"):
        load_source(source, Settings(model=script))
    with pytest.raises(SourceError, match=r"needs __main__\.Small .* expected --model FILE\.py"):
        load_source(source, Settings(trust_pickle=True))
    found = load_source(source, Settings(trust_pickle=True, model=script))
    assert type(found.build()).__name__ == "Small"
    assert torch.equal(found.build().conv.weight, next(seeded_by(script).parameters()))
    assert [tuple(batch["x"].shape) for batch in found.inputs("calibration")] == [(4, 3, 8, 8)]
    shaped = load_source(source, Settings(trust_pickle=True, model=script, input_shape=("1,3,9,9",)))
    assert {tuple(batch["x"].shape)[1:] for batch in shaped.inputs("calibration")} == {(3, 9, 9)}
    script.write_text("import torch\n")
    with pytest.raises(SourceError, match=r"needs the code of its classes .*Small.*train\.py"):
        load_source(source, Settings(trust_pickle=True, model=script))


def seeded_by(script: Path) -> nn.Module:
    from svd2onnx.sources.model_file import load_model_file

    return load_model_file(script).build()


def test_weights_beside_an_object_of_the_script(script: Path) -> None:
    content = "{'model': network.state_dict(), 'config': type('Config', (), {})}"
    script.write_text(script.read_text() + "\nclass Config:\n    pass\n")
    source = by_main(script, content.replace("type('Config', (), {})", "Config()"))
    found = load_source(source, Settings(trust_pickle=True, model=script))
    assert torch.equal(found.build().conv.weight, seeded_by(script).conv.weight)


def test_nothing_runs_for_a_key(script: Path, tmp_path: Path) -> None:
    line = refusal(script, {"model": weights(), "x": Harm(tmp_path / "mark")}, "model")
    assert "--trust-pickle" in line
    assert not (tmp_path / "mark").exists()


def deep() -> object:
    value: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(300):
        value = {"a" * 100: value}
    return value


def circular() -> object:
    value: dict[str, Any] = {"w": torch.ones(1)}
    return value | {"again": [value, value]}


@pytest.mark.parametrize("make", [deep, circular], ids=lambda make: make.__name__)
def test_odd_containers_end(make: Callable[[], object], script: Path) -> None:
    assert "expected" in refusal(script, make())


def test_odd_keys_are_passed_over(script: Path) -> None:
    check(loaded(script, {2**70: {"w": torch.ones(1)}, (1, 2): {}, None: {}, "model": weights()}))


def test_a_large_optimizer_does_not_hide_the_weights(script: Path) -> None:
    state = {index: {"step": torch.tensor(1.0), "exp_avg": torch.ones(1)} for index in range(2000)}
    check(loaded(script, {"optimizer": {"state": state}, "model": weights()}))


@pytest.mark.parametrize(
    ("paths", "best"),
    [
        (["model", "ema"], "model"),
        (["state_dict.ema", "state_dict.model"], "state_dict.model"),
        (["a", "b"], None),
        (["generator", "generator_ema"], "generator"),
        (["", "model"], ""),
        (["ema"], "ema"),
    ],
)
def test_preferred(paths: list[str], best: str | None) -> None:
    assert preferred(paths) == best


def test_names_of_averages() -> None:
    assert all(map(is_average, ("ema", "model_ema", "ema_model.x", "params_ema", "EMA", "averaged_model")))
    assert not any(map(is_average, ("", "model", "schema", "remake", "cinema.x")))
