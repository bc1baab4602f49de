"""DSPs, LUTs and flip-flops planned for a shape: counted from the C++ process by process, before any tool runs.

DSP48E2 multiply 27 × 18 bits signed. An accumulator of 32 bits times an 18-bit multiplier takes one, and LUTs for the six
bits above; of 48 bits it takes two. LUTs and
flip-flops are rough: a bit of an adder, a comparator or a two-way multiplexer counts one LUT, a bit of a variable
shifter three (six levels, two a LUT6). Expect 30 % either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from moehls.plan.memory import memory_map, totals
from moehls.plan.shape import Shape

_GROUP = 4
"""products a DSP cascade adds"""
_AXI_LUT, _CONTROL_LUT, _SECTIONS_LUT = 1500, 6000, 1000
_POOL_LUT = 310
"""a channel of POOL"""
_CONTROL_DSP = 7
"""products of loop bounds and addresses in the processes beside the engine: at most one in most of them"""
_PRODUCT_LUT, _SUM_LUT = 80, 20
"""of 9 × 8 bits: four selected multiples and their sums; of the sum with another"""
_SLOPE_LUT = 60
"""product of the slope of GELU's table"""
_WIDE_LUT = 120
"""the bits of a wide product above 26, and their sum with the DSP's"""


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
        "route": 2 * shape.route_experts + 9,  # base-2 logits, and the largest; reciprocal, gate
        "control": _CONTROL_DSP,
    }


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
    lut = _logic_luts(shape) + sum(m.lut for m in memories)
    p, b, tt = shape.precision, shape.block, shape.token_parallel
    registers = 3 * tt * b * p.accumulator_bits + 8 * shape.word_bits  # accumulators and tiles, words under way
    return Resources(sum(by_process.values()), bram, uram, lut, lut * 6 // 5 + registers, by_process)


def _logic_luts(shape: Shape) -> int:
    p, b, tt, lanes = shape.precision, shape.block, shape.token_parallel, shape.token_parallel * shape.epilogue_lanes
    partial = p.activation_bits + p.weight_bits + 4
    groups = b // _GROUP
    multiply = tt * b * ((groups - 1) * partial + p.accumulator_bits + groups * partial // 2)
    in_luts = 2 * shape.lut_columns * b * (_PRODUCT_LUT + _SUM_LUT) * p.weight_bits // 8
    rescale = lanes * (3 * (p.accumulator_bits + 17) + 3 * p.requantised_bits + _WIDE_LUT)
    halvings = (p.activation_bits + 1) * p.activation_bits  # a chain of conditional halvings of a probability
    activate = lanes * (
        3 * (p.gelu_bits + 18)
        + 3 * (p.accumulator_bits + 18)
        + 4 * p.activation_bits
        + halvings
        + _WIDE_LUT
        + _SLOPE_LUT
    )
    write = tt * b * (2 * p.residual_bits + p.requantised_bits // 2 + p.accumulator_bits // 2) + 40 * b
    feed = tt * b * (2 * p.activation_bits + halvings)
    norm = shape.norm_tokens * b * (3 * 48 + 3 * 36 + 8 * p.residual_bits + tt * p.residual_bits // 2)
    route = shape.max_experts * 4 * p.accumulator_bits + 1500
    memory_ports = 6 * tt * (b * p.activation_bits + 8)
    stream = 3 * shape.word_bits + (shape.ports + 2) * _AXI_LUT
    pool = shape.pools * b * _POOL_LUT
    sections = 0 if shape.experts == "streamed" else _SECTIONS_LUT
    array = multiply + in_luts + rescale + activate + write + feed
    return array + norm + route + pool + memory_ports + stream + sections + _CONTROL_LUT
