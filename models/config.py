"""The shape of a vision transformer of the M3ViT family, and its change by `key=value` settings.

In: texts from the command line. Out: a `VitConfig`, checked. No torch here, so that listing the zoo needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from moehls.errors import MoehlsError

GateKind = Literal["multi-gate", "task-conditioned"]
ExpertStyle = Literal["dense", "gather", "loop"]
AttentionStyle = Literal["manual", "fused"]

_CHOICES = {
    "gate": get_args(GateKind),
    "expert_style": get_args(ExpertStyle),
    "attention_style": get_args(AttentionStyle),
}
_SIZES = ("image_height", "image_width", "image_channels", "patch", "width", "depth", "heads", "mlp_hidden", "tasks")


@dataclass(frozen=True)
class VitConfig:
    """A vision transformer; with `experts > 0` every second block, the odd ones, has experts in place of its MLP."""

    image_height: int = 224
    image_width: int = 224
    image_channels: int = 3
    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_hidden: int = 768
    class_tokens: int = 1
    experts: int = 0
    expert_hidden: int = 0
    k: int = 0
    tasks: int = 1
    gate: GateKind = "multi-gate"
    noisy_gate: bool = False
    """Write the gate as the authors' evaluation code does: noise times zero, top k + 1, cut to k. Same values."""
    final_norm: bool = False
    outputs: tuple[tuple[str, int], ...] = ()
    """(name, classes) of each linear head; head i reads class token min(i, class_tokens - 1). Empty: tokens out."""
    epsilon: float = 1e-6
    expert_style: ExpertStyle = "dense"
    """How the experts are written for the exporter: one einsum, gathered weights, or a loop with a mask."""
    attention_style: AttentionStyle = "manual"
    """Matrix products and softmax, or `scaled_dot_product_attention`."""

    @property
    def patches(self) -> int:
        return (self.image_height // self.patch) * (self.image_width // self.patch)

    @property
    def tokens(self) -> int:
        return self.class_tokens + self.patches

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(1, self.depth, 2)) if self.experts else ()

    @property
    def gate_inputs(self) -> int:
        """Channels that the gate reads: a task-conditioned gate sees the one-hot task vector beside the token."""
        return self.width + (self.tasks if self.gate == "task-conditioned" else 0)

    @property
    def gates(self) -> int:
        return self.tasks if self.gate == "multi-gate" else 1


def checked(config: VitConfig) -> VitConfig:
    """`config` itself where it describes a model; MoehlsError with the first reason where it does not."""
    for name in _SIZES:
        if getattr(config, name) < 1:
            raise MoehlsError(f"zoo setting {name}={getattr(config, name)}: must be at least 1")
    if config.image_height % config.patch or config.image_width % config.patch:
        raise MoehlsError(
            f"an image of {config.image_height}×{config.image_width} is not a whole number of patches of "
            f"{config.patch}×{config.patch}; change image_height, image_width or patch"
        )
    if config.width % config.heads:
        raise MoehlsError(f"width {config.width} is not a multiple of the {config.heads} heads; change width or heads")
    if config.experts and not (1 <= config.k <= config.experts and config.expert_hidden >= 1):
        raise MoehlsError(
            f"{config.experts} experts need 1 ≤ k ≤ {config.experts} and expert_hidden ≥ 1, "
            f"not k={config.k} and expert_hidden={config.expert_hidden}"
        )
    if config.tasks > 1 and not config.moe_layers:
        raise MoehlsError(f"tasks={config.tasks} needs a block with experts: only gates tell tasks apart")
    names = [name for name, _ in config.outputs]
    if len({*names, "image", "task"}) != len(names) + 2 or not all(names):
        raise MoehlsError(
            f"outputs named {names}: names must differ from each other and from the inputs image and task"
        )
    if any(classes < 1 for _, classes in config.outputs):
        raise MoehlsError(f"outputs {config.outputs}: each needs at least one class")
    if config.class_tokens < 0 or (config.outputs and not config.class_tokens):
        raise MoehlsError(f"class_tokens={config.class_tokens}: a head needs at least one class token")
    if not config.epsilon > 0:
        raise MoehlsError(f"zoo setting epsilon={config.epsilon}: must be above 0")
    return config


def with_settings(config: VitConfig, settings: Mapping[str, str]) -> VitConfig:
    """`config` with fields replaced by `key=value` texts, as in `--set depth=4 --set outputs=digit:10,parity:2`.

    Raises:
        MoehlsError: unknown key, a value that does not parse, or a configuration that is no model.
    """
    known = [field.name for field in dataclasses.fields(VitConfig)]
    values: dict[str, object] = {}
    for key, text in settings.items():
        if key not in known:
            raise MoehlsError(f"unknown zoo setting {key!r}; known: {', '.join([*known, 'seed'])}")
        values[key] = _parse(key, text, getattr(config, key))
    return checked(dataclasses.replace(config, **values))  # type: ignore[arg-type]


def _parse(key: str, text: str, default: object) -> object:
    if key in _CHOICES:
        if text not in _CHOICES[key]:
            raise MoehlsError(f"zoo setting {key}={text!r}: choose one of {', '.join(_CHOICES[key])}")
        return text
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, tuple):
            pairs = (item.split(":") for item in text.split(",") if item)
            return tuple((name, int(classes)) for name, classes in pairs)
        return type(default)(text)  # type: ignore[call-arg]
    except (KeyError, ValueError) as error:
        wanted = "name:classes,…" if isinstance(default, tuple) else f"like {default!r}"
        raise MoehlsError(f"zoo setting {key}={text!r}: expected a value {wanted}") from error
