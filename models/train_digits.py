"""Train the small two-task MoE ViT on scikit-learn's digits and write what the demo and the tests use.

In: scikit-learn's digits (1,797 images of 8×8) and a seed. Out, in the folder given (`models/digits`): `weights.npz`,
`digits.onnx`, `test.npz` (the held-out images and labels as `moehls verify --inputs` takes them) and `calibration.npz`
(64 training images).
Task 0 is the digit, task 1 whether it is odd. Prints the held-out float accuracy of each task.

    python -m models.train_digits [--out models/digits] [--seed 0] [--epochs 80]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .export import export
from .m3vit import Gate, M3Vit, initialise
from .presets import PRESETS
from .weights import save_weights

HELD_OUT = 360
CALIBRATION = 64
BATCH = 64
BALANCE = 0.01
"""Weight of the load-balancing loss."""

Images = npt.NDArray[np.float32]


def upscale(images: Images, size: int) -> Images:
    """[S, h, w] in 0…16 to [S, 1, size, size] by bilinear interpolation, rounded to exact 8-bit levels: level / 256."""
    tensor = F.interpolate(torch.from_numpy(images[:, None]), (size, size), mode="bilinear", align_corners=False)
    levels = torch.floor(tensor * (255 / 16) + 0.5)
    return np.asarray(levels.numpy() / 256, np.float32)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 12°, scaled by up to 12 % and moved by up to 12 % of its size."""
    count = len(images)
    turn, scale, move_x, move_y = ((torch.rand(count, generator=generator) * 2 - 1) * 0.12 for _ in range(4))
    turn, scale = turn * 1.75, 1 + scale
    rows = (
        torch.stack((torch.cos(turn) * scale, -torch.sin(turn) * scale, 2 * move_x), 1),
        torch.stack((torch.sin(turn) * scale, torch.cos(turn) * scale, 2 * move_y), 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def balance_loss(model: M3Vit) -> Tensor:
    """Squared coefficient of variation of the experts' importance, summed over the gates used last."""
    total = torch.zeros(())
    for module in model.modules():
        if isinstance(module, Gate) and module.probabilities is not None:
            importance = module.probabilities.mean(0)
            total = total + importance.var(unbiased=False) / importance.mean() ** 2
    return total


def train(model: M3Vit, images: Tensor, labels: tuple[Tensor, ...], epochs: int, seed: int) -> None:
    """Train all tasks in turn on each batch, with AdamW and a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.15)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator)[: len(images) // BATCH * BATCH].split(BATCH):  # type: ignore[no-untyped-call]
            batch = augmented(images[rows], generator)
            loss = torch.zeros(())
            for task, wanted in enumerate(labels):
                loss = loss + F.cross_entropy(model(batch, task)[task], wanted[rows], label_smoothing=0.05)
                loss = loss + BALANCE * balance_loss(model)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    model.eval()


def accuracy(model: M3Vit, images: Tensor, labels: tuple[Tensor, ...]) -> list[float]:
    """Share of images whose largest logit is the label, a task."""
    with torch.no_grad():
        return [
            float((model(images, task)[task].argmax(1) == wanted).float().mean()) for task, wanted in enumerate(labels)
        ]


def verification_inputs(images: Images, labels: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[Any]]:
    """The inputs of `moehls verify`: each image once a task, interleaved, with labels where a head is that task's."""
    tasks = np.tile(np.arange(len(labels), dtype=np.int64), len(images))
    arrays: dict[str, npt.NDArray[Any]] = {"image": images.repeat(len(labels), axis=0), "task": tasks}
    for task, (name, label) in enumerate(labels.items()):
        arrays[f"{name}.labels"] = np.where(tasks == task, label.repeat(len(labels)), -1)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=80)
    arguments = parser.parse_args()

    config = PRESETS["digits"].config
    digits = load_digits()
    order = np.random.default_rng(arguments.seed).permutation(len(digits.target))
    images = upscale(digits.images.astype(np.float32)[order], config.image_height)
    target = digits.target[order].astype(np.int64)
    labels = {"digit": target, "parity": target % 2}
    if tuple(labels) != tuple(name for name, _ in config.outputs):
        raise SystemExit("the preset's outputs and the labels differ")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = M3Vit(config)
    initialise(model, arguments.seed)
    held_out, rest = images[:HELD_OUT], images[HELD_OUT:]
    train(
        model,
        torch.from_numpy(rest),
        tuple(torch.from_numpy(array[HELD_OUT:]) for array in labels.values()),
        arguments.epochs,
        arguments.seed,
    )
    scores = accuracy(
        model, torch.from_numpy(held_out), tuple(torch.from_numpy(array[:HELD_OUT]) for array in labels.values())
    )
    for task, (name, score) in enumerate(zip(labels, scores, strict=True)):
        print(f"task {task} ({name}): held-out float accuracy {100 * score:.2f} % of {HELD_OUT} images")

    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = arguments.out / "weights.npz"
    save_weights(weights, model)
    export("digits", arguments.out / "digits.onnx", weights, task="all", exporter="ts", opset=17, settings={})
    np.savez_compressed(arguments.out / "calibration.npz", image=rest[:CALIBRATION])
    held_out_labels = {name: array[:HELD_OUT] for name, array in labels.items()}
    np.savez_compressed(arguments.out / "test.npz", **verification_inputs(held_out, held_out_labels))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
