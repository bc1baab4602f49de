"""Breaks that no verification can see, for a reason that no tool here proves: what they change, nobody looks at.

A break is known by what it makes of a line of the C++, in the RTL by its file, its kind and what the line gives. Everything
else that is not seen is a survivor.
"""

from __future__ import annotations

import re

from moehls.simulate.faults import Fault

_REASONS: dict[tuple[str, str, str], str] = {
    (
        "write.cpp",
        "nest.i0 == 0 ? RESIDUAL_DEPTH - 1 : 0",
        "nest.i0 == 1 ? RESIDUAL_DEPTH - 1 : 0",
    ): "a word of a lane that holds no token of this step is read and not used",
    (
        "multiply.cpp",
        "if (PACKED) {",
        "if (!(PACKED)) {",
    ): "two products in a DSP or each in its own: both branches give the same sums, exactly",
    (
        "weights.cpp",
        "[PARAMETER_DEPTH * BLOCKS_PER_PARAMETER_WORD]",
        "[PARAMETER_DEPTH + BLOCKS_PER_PARAMETER_WORD]",
    ): "with one block a word the memory has a word more, which nobody writes or reads",
    (
        "pool.cpp",
        "sums[c == BLOCK - 1 ? c : c + 1]",
        "sums[c == BLOCK - 0 ? c : c + 1]",
    ): "sums move up to be read one by one: what the last one takes comes after those that are read",
    (
        "write.cpp",
        "sums.range(c * ACCUMULATOR_BITS + RESIDUAL_BITS - 1,",
        "sums.range(c * ACCUMULATOR_BITS + RESIDUAL_BITS - 0,",
    ): "the bit above a residual's, which the memory does not take",
    (
        "arithmetic.hpp",
        "if (BITS <= LOW + 1 || HIGH > 8) return x * m;",
        "if (!(BITS <= LOW + 1 || HIGH > 8)) return x * m;",
    ): "a product of one part or of two: both ways give the same, exactly",
}
"""(file, part of the good line, part of the broken one) -> why nothing can show it"""

_RTL_REASONS: dict[tuple[str, str, str], str] = {
    (
        "copy_tokens.sv",
        "width",
        r"to_\d+_write_data",
    ): "the top bit of a gathered token's exponent, and nobody reads the exponents of M1",
    (
        "exponentials.sv",
        "width",
        r"nest_i2_next_2",
    ): "a counter of groups of experts, which are fewer than 8 bits count",
    (
        "fetch.sv",
        "condition",
        r"steps",
    ): "what is there a cycle later than without the break is read two cycles later, as a bubble follows the first token",
    (
        "moments.sv",
        "condition",
        r"rows_left",
    ): "it tells how far the place moves behind the last row, where no row is read",
    (
        "multiply.sv",
        "condition",
        r"nest_end\d|split",
    ): "what is there a cycle later than without the break is read when the first operands have come, several cycles later",
    (
        "normalise.sv",
        "index",
        r"above_\d+_is_(0|limit)",
    ): "a value normalised over D channels lies below sqrt(D), and the limit a bit too low is that of 4096 channels",
    (
        "normalise.sv",
        "width",
        r"plane_offset",
    ): "the place of a word among the two planes of a token, of at most norm_depth words each: 8 bits are for more than 64",
}
"""(file, kind, what the line gives) -> why nothing can show it"""


def explained(fault: Fault) -> str | None:
    """Why a break cannot be seen, where that is known."""
    found = (
        reason
        for (file, good, broken), reason in _REASONS.items()
        if file == fault.file and good in fault.good and broken in fault.broken
    )
    in_rtl = (
        reason
        for (file, kind, target), reason in _RTL_REASONS.items()
        if (file, kind) == (fault.file, fault.kind) and re.fullmatch(target, fault.target)
    )
    return next(found, None) or next(in_rtl, None)
