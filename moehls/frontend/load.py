"""An ONNX file to a checked in-memory model with static shapes.

Comes in: a path and settings `name=value` for named dimensions. Goes out: an onnx-ir model whose weights are present
and finite, and which of its inputs is the image and which the task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from moehls.errors import MoehlsError
from moehls.frontend.context import attribute, first_line
from moehls.frontend.widen import load_widened
from moehls.heap import trim
from moehls.network.operations import FloatArray

_TASKS = "tasks"
_PIXELS = 1 << 26
"""Elements an image may have."""
_MOST_TASKS = 1 << 10
_TOKEN_READERS = {
    "MatMul",
    "Gemm",
    "Einsum",
    "LayerNormalization",
    "SkipLayerNormalization",
    "ReduceMean",
    "Add",
    "Concat",
}
"""Operators that read an input of three dimensions as tokens; an image without batch is moved or convolved first."""
_IMAGES = {ir.DataType.FLOAT: "float32", ir.DataType.UINT8: "uint8"}
"""types of an image"""
_AFFINE = ("Add", "Sub", "Mul", "Div")
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Inputs:
    """The roles of the graph's inputs."""

    image: str
    image_shape: tuple[int, int, int]
    task: str | None
    tasks: int | None
    """the number of tasks where `--set tasks=N` or a one-hot input gives it"""
    one_hot: bool = False
    """whether the task is a float vector with a one at the task's place"""
    tokens: bool = False
    """whether the "image" `(1, tokens, channels)` is a token matrix `[1, tokens, channels]`"""
    channels_last: bool = False
    """whether the image is `[height, width, channels]` in the graph"""
    type: str = "float32"
    """of the image"""


@dataclass(frozen=True)
class LoadedModel:
    model: ir.Model
    inputs: Inputs
    opset: int
    warnings: tuple[str, ...]


def load_model(path: Path, settings: Mapping[str, str]) -> LoadedModel:
    """Load and check an ONNX model.

    Raises:
        MoehlsError: not a readable ONNX model, weights missing, not finite or outside the model's folder, a dimension
            that is
            not fixed, inputs other than one image and perhaps one integer task.
    """
    model = _parse(path)
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is None or not 7 <= opset <= 26:
        raise MoehlsError(f"{path}: uses ONNX opset {opset}; export with an opset from 13 to 23")
    _check_weights(model, path)
    _check_valid(model, path)
    trim()  # the checker's copy of the weights
    wide = _widened(model, path)
    sizes = _sizes(settings)
    _fix_dimensions(wide.graph, sizes, path)
    inputs = _roles(wide.graph, sizes.get(_TASKS), path)
    return LoadedModel(wide, inputs, opset, tuple(_warnings(wide, inputs, wide is not model)))


def holding(path: Path, weight: FloatArray) -> str | None:
    """The name of the first initialiser of a file that holds a row of `weight`, as it is or turned; None where none does."""
    row = weight.reshape(-1, weight.shape[-1])[0]
    for name, value in ir.load(path).graph.initializers.items():
        array = value.const_value.numpy() if value.const_value is not None else row[:0]
        for turned in (array, np.swapaxes(array, -1, -2)) if array.ndim > 1 else (array,):
            if turned.shape[-1:] == row.shape and (turned == row).all(axis=-1).any():
                return str(name)
    return None


def _warnings(model: ir.Model, inputs: Inputs, half: bool) -> Iterator[str]:
    if half:
        yield "half-precision values are computed in float32"
    if inputs.one_hot:
        yield f"the input {inputs.task!r} is taken for a one-hot vector of {inputs.tasks} tasks; give tasks by their numbers"
    if any(value.name == inputs.task and not value.uses() for value in model.graph.inputs):
        yield (
            f"no node reads the task input {inputs.task!r}: the export has the gate of one task only, as TorchScript makes it "
            "of a ModuleList indexed by a tensor; stack the gates' weights in one tensor"
        )


def _parse(path: Path) -> ir.Model:
    if not path.is_file():
        raise MoehlsError(f"{path}: no such file; give the path of an .onnx file")
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it prints what ONNX's checker is asked about below
    try:
        model = ir.load(path)
        TopologicalSortPass()(model)
    except Exception as error:
        raise MoehlsError(
            f"{path}: not a readable ONNX model ({first_line(error)}); export or copy it again"
        ) from error
    finally:
        logger.setLevel(level)
    texts = (text for node in model.graph for text in _texts(node))
    if not all(isinstance(text, str) for text in texts):
        raise MoehlsError(f"{path}: not a valid ONNX model (a name is not UTF-8 text); export or copy it again")
    if not len(model.graph.outputs) or not len(model.graph):
        raise MoehlsError(f"{path}: holds no ONNX graph; is the file truncated? Export it again")
    return model


def _texts(node: ir.Node) -> Iterator[object]:
    """Names and metadata of a node; the protobuf reader leaves bytes where they are no text."""
    yield node.name or ""
    yield from node.attributes
    yield from (value.name or "" for value in (*node.inputs, *node.outputs) if value is not None)
    for entry in node.metadata_props.items():
        yield from entry


def _check_valid(model: ir.Model, path: Path) -> None:
    """ONNX's own checker: operators exist in the opset, with the inputs and attributes they need, and every value is written.

    Converters leave nodes out of order, which the checker refuses; `model` has been sorted and serves in the file's place.
    """
    try:
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            if "topologically sorted" not in str(error):
                raise
            onnx.checker.check_model(ir.to_proto(model))
    except Exception as error:
        raise MoehlsError(f"{path}: not a valid ONNX model ({first_line(error)}); export it again") from error


def _widened(model: ir.Model, path: Path) -> ir.Model:
    """The same model; in float32 where it is in half precision."""
    weights = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    types = {weight.dtype for weight in weights if weight is not None}
    types |= {value.dtype for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype is not None}
    casts = [attribute(node, "to", None) for node in model.graph if node.op_type == "Cast"]
    if not types & _HALF and not any(cast in (kind.value for kind in _HALF) for cast in casts):
        return model
    try:
        return ir.from_proto(load_widened(path))
    except Exception as error:
        raise MoehlsError(f"{path}: its half-precision weights cannot be read ({first_line(error)})") from error


def _is_mask(array: npt.NDArray[Any]) -> bool:
    """Whether it is zeros and -∞ only, what is added to scores, or put in their place, to hide some; or biases and -∞, as many
    queries as keys, each of which sees a key."""
    hidden = np.isneginf(array)
    square = array.ndim > 1 and array.shape[-2] == array.shape[-1] and not hidden.all(axis=-1).any()
    return bool(((array == 0) | hidden).all() or (square and (np.isfinite(array) | hidden).all()))


def _check_weights(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            name = value.name or ""
            if tensor is None:
                raise MoehlsError(f"{path}: the weight {name!r} has no value; export it again")
            if isinstance(tensor, ir.ExternalTensor):
                _check_external(tensor, name, folder, path)
            try:
                array = tensor.numpy()
            except Exception as error:
                raise MoehlsError(f"{path}: the weight {name!r} cannot be read ({error}); export it again") from error
            if np.issubdtype(array.dtype, np.floating) and not (np.isfinite(array).all() or _is_mask(array)):
                raise MoehlsError(
                    f"{path}: the weight {name!r} {list(array.shape)} holds NaN or infinity; train or export again"
                )


def _check_external(tensor: ir.ExternalTensor, name: str, folder: Path, path: Path) -> None:
    place = Path(os.path.realpath(folder / tensor.location))
    if not place.is_relative_to(folder):
        raise MoehlsError(
            f"{path}: the weight {name!r} lies outside the model's folder; keep its data beside the model"
        )
    if not place.is_file():
        raise MoehlsError(
            f"{path}: the data file {str(tensor.location)!r} of weight {name!r} is missing; copy it beside the model"
        )
    if place.stat().st_size < (tensor.offset or 0) + (tensor.length or 0):
        raise MoehlsError(
            f"{path}: the data file {str(tensor.location)!r} is too short for weight {name!r}; copy it again"
        )


def _sizes(settings: Mapping[str, str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, text in settings.items():
        if not text.isdecimal() or int(text) < 1:
            raise MoehlsError(f"--set {name}={text}: the value must be a whole number from 1")
        sizes[name] = int(text)
    return sizes


def _fix_dimensions(graph: ir.Graph, sizes: dict[str, int], path: Path) -> None:
    """Replace named dimensions of the inputs; a named leading dimension is the batch, 1 unless given."""
    names: list[str] = []
    open_names: list[str] = []
    for value in graph.inputs:
        if value.shape is None:
            raise MoehlsError(f"{path}: the input {value.name!r} has no shape; export with static shapes")
        dims: list[int] = []
        for place, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            name = dim.value or ""
            names.append(name)
            if name not in sizes and place != 0:
                open_names.append(name or f"dimension {place} of {value.name}")
            dims.append(sizes.get(name, 1))
        if any(size < 1 for size in dims):
            raise MoehlsError(f"{path}: the input {value.name!r} has shape {dims}; every dimension must be at least 1")
        value.shape = ir.Shape(dims)
    unknown = sorted(set(sizes) - set(names) - {_TASKS, "batch"})
    if unknown:
        found = ", ".join(sorted(filter(None, names))) or "none"
        raise MoehlsError(f"{path}: --set names {', '.join(unknown)}, but the model's named dimensions are: {found}")
    if open_names:
        raise MoehlsError(f"{path}: {', '.join(sorted(set(open_names)))} not fixed; add --set name=value for each")


def _readers(value: ir.Value, through: Sequence[str] = ()) -> Iterator[str]:
    """Operators that read a value, through nodes that change nothing, quantise it, or are named."""
    for use in value.uses():
        if use.node.op_type in ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", *through):
            yield from _readers(use.node.outputs[0], through)
        else:
            yield use.node.op_type


def _roles(graph: ir.Graph, tasks: int | None, path: Path) -> Inputs:
    images: list[tuple[str, tuple[int, ...]]] = []
    task: list[str] = []
    vectors: list[int] = []
    for value in graph.inputs:
        shape = tuple(value.shape.numpy()) if value.shape is not None else ()
        if value.dtype is not None and value.dtype.is_integer() and prod(shape) == 1:
            task.append(value.name or "")
        elif value.dtype in _IMAGES and len(shape) in (3, 4) and value.name not in graph.initializers:
            images.append((value.name or "", shape))
        elif value.dtype == ir.DataType.FLOAT and len(shape) in (1, 2) and prod(shape) == shape[-1] > 1:
            task.append(value.name or "")
            vectors.append(shape[-1])
        else:
            raise MoehlsError(
                f"{path}: the input {value.name!r} ({value.dtype} {list(shape)}) is neither an image, float32 or uint8, "
                "[1, channels, height, width] or [1, height, width, channels], nor a float32 token matrix "
                "[1, tokens, channels], nor a task (one integer, or a one-hot float32 vector [1, tasks])"
            )
    if len(images) != 1 or len(task) > 1:
        raise MoehlsError(
            f"{path}: has {len(images)} image and {len(task)} task inputs; supported: one image, at most one task"
        )
    name, shape = images[0]
    value = next(each for each in graph.inputs if each.name == name)
    kind = _IMAGES[value.dtype or ir.DataType.FLOAT]
    scaled = {"Sub", "Mul", "Div"} & set(_readers(value))  # an image without batch, brought to unit deviation
    tokens = len(shape) == 3 and kind == "float32" and not (shape[0] > 1 and scaled)
    tokens = tokens and not _TOKEN_READERS.isdisjoint(_readers(value))
    if (len(shape) == 4 or tokens) and shape[0] != 1:
        raise MoehlsError(
            f"{path}: the input {name!r} has a batch of {shape[0]}; export with batch 1 or a named batch dimension"
        )
    last = not tokens and _is_channels_last(value, shape)
    channels, height, width = (shape[-1], *shape[-3:-1]) if last else shape[-3:]
    if prod(shape) > _PIXELS or max([*vectors, tasks or 1]) > _MOST_TASKS:
        raise MoehlsError(
            f"{path}: its inputs are of no ordinary size (an image {list(shape)}); export a smaller model"
        )
    if vectors and tasks not in (None, vectors[0]):
        raise MoehlsError(f"{path}: --set tasks={tasks}, but the one-hot input {task[0]!r} has {vectors[0]} places")
    count = (vectors[0] if vectors else tasks) if task else None
    image = (channels, height, width)
    return Inputs(name, image, task[0] if task else None, count, bool(vectors), tokens, last, kind)


def _is_channels_last(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether the last dimension of an image is the smallest and no convolution reads it as it is."""
    return shape[-1] < min(shape[-3:-1]) and not any(reader.endswith("Conv") for reader in _readers(value, _AFFINE))
