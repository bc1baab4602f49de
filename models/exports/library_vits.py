"""Small vision transformers of timm and transformers with random weights: the graphs that these libraries' users export.

`LIBRARY_VITS` names each with a function that builds it; all take images [1, 3, 32, 32] but those of `TOKEN_VITS`, which take
tokens [1, 9, 24], and of `LIBRARY_EXPERTS`, small encoders of this package with a language model's mixture of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from models.exports.forms import CHANNELS, CHOSEN, EXPERTS, HEIGHT, HIDDEN, IMAGE_WIDTH
from models.exports.forms import WIDTH as SMALL_WIDTH
from models.exports.gated import GatedForm, GatedVit
from models.external import _declare_torchvision_operators

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 16, 4, 16, 2, 2, 5
TOKENS = 9


class Output(nn.Module):
    """One tensor of what a transformers model returns."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = getattr(self.model(image), self.field)
        return found


def timm_vit(kind: str = "VisionTransformer", **options: Any) -> nn.Module:
    """timm's class `kind` in small; `options` as timm's models of that family set them."""
    from timm.models import beit, deit, vision_transformer

    found = next(getattr(module, kind) for module in (vision_transformer, deit, beit) if hasattr(module, kind))
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    model: nn.Module = found(**{**sizes, "num_classes": CLASSES, "mlp_ratio": 2, **options})
    return model


def unfused() -> nn.Module:
    """A ViT without torch's fused attention, which opsets before 14 do not have."""
    model = timm_vit()
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False  # type: ignore[union-attr]
    return model


def transformers_vit(family: str, head: str, field: str, **options: Any) -> nn.Module:
    """transformers' `family` in small, with the head class `For…` or the bare model, and one field of its output."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=CLASSES,
        **options,
    )
    return Output(getattr(transformers, f"{family}{head}")(config), field)


def swiglu() -> nn.Module:
    """DINOv2-giant's blocks: gate and other branch of SwiGLU in one matrix."""
    from timm.layers import SwiGLUPacked

    return timm_vit(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, init_values=1e-5)


class Features(nn.Module):
    """The normalised tokens after each block, as dense tasks read them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm_vit()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = tuple(self.model.get_intermediate_layers(image, n=DEPTH, norm=True))  # type: ignore[operator]
        return found


def parallel() -> nn.Module:
    """Attention and MLP of a block beside each other, on one norm (ViT-22B)."""
    from timm.models.vision_transformer import ParallelScalingBlock

    return timm_vit(block_fn=ParallelScalingBlock)


class TorchVit(nn.Module):
    """A block of `nn.MultiheadAttention` with the tokens as first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = (
            nn.Conv2d(3, WIDTH, PATCH, PATCH),
            nn.Parameter(torch.zeros((SIDE // PATCH) ** 2, 1, WIDTH)),
        )
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).permute(2, 0, 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.head(self.norm(x).mean(0))
        return out


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` as its defaults are: normalisation of the sums, ReLU, none before the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1) + self.position
        out: Tensor = self.head(self.encoder(x)[:, 0])
        return out


class TokenVit(nn.Module):
    """Encoder blocks on tokens that another network made, with or without a projection before them."""

    def __init__(self, projected: bool) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.projection = nn.Linear(WIDTH, 12) if projected else nn.Identity()
        width = 12 if projected else WIDTH
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, TOKENS + int(projected), width))
        self.blocks = nn.Sequential(*(Block(width, HEADS, mlp_ratio=2) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)
        self.projected = projected

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.projection(tokens)
        if self.projected:
            x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


class Alone(nn.Module):
    """The tokens that a mixture of transformers gives, without its router's logits."""

    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor | tuple[Tensor, ...] = self.mixture(x)
        return (found[0] if isinstance(found, tuple) else found).reshape(x.shape)


def transformers_experts(family: str, block: str, **options: Any) -> nn.Module:
    """An encoder whose MLP is the mixture of experts `block` of transformers' language model `family`, in small."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        hidden_size=SMALL_WIDTH, intermediate_size=HIDDEN, num_experts_per_tok=options.pop("chosen", CHOSEN), **options
    )
    config._experts_implementation = "batched_mm"
    kind = config.model_type.removesuffix("_text")
    module = import_module(f"transformers.models.{kind}.modeling_{kind}")
    mixture = getattr(module, block)(config)
    for name, bias in mixture.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.copy_(0.2 + 0.2 * torch.sin(torch.arange(float(len(bias)))))
    encoder = GatedVit(GatedForm(norm="rms_cast"))
    encoder.blocks[0].mlp = Alone(mixture)  # type: ignore[union-attr]
    return encoder


LIBRARY_VITS: dict[str, Callable[[], nn.Module]] = {
    "timm_vit": timm_vit,
    "timm_deit_distilled": lambda: timm_vit("VisionTransformerDistilled"),
    "timm_deit3": lambda: timm_vit(no_embed_class=True, init_values=1e-6),
    "timm_registers": lambda: timm_vit(no_embed_class=True, init_values=1e-5, reg_tokens=4),
    "timm_no_class_token": lambda: timm_vit(class_token=False, global_pool="", num_classes=0),
    "timm_mean": lambda: timm_vit(global_pool="avg"),
    "timm_mean_all": lambda: timm_vit(global_pool="avg", class_token=False, final_norm=True, fc_norm=False),
    "timm_beit": lambda: timm_vit("Beit", use_abs_pos_emb=True, use_rel_pos_bias=False, init_values=0.1),
    "timm_beit_relative": lambda: timm_vit("Beit", use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    "timm_beit_shared": lambda: timm_vit("Beit", use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.1),
    "timm_qk_norm": lambda: timm_vit(qk_norm=True),
    "timm_no_qkv_bias": lambda: timm_vit(qkv_bias=False),
    "timm_clip": lambda: timm_vit(pre_norm=True, act_layer="quick_gelu"),
    "timm_swiglu": swiglu,
    "timm_features": Features,
    "timm_parallel": parallel,
    "torch_attention": TorchVit,
    "torch_encoder": TorchEncoder,
    "timm_unfused": unfused,
    "timm_no_position": lambda: timm_vit(pos_embed="none"),
    "transformers_vit": lambda: transformers_vit("ViT", "ForImageClassification", "logits"),
    "transformers_vit_tokens": lambda: transformers_vit("ViT", "Model", "last_hidden_state", qkv_bias=False),
    "transformers_clip": lambda: transformers_vit(
        "CLIPVision", "ModelWithProjection", "image_embeds", projection_dim=6
    ),
    "transformers_unfused": lambda: transformers_vit(
        "ViT", "ForImageClassification", "logits", attn_implementation="eager"
    ),
    "transformers_beit": lambda: transformers_vit(
        "Beit", "ForImageClassification", "logits", use_relative_position_bias=True, layer_scale_init_value=0.1
    ),
    "transformers_beit_shared": lambda: transformers_vit(
        "Beit", "Model", "last_hidden_state", use_shared_relative_position_bias=True, use_mean_pooling=False
    ),
    "transformers_deit": lambda: transformers_vit("DeiT", "ForImageClassification", "logits"),
    "transformers_deit_teacher": lambda: transformers_vit("DeiT", "ForImageClassificationWithTeacher", "logits"),
    "transformers_dinov2": lambda: transformers_vit("Dinov2", "Model", "last_hidden_state", mlp_ratio=2),
    "transformers_dinov2_classes": lambda: transformers_vit("Dinov2", "ForImageClassification", "logits", mlp_ratio=2),
    "transformers_dinov2_swiglu": lambda: transformers_vit(
        "Dinov2", "Model", "last_hidden_state", mlp_ratio=2, use_swiglu_ffn=True
    ),
    "transformers_siglip": lambda: transformers_vit(
        "SiglipVision", "Model", "last_hidden_state", vision_use_head=False
    ),
    "transformers_dinov2_registers": lambda: transformers_vit(
        "Dinov2WithRegisters", "Model", "last_hidden_state", mlp_ratio=2
    ),
    "transformers_dinov2_interpolated": lambda: transformers_vit("Dinov2", "Model", "last_hidden_state", mlp_ratio=2),
}
TOKEN_VITS: dict[str, Callable[[], nn.Module]] = {
    "tokens": lambda: TokenVit(False),
    "tokens_projected": lambda: TokenVit(True),
}
LIBRARY_EXPERTS: dict[str, Callable[[], nn.Module]] = {
    "transformers_mixtral": lambda: transformers_experts("Mixtral", "MixtralSparseMoeBlock", num_local_experts=EXPERTS),
    "transformers_olmoe": lambda: transformers_experts("Olmoe", "OlmoeSparseMoeBlock", num_experts=EXPERTS),
    "transformers_qwen2_moe": lambda: transformers_experts(
        "Qwen2Moe",
        "Qwen2MoeSparseMoeBlock",
        num_experts=EXPERTS,
        moe_intermediate_size=HIDDEN,
        shared_expert_intermediate_size=HIDDEN,
    ),
    "transformers_deepseek_v3": lambda: transformers_experts(
        "DeepseekV3",
        "DeepseekV3MoE",
        n_routed_experts=2 * EXPERTS,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=HIDDEN,
        n_shared_experts=1,
        routed_scaling_factor=2.5,
    ),
    "transformers_llama4": lambda: transformers_experts(
        "Llama4Text", "Llama4TextMoe", num_local_experts=EXPERTS, chosen=1
    ),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The module and an example of its input."""
    _declare_torchvision_operators()
    torch.manual_seed(0)
    if name in TOKEN_VITS:
        return TOKEN_VITS[name]().eval(), torch.randn(1, TOKENS, WIDTH)
    if name in LIBRARY_EXPERTS:
        return LIBRARY_EXPERTS[name]().eval(), torch.randn(1, CHANNELS, HEIGHT, IMAGE_WIDTH)
    side = SIDE + 2 * PATCH if name.endswith("_interpolated") else SIDE
    return LIBRARY_VITS[name]().eval(), torch.randn(1, 3, side, side)
