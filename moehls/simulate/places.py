"""What simulators share: values out of images of the machine's memories, and the weights of a project."""

from __future__ import annotations

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray
from moehls.plan.layout import CHUNK_BYTES, activation_tensor, port_chunks, queue_gates, raw_tensor, residual_tensor
from moehls.plan.payload import Bytes
from moehls.plan.shape import Shape
from moehls.plan.steps import Place
from moehls.project import Project
from moehls.simulate.simulator import MemoryImages

_ACTIVATIONS = {"m0": 0, "m1": 1, "m2": 2, "m3": 3}


def read_place(place: Place, memories: MemoryImages, shape: Shape) -> IntArray:
    """The value at `place`: `[rows, channels]`, of a routing the gates `[tokens, experts]`."""
    if place.memory == "residual":
        return residual_tensor(place, memories.residual(), shape)
    if place.memory == "raw":
        return raw_tensor(place, memories.raw(), shape)
    if place.memory == "queue":
        return queue_gates(place, memories.queue(), memories.count(), shape)
    return activation_tensor(place, memories.activation(_ACTIVATIONS[place.memory]), shape)


def weight_stream(project: Project) -> Bytes:
    """data/weights.bin, `[ports, chunks, 16]`.

    Raises:
        MoehlsError: the file is missing or has another size than the plan says.
    """
    path, plan = project.path / "data/weights.bin", project.plan
    if not path.is_file() or path.stat().st_size != plan.weight_beats * plan.shape.ports * CHUNK_BYTES:
        raise MoehlsError(f"{path}: missing or of another size than planned; compile the model again")
    return port_chunks(np.fromfile(path, np.uint8), plan.shape.ports)
