"""The named models of the zoo. In: nothing. Out: `PRESETS` (defined here) and `EXTERNAL` (other libraries' models)."""

from __future__ import annotations

from dataclasses import dataclass

from .config import VitConfig


@dataclass(frozen=True)
class Preset:
    description: str
    config: VitConfig
    weights: str | None = None
    """Trained weights in this folder; without them the weights are random."""


_CLASSIFIER = VitConfig(final_norm=True, outputs=(("logits", 1000),))

PRESETS: dict[str, Preset] = {
    "m3vit-tiny": Preset(
        "M3ViT as published with Edge-MoE: 128×256, 129 tokens, 192 wide, 12 layers, 16 experts of 384, top-2, 2 tasks",
        VitConfig(image_height=128, image_width=256, experts=16, expert_hidden=384, k=2, tasks=2),
    ),
    "m3vit-small": Preset(
        "M3ViT, 224×224, 197 tokens, 384 wide, 12 heads, 12 layers, 16 experts of 384, top-4, 2 tasks",
        VitConfig(width=384, heads=12, mlp_hidden=1536, experts=16, expert_hidden=384, k=4, tasks=2, final_norm=True),
    ),
    "m3vit-nano": Preset(
        "a small M3ViT for tests: 32×32, 17 tokens, 32 wide, 2 heads, 2 layers, 4 experts of 32, top-2, 2 tasks",
        VitConfig(
            image_height=32, image_width=32, patch=8, width=32, depth=2, heads=2, mlp_hidden=64,
            experts=4, expert_hidden=32, k=2, tasks=2, final_norm=True, outputs=(("class", 10), ("group", 4)),
        ),
    ),
    "digits": Preset(
        "trained: which digit, is it odd; 32×32 grey, 17 tokens, 32 wide, 4 layers, 8 experts of 32, top-2, 2 tasks",
        VitConfig(
            image_height=32, image_width=32, image_channels=1, patch=8, width=32, depth=4, heads=2, mlp_hidden=64,
            experts=8, expert_hidden=32, k=2, tasks=2, final_norm=True, outputs=(("digit", 10), ("parity", 2)),
        ),
        "digits/weights.npz",
    ),
    "vit-base-moe": Preset(
        "ViT-Base/16 with 8 experts of 3,072 in half of its layers, top-2, 224×224, 197 tokens, 768 wide, 12 layers",
        VitConfig(
            width=768, heads=12, mlp_hidden=3072, experts=8, expert_hidden=3072, k=2, final_norm=True,
            outputs=(("logits", 1000),),
        ),
    ),
    "vit-tiny-64e": Preset(
        "ViT-Tiny/16 at 112×112, 50 tokens, with 64 experts of 384 in half of its layers, top-1: experts by far outnumber use",
        VitConfig(
            image_height=112, image_width=112, experts=64, expert_hidden=384, k=1, final_norm=True,
            outputs=(("logits", 1000),),
        ),
    ),
    "vit-tiny": Preset("ViT-Tiny/16 classifier, 224×224, 197 tokens, 192 wide, 12 layers", _CLASSIFIER),
    "deit-tiny": Preset(
        "DeiT-Tiny/16 with class and distillation token, a head each, 224×224, 198 tokens, 192 wide, 12 layers",
        VitConfig(class_tokens=2, final_norm=True, outputs=(("logits", 1000), ("distilled", 1000))),
    ),
}  # fmt: skip

EXTERNAL: dict[str, str] = {
    "timm/vit_tiny_patch16_224": "timm's ViT-Tiny/16, random weights",
    "timm/deit_tiny_patch16_224": "timm's DeiT-Tiny/16, random weights",
    "timm/deit_tiny_distilled_patch16_224": "timm's DeiT-Tiny/16, distillation token, heads averaged, random weights",
    "transformers/vit-tiny": "transformers' ViTForImageClassification, tiny, random weights",
    "transformers/deit-tiny": "transformers' DeiTForImageClassification, tiny, random weights",
}
