"""Samples from the user's files: images, tasks and labels for `--inputs` and `--calibrate`.

In: an `.npz` keyed by the model's input names, an `.npy` for a one-input model, or (calibration) a folder of such
files. The first axis is the samples; it stands in the place of a leading batch dimension of 1, else before the input's
own dimensions. An `.npz` may also hold `<output>.labels`, integers: the class of each sample, -1 where it has none.
Out: `Samples`, checked. Random samples come from here as well.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.network.inputs import as_given, prepared
from moehls.network.operations import FloatArray, Network

LABELS = ".labels"


@dataclass(frozen=True)
class Samples:
    """Checked samples of one model."""

    images: FloatArray
    """[samples, channels, height, width]"""
    tasks: npt.NDArray[np.int64]
    """[samples]; zeros where the model has one task"""
    labels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """output name → [samples, …], the output's shape without its classes; -1: no label"""
    given: npt.NDArray[Any] | None = None
    """the images as the graph takes them, where that is not the same"""

    def __len__(self) -> int:
        return len(self.images)

    def arrays(self, network: Network) -> dict[str, npt.NDArray[Any]]:
        """As `read_samples` takes them."""
        tasks = {network.task_input: self.tasks} if network.task_input is not None else {}
        labels = {name + LABELS: label for name, label in self.labels.items()}
        return {network.input.name: self.images if self.given is None else self.given} | tasks | labels

    def first(self, count: int) -> Samples:
        """The first `count` samples, or all where there are fewer."""
        labels = {name: label[:count] for name, label in self.labels.items()}
        given = None if self.given is None else self.given[:count]
        return Samples(self.images[:count], self.tasks[:count], labels, given)


def samples_of(network: Network, given: npt.NDArray[Any], tasks: npt.NDArray[np.int64]) -> Samples:
    """Samples `[samples, …]` as the graph takes them."""
    return Samples(prepared(network.input, given), tasks, given=given if network.input.given else None)


def read_samples(path: Path, network: Network) -> Samples:
    """The samples of `--inputs`.

    Raises:
        MoehlsError: no such file, unreadable, unknown or missing keys, wrong shapes, values that are not finite.
    """
    arrays = _read_arrays(path, network)
    wanted = [network.input.name] + ([network.task_input] if network.task_input is not None else [])
    _check_keys(path, arrays, wanted, [output.name for output in network.outputs])
    given = _images(path, arrays[network.input.name], network)
    images = prepared(network.input, given)
    tasks = np.zeros(len(images), np.int64)
    if network.task_input is not None:
        tasks = _tasks(path, arrays[network.task_input], network, len(images))
    labels = {
        name.removesuffix(LABELS): _labels(path, name, array, len(images))
        for name, array in arrays.items()
        if name.endswith(LABELS) and name not in wanted
    }
    return Samples(images, tasks, labels, given if network.input.given else None)


def read_calibration(path: Path, network: Network) -> npt.NDArray[Any]:
    """The images of `--calibrate`, as the graph takes them: `[samples, …]`.

    Every task is calibrated on every image, so the task input may be left out; where it is given it is checked. In a
    folder each `.npz` or `.npy` file is read in the order of the names, and an `.npy` may hold one image alone.

    Raises:
        MoehlsError: as `read_samples`, or a folder without such files.
    """
    if not path.is_dir():
        return _calibration_file(path, network, alone=False)
    files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
    if not files:
        raise MoehlsError(f"{path}: the calibration folder holds no .npz and no .npy file")
    return np.concatenate([_calibration_file(file, network, alone=True) for file in files])


def random_samples(
    network: Network, count: int, seed: int, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> Samples:
    """`count` images of uniform noise between `low` and `high` `[channels]`, and the tasks in turn."""
    generator = np.random.default_rng(seed)
    noise = generator.random((count, *network.input.shape))
    images = low[:, None, None] + noise * (high - low)[:, None, None]
    return samples_of(network, as_given(network.input, images), np.arange(count, dtype=np.int64) % network.tasks)


def _calibration_file(path: Path, network: Network, *, alone: bool) -> npt.NDArray[Any]:
    name, task = network.input.name, network.task_input
    arrays = _read_arrays(path, network)
    optional = {output.name + LABELS for output in network.outputs} | ({task} if task is not None else set())
    _check_keys(path, {key: array for key, array in arrays.items() if key not in optional}, [name], [])
    array = arrays[name]
    if alone and array.shape == (network.input.given or network.input.shape):
        array = array[None]
    images = _images(path, array, network)
    if task is not None and task in arrays:
        _tasks(path, arrays[task], network, len(images))
    return images


def _read_arrays(path: Path, network: Network) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise MoehlsError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {network.input.name: loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoehlsError(f"{path}: not a readable .npz or .npy file of numbers ({reason})") from error


def _check_keys(path: Path, arrays: dict[str, npt.NDArray[Any]], wanted: list[str], outputs: list[str]) -> None:
    allowed = [*wanted, *(name + LABELS for name in outputs)]
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in allowed]
    if not missing and not unknown:
        return
    found = [f"missing {', '.join(map(repr, missing))}"] if missing else []
    found += [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
    labels = f"; labels may stand under {', '.join(repr(name + LABELS) for name in outputs)}" if outputs else ""
    raise MoehlsError(f"{path}: {'; '.join(found)}. The model's inputs are {', '.join(map(repr, wanted))}{labels}")


def _images(path: Path, array: npt.NDArray[Any], network: Network) -> npt.NDArray[Any]:
    """Samples as the graph takes them, in its type."""
    name, shape = network.input.name, network.input.given or network.input.shape
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise MoehlsError(f"{path}: input {name!r} holds {array.dtype}, not real numbers")
    if array.ndim == len(shape) + 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 3 and shape[0] == 1:  # tokens, or grey images without their channel
        array = array[:, None]
    if array.shape[1:] != shape or array.ndim != 1 + len(shape):
        wanted = ", ".join(map(str, shape))
        raise MoehlsError(
            f"{path}: input {name!r} has shape {list(array.shape)}; wanted is [samples, {wanted}], "
            f"the first axis being the samples"
        )
    if not len(array):
        raise MoehlsError(f"{path}: input {name!r} holds no sample")
    if network.input.type != "float32":
        limits = np.iinfo(network.input.type)
        if not ((array >= limits.min) & (array <= limits.max) & (array == np.rint(array))).all():
            raise MoehlsError(
                f"{path}: input {name!r} takes {network.input.type}: whole numbers of {limits.min} … {limits.max}"
            )
        return array.astype(network.input.type)
    images = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
    if bad.size:
        raise MoehlsError(
            f"{path}: input {name!r}, sample {bad[0]}: holds values that are not finite (NaN or infinity)"
        )
    return images


def _tasks(path: Path, array: npt.NDArray[Any], network: Network, samples: int) -> npt.NDArray[np.int64]:
    name = network.task_input
    if math.prod(array.shape) != samples or array.shape[:1] != (samples,):
        raise MoehlsError(
            f"{path}: task input {name!r} has shape {list(array.shape)}; wanted is [{samples}], one task a sample"
        )
    tasks = array.reshape(samples)
    whole = np.issubdtype(tasks.dtype, np.integer) or (
        np.issubdtype(tasks.dtype, np.floating) and bool((tasks == np.floor(tasks)).all())
    )
    if not whole or (tasks < 0).any() or (tasks >= network.tasks).any():
        raise MoehlsError(f"{path}: task input {name!r} must hold whole numbers in 0 … {network.tasks - 1}")
    return tasks.astype(np.int64)


def _labels(path: Path, name: str, array: npt.NDArray[Any], samples: int) -> npt.NDArray[np.int64]:
    if not np.issubdtype(array.dtype, np.integer) or array.shape[:1] != (samples,):
        raise MoehlsError(
            f"{path}: {name!r} holds {array.dtype} {list(array.shape)}; wanted are integers, the first axis {samples}"
        )
    return array.astype(np.int64)
