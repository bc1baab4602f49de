"""The delay model: nanoseconds between registers, for UltraScale+ of speed grade -2.

An operation takes the time from its last operand to its result with the way to one load. A net of n loads takes
`SPREAD * (sqrt(n) - 1)` more: its loads fill an area, so the way to the farthest grows with the root of their number. Guo et al.,
"Analysis and Optimization of the Implicit Broadcasts in FPGA HLS to Improve Maximum Frequency" (DAC 2020), measure why it has to
be counted; UG949 recommends what is done about it: registers with many loads are copied (`max_fanout`), so that a copy drives
at most `COPY_LOADS`, one of logic `LOGIC_LOADS`.
"""

from __future__ import annotations

import math

from moehls.rtl.graph import Node
from moehls.rtl.ir import Memory

REGISTER = 0.25
"""clock to output, set-up, and the way to one load"""
LUT = 0.25
"""a LUT of six inputs and the way to it"""
SPREAD = 0.035
COPY_LOADS = 64
"""loads of one copy of a register"""
LOGIC_LOADS = 128
"""loads of one copy of logic, enables among them"""
BRANCH = 2 * LUT
"""from a condition to the registers of the next step"""
COMPARE = 0.6
"""two addresses"""
STREAM_WORD = 0.75
"""clock to the data of a FIFO: the head's copy, the distributed RAM behind it"""
STREAM_FLAG = 0.5
"""clock to a FIFO's `valid` or `ready`"""
MEMORY_WORD = 0.55
"""clock to the output of a memory with its output register, and the way from its column"""
MEMORY_PIN = 0.5
"""the way to a memory's column, and its set-up"""
STREAM_PIN = 0.3
"""the way to a FIFO's distributed RAM, and its set-up"""
SUM_WORD = 0.3
"""clock to the sum of a DSP, beyond a register's"""
SUM_TO_SUM = 1.8
"""from the sum of a DSP to the C port of another, through its adder to its register"""
HOLD = 1.5
"""what schedules leave for the way from a condition that holds a token to what it holds; `timing` counts it"""
MARGIN = 0.9
"""share of the clock period that the model may fill; the rest is uncertainty of clock and placement"""


def delay(node: Node) -> float:
    """From the last operand to the result; wiring is free."""
    width = node.args[0].width if node.args else node.width
    match node.op:
        case "add" | "sub" if width <= 2:
            return LUT
        case "add" | "sub" | "ult" | "slt":
            return 0.45 + 0.012 * width
        case "eq":
            return 0.35 + 0.12 * math.log(max(width, 2), 6)
        case "mul":
            return 1.9
        case "dot":
            return SUM_WORD
        case "and" | "or" | "xor" | "mux":
            return LUT
        case "shl" | "lshr" | "ashr":
            return 0.3 + 0.2 * min(_varying(node.args[1]), math.ceil(math.log2(max(width, 2))) + 1)
        case "rom":
            return 0.3 + 0.15 * node.args[0].width
        case "ctlz" | "ctpop":
            return 0.4 + 0.25 * math.log2(max(width, 2))
        case _:
            return 0.0


def _varying(node: Node) -> int:
    """Bits that are no constants."""
    return sum(_varying(a) for a in node.args) if node.op == "concat" else node.width * (node.op != "const")


def net(loads: int) -> float:
    """What a net of several loads adds to one of a single load."""
    return SPREAD * (math.sqrt(max(loads, 1)) - 1)


def copied(loads: int) -> float:
    """The net of a register; beyond `COPY_LOADS` it has copies."""
    return net(min(loads, COPY_LOADS))


def driven(loads: int) -> float:
    """The net of logic; beyond `LOGIC_LOADS` it has copies."""
    return net(min(loads, LOGIC_LOADS))


def gate(inputs: int) -> float:
    """An AND or OR of that many signals, as LUTs of six inputs."""
    return LUT * math.ceil(math.log(inputs) / math.log(6) - 1e-9) if inputs > 1 else 0.0


def result_latency(node: Node, factors: tuple[int, int]) -> int:
    """Registers a product wants behind it, for the tools to move into a cascade of DSPs."""
    return 2 if node.op == "mul" and (max(factors) > 27 or min(factors) > 18) else 0


def read_latency(memory: Memory) -> int:
    """Cycles from address to data: block and ultra RAM have an output register of their own."""
    return 1 if is_distributed(memory) else 2


def is_distributed(memory: Memory) -> bool:
    """Whether a memory is made of LUTs: bound so, or too shallow to fill a block."""
    return memory.storage == "lutram" or (memory.storage == "" and memory.depth <= 64)


def primitives(memory: Memory, width: int) -> int:
    """RAMs of a bank that share an address: 36 kbit blocks, 288 kbit blocks, or LUTs of 64 words."""
    if is_distributed(memory):
        return max(1, width * -(-memory.depth // 64))
    words = 4096 if memory.storage == "uram" else 512
    return -(-width // 72) * -(-memory.depth // words)
