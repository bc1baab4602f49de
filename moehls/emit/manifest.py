"""`moehls.json`: all that the host driver, the vendor scripts and other tools need to know of a project.

In go the integer network, its program and the plan; out comes a JSON object. `docs/host.md` explains the keys.
"""

from __future__ import annotations

from typing import Any

from moehls import __version__
from moehls.emit.hls import KERNEL_NAME
from moehls.integer.operations import IntegerNetwork
from moehls.plan import Plan
from moehls.plan.layout import CHUNK_BYTES
from moehls.plan.memory import MemoryUse
from moehls.plan.shape import Shape
from moehls.plan.steps import Place, Program

FORMAT = 1
"""version of the manifest; another one is refused"""
INSTANCE = "accelerator"
"""name of the kernel in the block design"""
_FIRST_REGISTER = 0x10


def manifest(network: IntegerNetwork, program: Program, plan: Plan, input_hash: str) -> dict[str, Any]:
    """The manifest of a project; `input_hash` is of the ONNX file."""
    shape = plan.shape
    return {
        "format": FORMAT,
        "versions": {"moehls": __version__},
        "model": network.name,
        "input_hash": input_hash,
        "board": plan.board.name,
        "clock_mhz": plan.clock_mhz,
        "precision": network.precision.name,
        "tasks": network.tasks,
        "task_input": network.task_input,
        "shape": _shape(shape),
        "interfaces": {
            "kernel": KERNEL_NAME,
            "instance": INSTANCE,
            "control": "s_axi_control",
            "masters": [f"m_axi_gmem{port}" for port in range(shape.ports)] + ["m_axi_gmem_io"],
            "beat_bytes": CHUNK_BYTES,
        },
        "registers": registers(shape.ports),
        "weights": {
            "file": "data/weights.bin",
            "ports": shape.ports,
            "chunk_bytes": CHUNK_BYTES,
            "chunks_per_port": plan.weight_beats,
            "first_chunks": plan.first_beats,
            "layout": "chunk j of the file lies in port j mod ports at address j div ports",
        },
        "input": _input(network, program, shape),
        "results": {"beats": program.output_beats},
        "outputs": _outputs(network, program),
        "memories": [_memory(use, program, shape) for use in plan.memories],
    }


def registers(ports: int) -> list[dict[str, Any]]:
    """The register map that Vitis HLS gives the kernel's arguments: each is followed by a reserved word (UG1399)."""
    found = [
        {"name": "control", "offset": 0, "bits": 32, "meaning": "bit 0 start, 1 done (clears on read), 2 idle, 3 ready"}
    ]
    offset = _FIRST_REGISTER
    pointers = [(f"weights{port}", 64, f"address of the weights of port {port}") for port in range(ports)]
    pointers += [("input", 64, "address of the pixels"), ("output", 64, "address of the results")]
    scalars = [
        ("weight_beats", 32, "16-byte chunks a weight port that are read first"),
        ("input_beats", 32, "16-byte beats of an image"),
        ("output_beats", 32, "16-byte beats of the results"),
        ("task", 32, "number of the task"),
    ]
    for name, bits, meaning in pointers + scalars:
        found.append({"name": name, "offset": offset, "bits": bits, "meaning": meaning})
        offset += bits // 8 + 4
    return found


def _shape(shape: Shape) -> dict[str, Any]:
    return {name: value for name, value in vars(shape).items() if name != "precision"}


def _input(network: IntegerNetwork, program: Program, shape: Shape) -> dict[str, Any]:
    place = program.input
    return {
        "name": network.input.name,
        "shape": list(network.input.shape),
        "patch": list(network.input.patch),
        "bits": network.precision.activation_bits,
        "scale": network.input.scale.tolist(),
        "offset": network.input.offset.tolist(),
        "patches": place.patches,
        "block": shape.block,
        "blocks": place.blocks,
        "word_beats": place.beats_a_word,
        "beats": place.beats,
        "sample": list(network.input.given or network.input.shape),
        "type": network.input.type,
        "preprocess": [step.json() for step in network.input.steps],
    }


def _outputs(network: IntegerNetwork, program: Program) -> list[dict[str, Any]]:
    places = {place.name: place for place in program.outputs}
    found = []
    for output in network.outputs:
        place, meaning = places[output.name], network.formats[output.value]
        found.append(
            {
                "name": output.name,
                "shape": list(output.shape),
                "kind": place.kind,
                "first_beat": place.beat,
                "rows": place.rows,
                "channels": place.channels,
                "blocks": place.blocks,
                "block": place.block,
                "bits": place.bits,
                "scale": meaning.scale.tolist(),
                "offset": meaning.offset.tolist(),
                "postprocess": [step.json() for step in output.steps],
            }
            | ({"part_of": output.part_of} if output.part_of else {})
        )
    return found


def _memory(use: MemoryUse, program: Program, shape: Shape) -> dict[str, Any]:
    return {
        "name": use.name,
        "contents": use.contents,
        "banks": use.banks,
        "depth": use.depth,
        "word_bits": use.width,
        "storage": use.storage,
        "bram36": use.bram36,
        "uram": use.uram,
        "values": _values(use.name, program, shape),
    }


def _values(memory: str, program: Program, shape: Shape) -> list[dict[str, Any]]:
    """Where each value lies in `memory`, from the step that writes it to the last that reads it."""
    kinds = {stage.value: stage.kind for stage in program.stages}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, step in enumerate(program.steps):
        for access in step.writes:
            place = access.place
            if place.memory != memory:
                continue
            key = access.value, place.base
            entry = found.setdefault(
                key,
                {
                    "name": access.value,
                    "kind": "residual" if memory == "residual" else kinds.get(access.value, "temporary"),
                    "base": place.base,
                    "words": _words(place, shape),
                    "first_step": number,
                    "last_step": number,
                },
            )
            entry["last_step"] = number
        for access in step.reads:
            for (name, _), entry in found.items():
                if name == access.value:
                    entry["last_step"] = number
    return list(found.values())


def _words(place: Place, shape: Shape) -> int:
    """Words a lane; in the raw memory of all rows."""
    lanes = 1 if place.memory == "raw" else shape.token_parallel
    if place.memory == "queue":
        return place.channels.count * shape.max_tokens
    return -(-place.rows // lanes) * place.stride
