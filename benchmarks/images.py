"""Natural images for calibration and checks: the photographs that ship inside scikit-image.

In: a size. Out: float32 images in 0…1, each an exact 8-bit level divided by 256; on the command line as an `.npz`.

    python -m benchmarks.images 128 256 -o images.npz [--tasks 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage import data
from skimage.transform import resize

FloatArray = npt.NDArray[np.float32]

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "hubble_deep_field", "rocket")
"""With the left motorcycle picture, those that scikit-image's wheel holds."""


def natural_images(height: int, width: int, channels: int = 3) -> FloatArray:
    """Eight photographs, cropped at the centre to the shape wanted and resized: [8, channels, height, width].

    With one channel they are grey (the mean of the colours).
    """
    motorcycle, *_ = data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    photographs = [*(getattr(data, name)() for name in PHOTOGRAPHS), motorcycle]
    return np.stack([_fitted(photograph, height, width, channels) for photograph in photographs])


def _fitted(photograph: npt.NDArray[np.uint8], height: int, width: int, channels: int) -> FloatArray:
    colours = photograph[..., None].repeat(3, 2) if photograph.ndim == 2 else photograph[..., :3]
    rows, columns = colours.shape[:2]
    kept_rows, kept_columns = min(rows, columns * height // width), min(columns, rows * width // height)
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    cropped = colours[top : top + kept_rows, left : left + kept_columns].astype(np.float64)
    resized: npt.NDArray[np.float64] = resize(  # type: ignore[no-untyped-call]
        cropped, (height, width), order=1, anti_aliasing=True, preserve_range=True
    )
    planes = np.moveaxis(resized, -1, 0) if channels == 3 else resized.mean(-1)[None].repeat(channels, 0)
    return np.asarray(np.clip(np.floor(planes + 0.5), 0, 255) / 256, np.float32)


def samples(images: FloatArray, tasks: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `moehls verify --inputs`: each image once a task; no task where there is one only."""
    if tasks == 1:
        return {"image": images}
    return {
        "image": images.repeat(tasks, axis=0),
        "task": np.tile(np.arange(tasks, dtype=np.int64), len(images)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=1, help="write every image once a task")
    arguments = parser.parse_args()
    images = natural_images(arguments.height, arguments.width, arguments.channels)
    np.savez_compressed(arguments.output, **samples(images, arguments.tasks))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
