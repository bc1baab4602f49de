"""What stands before and behind a vision transformer in one graph: image preprocessing, and what is made of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import CHANNELS, HEIGHT, IMAGE_WIDTH, PATCH, Form
from models.exports.small_vit import SmallVit

_MEAN = torch.tensor([0.485, 0.406])
_DEVIATION = torch.tensor([0.229, 0.225])


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, CHANNELS, 1, 1)


BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "scaled": lambda x: (x - _by_channel(_MEAN)) / _by_channel(_DEVIATION),
    "bytes": lambda x: (x.float() / 255 - _by_channel(_MEAN)) / _by_channel(_DEVIATION),
    "channels_last": lambda x: ((x.float() * (1 / 255) - _MEAN) / _DEVIATION).permute(0, 3, 1, 2),
    "channels_last_scaled": lambda x: (x / 127.5 - 1).permute(0, 3, 1, 2),
    "turned": lambda x: 1 - x.permute(0, 3, 1, 2).flip(1) * 2,
}
"""What is done to the image; in `turned` the channels change places, as from BGR to RGB."""
AFTER: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]] = {
    "none": lambda x: x,
    "softmax": lambda x: F.softmax(x * 2.5, dim=-1),
    "sigmoid": lambda x: torch.sigmoid(x).squeeze(0),
    "classes": lambda x: x.argmax(-1),
    "best": lambda x: x.softmax(-1).topk(2),
    "unit": lambda x: F.normalize(x, dim=-1) * 14.3,
    "map": lambda x: x[:, 1:].transpose(1, 2).reshape(1, -1, HEIGHT // PATCH, IMAGE_WIDTH // PATCH),
    "labels": lambda x: (
        x[:, 1:].reshape(1, HEIGHT // PATCH, IMAGE_WIDTH // PATCH, -1).permute(0, 3, 1, 2).argmax(1).int()
    ),
}
"""What is made of the logits, of those of all tokens in `map` and `labels`."""


@dataclass(frozen=True)
class Surroundings:
    """Names of what stands before and behind."""

    before: str = "none"
    after: str = "none"
    patch_norm: bool = False
    """whether each patch is normalised before the embedding (vit-pytorch)"""


SURROUNDED: dict[str, Surroundings] = {
    "input_scaled": Surroundings(before="scaled"),
    "input_bytes": Surroundings(before="bytes"),
    "input_channels_last": Surroundings(before="channels_last"),
    "input_patch_norm": Surroundings(before="channels_last_scaled", patch_norm=True),
    "input_turned": Surroundings(before="turned", after="sigmoid"),
    "output_softmax": Surroundings(after="softmax"),
    "output_classes": Surroundings(before="bytes", after="classes"),
    "output_best": Surroundings(after="best"),
    "output_unit": Surroundings(after="unit"),
    "output_map": Surroundings(after="map"),
    "output_labels": Surroundings(before="channels_last", after="labels"),
}


class SurroundedVit(nn.Module):
    def __init__(self, form: Surroundings) -> None:
        super().__init__()
        self.form = form
        head = "all_tokens" if form.after in ("map", "labels") else "class"
        embed = "linear_channels_last" if form.patch_norm else "conv"
        self.model = SmallVit(Form(embed=embed, head=head, experts="none"))
        if form.patch_norm:
            linear = self.model.embed.linear
            self.model.embed.linear = nn.Sequential(nn.LayerNorm(linear.in_features), linear)  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        (logits,) = self.model(BEFORE[self.form.before](image))
        return AFTER[self.form.after](logits)


def example(form: Surroundings) -> Tensor:
    """An input of the form's shape and type."""
    last = form.before in ("channels_last", "channels_last_scaled", "turned")
    shape = (1, HEIGHT, IMAGE_WIDTH, CHANNELS) if last else (1, CHANNELS, HEIGHT, IMAGE_WIDTH)
    if form.before in ("bytes", "channels_last"):
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.randn(shape)
