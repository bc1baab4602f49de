"""A structure-aware fuzzer of the front end: whatever a file holds, it is read correctly or refused with one `MoehlsError`.

    python -m tests.frontend.fuzz --cases 200 --seed 0

Each case takes a fixture, makes one to three changes (of nodes, names, shapes, types, attributes, weights, external data, or raw
bytes) and reads it in a process of its own with limits of processor time and memory. A network that is read has passed the
comparison with onnxruntime, so it is a correct one. Prints the number of each outcome; ends with 1 where a case ended in any
other way.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend import read_network
from tests.frontend.support import fixture, names

SECONDS = 30
"""Processor time of a case; ten times as long on the clock, so that a loaded machine changes no outcome."""
MEMORY = 6 << 30
"""Bytes of address space; the process starts with about 1 GB."""
OVER = "over the limit"
HOSTILE = ['a"b', "a\nb", "../../etc/passwd", "", "x'; DROP", "int main(){}", "\u202e", "a" * 5000, "%s%n", "<script>"]
NUMBERS = [0, -1, 1, 2, 3, 7, 1 << 20, 1 << 31, 1 << 40, (1 << 62), -(1 << 62)]

Change = Callable[[onnx.ModelProto, random.Random, Path], None]


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = list(model.graph.node)
    return rng.choice(nodes)


def _values(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output] + [t.name for t in model.graph.initializer]


def remove_node(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def swap_nodes(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    first, second = _node(model, rng), _node(model, rng)
    copy = onnx.NodeProto.FromString(first.SerializeToString())
    first.CopyFrom(second)
    second.CopyFrom(copy)


def rewire(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    """Another value as an input: cycles, wrong shapes, wrong types."""
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_values(model))


def drop_input(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    node = _node(model, rng)
    if node.input:
        if rng.random() < 0.5:
            node.input.pop()
        else:
            node.input[rng.randrange(len(node.input))] = ""


def change_operator(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice([_node(model, rng).op_type, "MoE", "If", "Loop", "Scan", "NonZero", "Resize", "é"])
    node.domain = rng.choice(["", "", "", "com.microsoft", "nowhere"])


def change_attribute(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute] or [_node(model, rng)])
    if not node.attribute:
        return
    attribute = rng.choice(list(node.attribute))
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    elif attribute.type == AttributeProto.TENSOR:
        _change_tensor(attribute.t, rng)
    else:
        attribute.type = rng.choice([AttributeProto.INT, AttributeProto.STRING, AttributeProto.GRAPH])


def rename(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    """A hostile name, or one that is there already."""
    name = rng.choice([*HOSTILE, *_values(model)[:5]])
    kind = rng.randrange(4)
    if kind == 0:
        _node(model, rng).name = name
    elif kind == 1 and model.graph.initializer:
        rng.choice(list(model.graph.initializer)).name = name
    elif kind == 2:
        node = _node(model, rng)
        node.output[0] = name
    else:
        old = model.graph.input[0].name
        model.graph.input[0].name = name
        for node in model.graph.node:
            node.input[:] = [name if each == old else each for each in node.input]


def _change_tensor(tensor: TensorProto, rng: random.Random) -> None:
    kind = rng.randrange(5)
    if tensor.data_location == TensorProto.EXTERNAL:
        return  # its data is not this program's to read
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif kind == 1:
        tensor.data_type = rng.choice([0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99])
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    else:
        name = tensor.name
        array = numpy_helper.to_array(tensor).copy()
        if array.size:
            places = array.reshape(-1)
            bad = [np.nan, np.inf, 1e30, 0.0] if array.dtype.kind == "f" else [1 << 20, -7, 0, 3]
            places[rng.randrange(array.size)] = np.array(rng.choice(bad)).astype(array.dtype)
        array = array if kind == 3 else array[:0] if array.ndim else array
        tensor.CopyFrom(numpy_helper.from_array(array, name))


def change_weight(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    if model.graph.initializer:
        _change_tensor(rng.choice(list(model.graph.initializer)), rng)


def change_external(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    """External data that is missing, loops, leaves the folder, or claims gigabytes; of a weight or of an attribute."""
    tensors = list(model.graph.initializer)
    tensors += [each.t for node in model.graph.node for each in node.attribute if each.type == AttributeProto.TENSOR]
    tensor = rng.choice(tensors)
    (folder / "data.bin").write_bytes(bytes(64))
    (folder / "loop").unlink(missing_ok=True)
    (folder / "loop").symlink_to("loop")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    places = ["data.bin", "none.bin", "loop", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "case.onnx", "", "."]
    for key, value in (
        ("location", rng.choice(places)),
        ("offset", str(rng.choice([0, 60, -8, 1 << 40]))),
        ("length", str(rng.choice([0, 4, 64, -1, 2 << 30]))),
    ):
        if rng.random() < 0.85:
            tensor.external_data.add(key=key, value=value)


def change_shape(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = rng.choice([0, 1, 6, 7, 9, 10, 11, 16])
    elif kind.shape.dim:
        dim = rng.choice(list(kind.shape.dim))
        if rng.random() < 0.5:
            dim.dim_value = rng.choice(NUMBERS)
        else:
            dim.dim_param = rng.choice([*HOSTILE, "n"])


def change_version(model: onnx.ModelProto, rng: random.Random, folder: Path) -> None:
    if rng.random() < 0.5 and model.opset_import:
        model.opset_import[0].version = rng.choice([0, 1, 6, 7, 9, 11, 12, 13, 17, 20, 23, 26, 27, 1 << 40])
    else:
        model.ir_version = rng.choice([0, 1, 3, 8, 10, 99])


CHANGES: tuple[Change, ...] = (
    remove_node, swap_nodes, rewire, rewire, drop_input, change_operator, change_attribute, change_attribute, rename,
    change_weight, change_weight, change_external, change_shape, change_version,
)  # fmt: skip


def make_case(number: int, seed: int, folder: Path) -> Path:
    """Write case `number` of a seed; the same every time."""
    rng = random.Random(f"{seed} {number}")
    content = fixture(rng.choice(names())).read_bytes()
    if rng.random() < 0.8:
        model = onnx.load_from_string(content)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            try:
                rng.choice(CHANGES)(model, rng, folder)
            except (ValueError, TypeError, IndexError, KeyError):
                continue  # an earlier change made this one impossible
        content = model.SerializeToString()
    if rng.random() < 0.25:
        raw = bytearray(content)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(raw))
            if rng.random() < 0.2:
                del raw[place:]
            elif rng.random() < 0.5:
                raw[place] ^= 1 << rng.randrange(8)
            else:
                raw[place : place + rng.randrange(16)] = rng.randbytes(rng.randrange(16))
            raw = raw or bytearray(1)
        content = bytes(raw)
    path = folder / "case.onnx"
    path.write_bytes(content)
    return path


def _outcome(path: Path) -> str:
    try:
        read_network(path, {})
    except MoehlsError as error:
        return "refused" if str(error).strip() else "an error without text"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def run_case(number: int, seed: int) -> str:
    """The outcome of a case in a process of its own: read, refused, or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(10 * SECONDS)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            outcome = _outcome(make_case(number, seed, Path(name)))
            os.write(writer, outcome.encode("utf-8", "replace"))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode("utf-8", "replace")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return OVER if name in ("SIGXCPU", "SIGALRM", "SIGKILL") else f"killed by {name}"
        return text or "no outcome"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the front end.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    slowest, began = 0.0, time.monotonic()
    for number in range(given.first, given.first + given.cases):
        start = time.monotonic()
        outcome = run_case(number, given.seed)
        slowest = max(slowest, time.monotonic() - start)
        outcomes[outcome if outcome in ("read", "refused", OVER) else "crashed"] += 1
        if outcome not in ("read", "refused"):
            print(f"case {number} of seed {given.seed}: {outcome}", flush=True)
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("read", "refused", "crashed", OVER))
    print(f"{given.cases} cases: {counts}; slowest {slowest:.1f} s, {time.monotonic() - began:.0f} s in all")
    return 1 if outcomes["crashed"] or outcomes[OVER] else 0


if __name__ == "__main__":
    sys.exit(main())
