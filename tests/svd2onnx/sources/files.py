"""Small files of every kind that a source can be, and wrong ones made of them."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.networks import Mlp, seeded

WORDS = "[UNK] [PAD] the cat dog sat ran on under a mat tree and then slept for long hours".split()


class Harm:
    """Unpickling one creates a file: what no test may find."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class Texts(nn.Module):
    """ids [batch, length] -> [batch, length, 160] and the states before: a table that is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.norm = nn.Embedding(160, 64), nn.Linear(64, 96), nn.LayerNorm(96)
        self.second, self.head = nn.Linear(96, 64), nn.Linear(64, 160, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self.second(torch.relu(self.norm(self.first(self.table(ids)))))
        return self.head(states), states


class Pictures(nn.Module):
    """x [batch, 3, height, width] -> [batch, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.point, self.head = nn.Conv2d(24, 48, 3, stride=2, groups=2), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(torch.relu(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def export_program(
    network: nn.Module, example: tuple[Tensor, ...], path: Path, axes: dict[str, dict[int, str]] | None = None
) -> Path:
    """Write a .pt2 of ``network`` with dynamic ``axes`` by argument."""
    names = {name for own in (axes or {}).values() for name in own.values()}
    dims = {name: torch.export.Dim(name) for name in sorted(names)}
    shapes = {
        argument: {axis: dims[name] for axis, name in own.items()} for argument, own in (axes or {}).items()
    }
    program = torch.export.export(network, example, dynamic_shapes=shapes or None)
    torch.export.save(program, path)
    return path


def text_program(path: Path) -> Path:
    """Of ``Texts``, with dynamic batch and length."""
    axes = {"ids": {0: "batch", 1: "length"}}
    return export_program(seeded(Texts), (torch.randint(0, 160, (2, 7)),), path, axes)


def picture_program(path: Path, *, is_static: bool = False) -> Path:
    """Of ``Pictures``, 16 by 16."""
    axes = None if is_static else {"x": {0: "batch"}}
    return export_program(seeded(Pictures), (torch.randn(2, 3, 16, 16),), path, axes)


def model_file(path: Path) -> Path:
    """The model file of the other tests."""
    path.write_text(MODEL_FILE)
    return path


def state_dict() -> dict[str, Tensor]:
    """Weights for ``model_file``, not those that it has itself."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "table.weight": (160, 64), "first.weight": (128, 64), "first.bias": (128,), "norm.weight": (128,),
        "norm.bias": (128,), "second.weight": (64, 128), "second.bias": (64,),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


def pickled(path: Path) -> Path:
    """A whole Mlp."""
    torch.save(seeded(Mlp), path)
    return path


def token_arrays(path: Path, rows: int = 40) -> Path:
    """Ids for ``Texts`` and for ``model_file``."""
    np.savez(path, ids=np.random.default_rng(0).integers(0, 160, (rows, 7)))
    return path


def picture_folder(path: Path, count: int = 12) -> Path:
    """Random pictures of 20 by 24."""
    from PIL import Image

    path.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (count, 20, 24, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(path / f"{index}.png")
    return path


def bert_folder(path: Path, **changes: Any) -> Path:
    """A BertModel of one layer, with a tokenizer of whole words."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **{**sizes, **changes})
    torch.manual_seed(0)
    save_quietly(BertModel(config), path)
    tokenizer_file(path)
    return path


def gpt2_folder(path: Path) -> Path:
    """A GPT-2 of one layer, without a tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=100, n_positions=40, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    save_quietly(GPT2LMHeadModel(config), path)
    return path


def save_quietly(network: Any, path: Path) -> None:
    """Without progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    network.save_pretrained(path)


def tokenizer_file(folder: Path) -> None:
    """One that knows WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    description = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(description))


def text_file(path: Path, count: int = 40) -> Path:
    """Lines of 3 to 12 of WORDS."""
    generator = np.random.default_rng(0)
    lines = (" ".join(generator.choice(WORDS[2:], generator.integers(3, 13))) for _ in range(count))
    path.write_text("\n".join(lines))
    return path


def edited_archive(source: Path, target: Path, member: str, edit: Callable[[bytes], bytes | None]) -> Path:
    """``source`` with the member whose name ends so changed, or left out where ``edit`` gives None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        assert any(name.endswith(member) for name in names), names
        for name in names:
            content = edit(old.read(name)) if name.endswith(member) else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return target


def edited_json(source: Path, target: Path, member: str, edit: Callable[[Any], object]) -> Path:
    """Likewise, where ``edit`` changes the JSON of the member in place."""

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return edited_archive(source, target, member, change)
