"""Weights of an M3ViT to and from an `.npz`, in the layout published for M3ViT-tiny.

`patch_embed_{weight,bias}`, `pos_embed` (class token added into its row), `l{n}_norm{1,2}_…`, `l{n}_qkv_…`,
`l{n}_attn_proj_…`; dense layers `l{n}_fc{1,2}_…`; MoE layers `l{n}_w_gate_T_task{t}` [experts, width]
(task-conditioned: `l{n}_w_gate_T`), `l{n}_htoh4_{weight,bias}`, `l{n}_h4toh_{weight,bias}`; and `norm_{weight,bias}`,
`head_{name}_{weight,bias}` where the model has them. A file without any expert matrix gets random ones: seed 0, first
matrices normal with deviation 0.06, second with 0.05, layer by layer.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moehls.errors import MoehlsError
from moehls.serialize import write_npz

from .config import VitConfig
from .m3vit import Block, M3Vit, Mixture, Mlp

FloatArray = npt.NDArray[np.float32]

BESIDE = ("image", "_x_post_moe")
"""Ends of the names that may lie beside the weights: a test image, published intermediate results."""

FIRST_DEVIATION = 0.06
SECOND_DEVIATION = 0.05


def save_weights(path: Path, model: M3Vit) -> None:
    """Write the weights of `model`; the same weights give the same bytes."""
    write_npz(path, {name: _read(model, name, parameter) for name, parameter in _parameters(model).items()})


def load_weights(path: Path, model: M3Vit) -> None:
    """Fill `model` with the arrays of `path`.

    Raises:
        MoehlsError: the file is not an npz, or its names or shapes are not this model's.
    """
    arrays = _load(path)
    wanted = _parameters(model)
    experts = [name for name in wanted if name.endswith(("htoh4_weight", "h4toh_weight"))]
    if experts and not any(name in arrays for name in experts):
        arrays |= _drawn_experts(model.config)
    _check_names(path, set(wanted), {name for name in arrays if not name.endswith(BESIDE)})
    for name, parameter in wanted.items():
        shape = _read(model, name, parameter).shape
        if arrays[name].shape != shape:
            raise MoehlsError(
                f"{path}: array {name!r} has shape {list(arrays[name].shape)}, the model needs {list(shape)}; "
                "change the model with --set or take the weights of this model"
            )
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise MoehlsError(f"{path}: array {name!r} ({arrays[name].dtype}) must hold finite floating-point numbers")
        parameter.data.copy_(torch.from_numpy(arrays[name].astype(np.float32)))
    nn.init.zeros_(model.class_token)


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise MoehlsError(f"{path}: cannot be read as an .npz of weights ({error})") from error


def _check_names(path: Path, wanted: set[str], found: set[str]) -> None:
    problems = []
    for what, names in (("missing", wanted - found), ("unknown", found - wanted)):
        if names:
            shown = sorted(names)
            problems.append(f"{what}: {', '.join(shown[:6])}{f' and {len(shown) - 6} more' if len(shown) > 6 else ''}")
    if problems:
        raise MoehlsError(f"{path}: not the weights of this model; {'; '.join(problems)} (docs/zoo.md has the layout)")


def _drawn_experts(config: VitConfig) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    experts, hidden, width = config.experts, config.expert_hidden, config.width
    drawn: dict[str, npt.NDArray[Any]] = {}
    for layer in config.moe_layers:
        drawn[f"l{layer}_htoh4_weight"] = rng.normal(0, FIRST_DEVIATION, (experts, hidden, width))
        drawn[f"l{layer}_h4toh_weight"] = rng.normal(0, SECOND_DEVIATION, (experts, width, hidden))
    return drawn


def _pair(name: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}_weight": module.weight, f"{name}_bias": module.bias}  # type: ignore[dict-item]


def _parameters(model: M3Vit) -> dict[str, torch.Tensor]:
    """Array name to the parameter, or the slice of it, that the array fills."""
    named = _pair("patch_embed", model.patch_embed) | {"pos_embed": model.pos_embed[0]}
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        prefix = f"l{layer}"
        for part, module in (("norm1", block.norm1), ("norm2", block.norm2), ("qkv", block.attn.qkv)):
            named |= _pair(f"{prefix}_{part}", module)
        named |= _pair(f"{prefix}_attn_proj", block.attn.proj)
        if isinstance(block.mlp, Mixture):
            named |= _mixture(prefix, model.config, block.mlp)
        elif isinstance(block.mlp, Mlp):
            named |= _pair(f"{prefix}_fc1", block.mlp.fc1) | _pair(f"{prefix}_fc2", block.mlp.fc2)
    if model.config.final_norm:
        named |= _pair("norm", model.norm)
    for (name, _), head in zip(model.config.outputs, model.heads, strict=True):
        named |= _pair(f"head_{name}", head)
    return named


def _mixture(prefix: str, config: VitConfig, mixture: Mixture) -> dict[str, torch.Tensor]:
    gates = {f"{prefix}_w_gate_T_task{task}": mixture.gate.weight[task].T for task in range(config.gates)}
    if config.gate == "task-conditioned":
        gates = {f"{prefix}_w_gate_T": mixture.gate.weight[0].T}
    experts = mixture.experts
    return gates | {
        f"{prefix}_htoh4_weight": experts.first_weight,
        f"{prefix}_htoh4_bias": experts.first_bias,
        f"{prefix}_h4toh_weight": experts.second_weight,
        f"{prefix}_h4toh_bias": experts.second_bias,
    }


def _read(model: M3Vit, name: str, parameter: torch.Tensor) -> FloatArray:
    array: FloatArray = parameter.detach().numpy().copy()
    if name == "pos_embed":
        array[: model.config.class_tokens] += model.class_token.detach().numpy()[0]
    return array
