"""Plain ViT and DeiT of timm and transformers with random weights, for trying the front end on other people's graphs.

In: a name of `presets.EXTERNAL` and a seed. Out: a module from the image [1, 3, 224, 224] to logits.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moehls.errors import MoehlsError

from .m3vit import initialise

CLASSES = 1000


class External(nn.Module):
    """Another library's classifier, reduced to image in, logits out."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        self.image_shape = image_shape

    def forward(self, image: Tensor) -> Tensor:
        out = self.model(image)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits


def build_external(name: str, seed: int) -> External:
    """Build `timm/…` or `transformers/…`, weights drawn from `seed`; MoehlsError where the library is missing."""
    library, model_name = name.split("/", 1)
    if importlib.util.find_spec(library) is None:
        raise MoehlsError(f"{name} needs {library}; install it with: pip install 'moehls[models]'")
    _declare_torchvision_operators()
    model = _timm(model_name) if library == "timm" else _transformers(model_name)
    initialise(model, seed)
    return External(model, (3, 224, 224)).eval()


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    return model


def _transformers(name: str) -> nn.Module:
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "num_labels": CLASSES,
    }
    if name == "vit-tiny":
        vit: nn.Module = transformers.ViTForImageClassification(transformers.ViTConfig(**shape))
        return vit
    deit: nn.Module = transformers.DeiTForImageClassification(transformers.DeiTConfig(**shape))
    return deit


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported where its compiled operators cannot load.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its library does not load, and the import fails
    for want of two operators' declarations. No vision transformer calls them.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or "torchvision" in sys.modules:
        return
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
