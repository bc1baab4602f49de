"""DSPs, LUTs and flip-flops planned for a shape: counted from the C++ process by process, before any tool runs.

DSP48E2 multiply 27 × 18 bits signed. An accumulator of 32 bits times an 18-bit multiplier takes one, and LUTs for the six
bits above; of 48 bits it takes two. DSPs are as yosys counts them; LUTs and flip-flops are fitted to its counts
(`moehls.plan.logic`), within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from moehls.plan.logic import logic_by_process
from moehls.plan.memory import memory_map, totals
from moehls.plan.shape import Shape

_CONTROL_DSP = 7
"""products of loop bounds and addresses in the processes beside the engine: at most one in most of them"""


@dataclass(frozen=True)
class Resources:
    dsp: int
    bram36: float
    uram: int
    lut: int
    ff: int
    dsp_by_process: dict[str, int]


def dsp_by_process(shape: Shape) -> dict[str, int]:
    """DSPs of each process that multiplies."""
    b, lanes = shape.block, shape.token_parallel * shape.epilogue_lanes
    wide = 1 if shape.precision.accumulator_bits <= 34 else 2
    pairs = -(-shape.token_parallel // 2)
    return {
        "multiply": (pairs * b - shape.lut_columns) * column_dsps(shape),
        "rescale": wide * lanes,
        "activate": (wide + shape.gated) * lanes,  # second multiplier or second requantisation; gate · up
        "write": b,  # z · gate
        "norm": shape.norm_tokens * b * (2 + _products(_scale_bits(shape))) + 13,  # x², x·(D·r), n·g a channel; a root
        "reciprocals": 2,
        "route": (2 + shape.selections) * shape.route_experts
        + 9
        + _options(shape),  # base-2 logits, the largest; reciprocal, gate
        "gather": shape.weighed_inputs * shape.gather_tokens * b,
        "control": _CONTROL_DSP + 3 * shape.pools,
    }


def _options(shape: Shape) -> int:
    """Of a router: passes of all tokens a choice, in the loop bounds of its processes, and least sums of the gates."""
    return 6 * shape.capacities + (2 + shape.capacities) * shape.thresholds + 2 * shape.rooms


def _scale_bits(shape: Shape) -> int:
    """Of D·r, signed, in the norm."""
    return (shape.norm_depth * shape.block).bit_length() + 18


def _products(bits: int) -> int:
    """DSPs of a number of so many bits times one of at most 18, both signed."""
    return -(-bits // 27)


def column_dsps(shape: Shape) -> int:
    """Of an output of two tokens: two products of 8 bits share one."""
    return shape.block * (1 if shape.precision.activation_bits == 8 else 2)


def plan_resources(shape: Shape) -> Resources:
    """Everything `shape` takes."""
    memories = memory_map(shape)
    bram, uram = totals(memories)
    by_process = dsp_by_process(shape)
    logic = logic_by_process(shape).values()
    lut = sum(luts for luts, _ in logic) + sum(m.lut for m in memories)
    ff = sum(registers for _, registers in logic)
    return Resources(sum(by_process.values()), bram, uram, lut, ff, by_process)
