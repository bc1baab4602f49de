"""The M3ViT module and its weights. Run by `make test-models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.config import VitConfig, with_settings
from models.m3vit import Experts, Gate, M3Vit, Mixture, initialise
from models.presets import PRESETS
from models.weights import load_weights, save_weights
from moehls.errors import MoehlsError

NANO = PRESETS["m3vit-nano"].config


def nano(seed: int = 0, **settings: str) -> M3Vit:
    model = M3Vit(with_settings(NANO, settings)).eval()
    initialise(model, seed)
    return model


def arrays_of(model: M3Vit, path: Path) -> dict[str, npt.NDArray[Any]]:
    save_weights(path, model)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_gate_weights_are_the_largest_of_the_softmax_over_all_experts() -> None:
    gate = nano().blocks[1].mlp.gate  # type: ignore[union-attr]
    assert isinstance(gate, Gate)
    x = torch.randn(9, NANO.width, generator=torch.Generator().manual_seed(0))
    for task in range(NANO.tasks):
        probabilities = torch.softmax(x @ gate.weight[task], -1)
        gates, chosen = gate(x, task)
        torch.testing.assert_close(gates, probabilities.sort(-1, descending=True).values[:, : NANO.k])
        torch.testing.assert_close(gates, probabilities.gather(-1, chosen))
        assert (gates.sum(-1) < 1).all()


def test_a_task_conditioned_gate_reads_the_one_hot_task_beside_the_token() -> None:
    gate = nano(gate="task-conditioned").blocks[1].mlp.gate  # type: ignore[union-attr]
    assert isinstance(gate, Gate)
    assert gate.weight.shape == (1, NANO.width + NANO.tasks, NANO.experts)
    x = torch.randn(9, NANO.width, generator=torch.Generator().manual_seed(0))
    logits = x @ gate.weight[0, : NANO.width] + gate.weight[0, NANO.width + 1]
    torch.testing.assert_close(gate(x, 1)[0], torch.softmax(logits, -1).topk(NANO.k).values)


@pytest.mark.parametrize("style", ["dense", "gather", "loop"])
def test_experts_sum_the_chosen_mlps_by_gate_weight(style: str) -> None:
    experts = nano(expert_style=style).blocks[1].mlp.experts  # type: ignore[union-attr]
    assert isinstance(experts, Experts)
    rng = torch.Generator().manual_seed(0)
    x, gates = torch.randn(5, NANO.width, generator=rng), torch.rand(5, 2, generator=rng)
    chosen = torch.tensor([[0, 3], [3, 1], [2, 0], [1, 2], [3, 0]])
    wanted = torch.zeros_like(x)
    for token in range(5):
        for gate, expert in zip(gates[token], chosen[token], strict=True):
            hidden = torch.nn.functional.gelu(experts.first_weight[expert] @ x[token] + experts.first_bias[expert])
            wanted[token] += gate * (experts.second_weight[expert] @ hidden + experts.second_bias[expert])
    torch.testing.assert_close(experts(x, gates, chosen), wanted, atol=1e-5, rtol=1e-5)


def test_every_second_block_has_experts() -> None:
    blocks = nano(depth="5").blocks
    assert [isinstance(block.mlp, Mixture) for block in blocks] == [False, True, False, True, False]


def test_a_seed_means_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        return nano(seed).blocks[0].attn.qkv.weight  # type: ignore[union-attr,return-value]

    torch.testing.assert_close(weights(3), weights(3), rtol=0, atol=0)
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("settings", [{}, {"gate": "task-conditioned"}, {"class_tokens": "2"}])
def test_saved_weights_load_into_the_same_model(tmp_path: Path, settings: dict[str, str]) -> None:
    model, other = nano(1, **settings), nano(2, **settings)
    save_weights(tmp_path / "w.npz", model)
    load_weights(tmp_path / "w.npz", other)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for got, want in zip(other(image, 1), model(image, 1), strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_missing_expert_matrices_are_drawn_layer_by_layer_from_seed_0(tmp_path: Path) -> None:
    model = nano(depth="4")
    arrays = arrays_of(model, tmp_path / "full.npz")
    kept = {name: array for name, array in arrays.items() if not name.endswith(("htoh4_weight", "h4toh_weight"))}
    np.savez(tmp_path / "kept.npz", **kept)  # type: ignore[arg-type]
    load_weights(tmp_path / "kept.npz", model)
    rng = np.random.default_rng(0)
    for layer in (1, 3):
        experts = model.blocks[layer].mlp.experts  # type: ignore[union-attr]
        assert isinstance(experts, Experts)
        for weight, deviation in ((experts.first_weight, 0.06), (experts.second_weight, 0.05)):
            wanted = rng.normal(0, deviation, weight.shape).astype(np.float32)
            np.testing.assert_array_equal(weight.detach().numpy(), wanted)


def break_missing(arrays: dict[str, npt.NDArray[Any]]) -> None:
    del arrays["l0_fc1_bias"]


def break_partial_experts(arrays: dict[str, npt.NDArray[Any]]) -> None:
    del arrays["l1_htoh4_weight"]


def break_unknown(arrays: dict[str, npt.NDArray[Any]]) -> None:
    arrays["l2_qkv_bias"] = arrays["l0_qkv_bias"]


def break_shape(arrays: dict[str, npt.NDArray[Any]]) -> None:
    arrays["pos_embed"] = arrays["pos_embed"][1:]


def break_type(arrays: dict[str, npt.NDArray[Any]]) -> None:
    arrays["l0_qkv_bias"] = arrays["l0_qkv_bias"].astype(np.int8)


def break_finite(arrays: dict[str, npt.NDArray[Any]]) -> None:
    arrays["l0_qkv_bias"][0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_missing, "missing: l0_fc1_bias"),
        (break_partial_experts, "missing: l1_htoh4_weight"),
        (break_unknown, "unknown: l2_qkv_bias"),
        (break_shape, r"'pos_embed' has shape \[16, 32\], the model needs \[17, 32\]"),
        (break_type, "'l0_qkv_bias' .int8."),
        (break_finite, "'l0_qkv_bias'.*finite"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    arrays = arrays_of(nano(), tmp_path / "w.npz")
    change(arrays)
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(MoehlsError, match=message):
        load_weights(tmp_path / "w.npz", nano())


@pytest.mark.parametrize("content", [b"", b"not an npz", b"PK\x03\x04 cut"])
def test_a_broken_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(MoehlsError, match=r"w\.npz: cannot be read"):
        load_weights(tmp_path / "w.npz", nano())


def test_a_test_image_and_published_activations_may_lie_beside_the_weights(tmp_path: Path) -> None:
    arrays = arrays_of(nano(), tmp_path / "w.npz")
    extra = {"image": np.zeros((3, 32, 32), np.float32), "l1_x_post_moe": np.zeros((17, 32), np.float32)}
    np.savez(tmp_path / "w.npz", **arrays, **extra)  # type: ignore[arg-type]
    model = nano(seed=1)
    load_weights(tmp_path / "w.npz", model)
    assert np.array_equal(arrays_of(model, tmp_path / "again.npz")["pos_embed"], arrays["pos_embed"])


def test_heads_read_their_own_class_token() -> None:
    config = VitConfig(
        image_height=16, image_width=16, patch=8, width=8, depth=1, heads=1, mlp_hidden=8, class_tokens=2,
        outputs=(("a", 3), ("b", 3)),
    )  # fmt: skip
    model = M3Vit(config).eval()
    initialise(model, 0)
    for head in model.heads:
        torch.nn.init.ones_(head.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        first, second = model(torch.rand(1, 3, 16, 16))
    assert not torch.allclose(first, second)
