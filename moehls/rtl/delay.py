"""The delay model: nanoseconds of an operation between registers, for UltraScale+ of speed grade -2, routing included."""

from __future__ import annotations

import math

from moehls.rtl.graph import Node
from moehls.rtl.ir import Memory

REGISTER = 0.25
"""clock to output, and set-up"""
PORT = 0.35
"""of a FIFO's data or a memory's output register"""
MARGIN = 0.8
"""share of the clock period that the model may fill"""


def delay(node: Node) -> float:
    """From the last operand to the result; wiring is free."""
    width = node.args[0].width if node.args else node.width
    match node.op:
        case "add" | "sub" | "ult" | "slt":
            return 0.45 + 0.012 * width
        case "eq":
            return 0.35 + 0.12 * math.log(max(width, 2), 6)
        case "mul":
            return 1.9
        case "and" | "or" | "xor" | "mux":
            return 0.25
        case "shl" | "lshr" | "ashr":
            return 0.3 + 0.2 * min(node.args[1].width, math.ceil(math.log2(max(width, 2))) + 1)
        case "rom":
            return 0.3 + 0.15 * node.args[0].width
        case "ctlz" | "ctpop":
            return 0.4 + 0.25 * math.log2(max(width, 2))
        case _:
            return 0.0


def result_latency(node: Node, factors: tuple[int, int]) -> int:
    """Registers a product wants behind it, for the tools to move into a cascade of DSPs."""
    return 2 if node.op == "mul" and (max(factors) > 27 or min(factors) > 18) else 0


def read_latency(memory: Memory) -> int:
    """Cycles from address to data: block and ultra RAM have an output register of their own."""
    return 1 if is_distributed(memory) else 2


def is_distributed(memory: Memory) -> bool:
    """Whether a memory is made of LUTs: bound so, or too shallow to fill a block."""
    return memory.storage == "lutram" or (memory.storage == "" and memory.depth <= 64)
