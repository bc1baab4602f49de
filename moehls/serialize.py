"""Frozen dataclasses with NumPy arrays to and from one deterministic `.npz` file.

The file holds the arrays (`a0`, `a1`, …) and `tree`, a JSON text of the rest; a dataclass is stored with its class name
and is rebuilt only from the classes the caller allows. The same object gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an uncompressed `.npz` whose bytes depend only on the arrays and their order."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue())


def save(path: Path, value: Any) -> None:
    """Write a tree of dataclasses, tuples, dicts with string keys, arrays and plain scalars to `path`."""
    arrays: dict[str, npt.NDArray[Any]] = {}

    def encode(node: Any) -> Any:
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            fields = {f.name: encode(getattr(node, f.name)) for f in dataclasses.fields(node)}
            return {"class": type(node).__name__, "fields": fields}
        if isinstance(node, np.ndarray):
            key = f"a{len(arrays)}"
            arrays[key] = node
            return {"array": key}
        if isinstance(node, tuple):
            return {"tuple": [encode(item) for item in node]}
        if isinstance(node, dict):
            return {"dict": {key: encode(item) for key, item in node.items()}}
        if node is None or isinstance(node, (bool, int, float, str)):
            return {"value": node}
        raise TypeError(f"cannot serialise {type(node).__name__}")

    tree = json.dumps(encode(value), separators=(",", ":"))
    write_npz(path, {"tree": np.frombuffer(tree.encode(), np.uint8)} | arrays)


def load(path: Path, classes: tuple[type, ...]) -> Any:
    """Read what `save` wrote; only the dataclasses in `classes` are rebuilt.

    Raises:
        MoehlsError: the file is missing, truncated or holds a class that is not allowed.
    """
    known = {cls.__name__: cls for cls in classes}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        tree = json.loads(arrays["tree"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MoehlsError(f"{path}: not a file written by moehls ({error}); compile the model again") from error

    def decode(node: Any) -> Any:
        if "class" in node:
            if node["class"] not in known:
                raise MoehlsError(f"{path}: unknown class {node['class']!r}; written by another version? Compile again")
            return known[node["class"]](**{key: decode(item) for key, item in node["fields"].items()})
        if "array" in node:
            return arrays[node["array"]]
        if "tuple" in node:
            return tuple(decode(item) for item in node["tuple"])
        if "dict" in node:
            return {key: decode(item) for key, item in node["dict"].items()}
        return node["value"]

    return decode(tree)
