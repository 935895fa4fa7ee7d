"""What to say of a SOURCE that is not there: it may be the name of a network on the Hub or in torchvision."""

from __future__ import annotations

import re
from pathlib import Path

_TORCHVISION = re.compile(
    r"(alexnet|convnext_|densenet\d|efficientnet_|googlenet|inception_v3|maxvit_t|mnasnet\d|mobilenet_v|regnet_"
    r"|resnet\d|resnext\d|shufflenet_v|squeezenet\d|swin_|vgg\d|vit_[blh]_|wide_resnet\d)\w*"
)
_HUB = re.compile(r"(?:[\w-][\w.-]*/)?([\w-][\w.-]*)")
_SUFFIXES = (".py", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors", ".json", ".onnx", ".zip", ".npz")


def advice_for(path: Path) -> str | None:
    """How to get the network whose name ``path``, which does not exist, may be; None for a file's name."""
    name = path.as_posix()
    if _TORCHVISION.fullmatch(name):
        return (
            "if it is torchvision's, save it by "
            f'`python -c "import torch, torchvision; torch.save(torchvision.models.{name}'
            f"(weights='DEFAULT').eval(), '{name}.pt')\"` and give "
            f"`{name}.pt --trust-pickle --input-shape 1,3,224,224`"
        )
    match = _HUB.fullmatch(name)
    in_a_folder = path.parent != Path() and path.parent.exists()
    if match is None or in_a_folder or path.suffix.lower() in _SUFFIXES:
        return None
    return (
        "svd2onnx downloads nothing: if it is a network on the Hugging Face Hub, get it by "
        f"`hf download {name} --local-dir {match[1]}` (pip install huggingface_hub) and give the folder "
        f"{match[1]}"
    )
