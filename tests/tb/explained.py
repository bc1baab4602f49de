"""Breaks that no verification can see, for a reason that no tool here proves: what they change, nobody looks at.

A break is known by what it makes of a line of the C++, in the RTL by its file, its kind, what the line gives and what becomes of
its expression; some reasons hold for some shapes only. Everything else that is not seen is a survivor.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from moehls.plan.shape import Shape
from moehls.simulate.faults import Fault

_BY_TEXT: dict[tuple[str, str, str], str] = {
    (
        "multiply.cpp",
        "if (PACKED) {",
        "if (!(PACKED)) {",
    ): "two products in a DSP or each in its own: both branches give the same sums, exactly",
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


@dataclass(frozen=True)
class Reason:
    """Why a break of one line shows nowhere.

    Attributes:
        file: the process, as a pattern.
        kind: of the break, as a pattern.
        target: what the line gives, as a pattern.
        good: the line's expression, as a pattern.
        broken: what becomes of it, as a pattern.
        why: the reason.
        holds: whether it holds for a shape.
    """

    file: str
    kind: str
    target: str
    good: str
    broken: str
    why: str
    holds: Callable[[Shape], bool] = lambda _: True

    def explains(self, fault: Fault, shape: Shape) -> bool:
        """Whether the break is this one."""
        texts = (
            (self.file, fault.file), (self.kind, fault.kind), (self.target, fault.target), (self.good, fault.good),
            (self.broken, fault.broken),
        )  # fmt: skip
        return all(re.fullmatch(pattern, text) for pattern, text in texts) and self.holds(shape)


_FIRST = r"\(advance_\d & \(step_\d == \d'd0\)\)"
_BY_PATTERN = (
    Reason(
        *("write.cpp", "constant", "", r"const ap_uint<8> lane = entry\.range\(7, 0\);"),
        *(
            r"\s*const ap_uint<8> lane = entry\.range\(6, 0\);",
            "no machine has 128 token lanes, of which the top bit would tell",
        ),
        lambda shape: shape.token_parallel <= 128,
    ),
    Reason(
        *(
            "write.cpp",
            "constant|operator",
            "",
            r"const address_t elsewhere = nest\.i0 == 0 \? RESIDUAL_DEPTH - 1 : 0;",
        ),
        *(
            r"\s*const address_t elsewhere = nest\.i0 (== 1|!= 0) \? RESIDUAL_DEPTH - 1 : 0;",
            "a word of a lane that holds no token of this step is read and not used",
        ),
    ),
    Reason(
        *("gather.cpp", "constant", "", r"hinders\[d\] = d == GATHER_TOKENS - 1 \|\| .*"),
        *(
            r"\s*hinders\[d\] = d == GATHER_TOKENS - 0 \|\| .*",
            "where a pass has room for a token of every lane, the one after a full pass shares its lane with one of it",
        ),
        lambda shape: shape.token_parallel <= shape.gather_tokens,
    ),
    Reason(
        *("norm.cpp", "constant", "", r"const bool possible = TOKENS % NORM_TOKENS != 0 \|\| t % NORM_TOKENS == s;"),
        *(
            r"\s*const bool possible = TOKENS % NORM_TOKENS != 1 \|\| t % NORM_TOKENS == s;",
            "with an even number of lanes every slot is possible then, and the slot decides all the same",
        ),
        lambda shape: shape.token_parallel % 2 == 0,
    ),
    Reason(
        *("multiply.cpp", "operator", "", r"plane \+= ap_uint<OVERLAP>\(a\[i\] & mask\);"),
        *(
            r"\s*plane -= ap_uint<OVERLAP>\(a\[i\] & mask\);",
            "with blocks of 8 channels the sum is one of a bit, where -1 is 1",
        ),
        lambda shape: shape.block == 8 and shape.precision.activation_bits == 8,
    ),
    Reason(
        *("copy_tokens.sv", "width", r"to_\d+_write_data", r"level_\d+_\d+_\d+", r"cut\(level_\d+_\d+_\d+\)"),
        "the top bit of a gathered token's exponent, and nobody reads the exponents of M1",
    ),
    Reason(
        *("copy_tokens.sv", "width", r"level_\d+_\d+", r"used_\w+\[\d+\] \? from_\d+_read_data : from_\d+_read_data"),
        *(r"cut\(.*\)", "the top bit of a gathered token's exponent, and nobody reads the exponents of M1"),
    ),
    Reason(
        *(r"(fetch|pool)\.sv", "condition", r"steps|blocks|conv2_\w+", _FIRST, rf"~\({_FIRST}\)"),
        "what is there a cycle later than without the break is read two cycles later, as a bubble follows what comes first",
    ),
    Reason(
        *(
            r"(multiply|rescale|activate|write_tiles|inverse_deviation)\.sv",
            "condition",
            r"\w+",
            _FIRST,
            rf"~\({_FIRST}\)",
        ),
        "a value of the header, which stands still, is there a cycle later than without the break, and is read with the "
        "first operands, which the processes before this one give several cycles later",
    ),
    Reason(
        *("normalise.sv", "index", r"above_\d+_is_(0|limit)", r"above_\d+\[39:19\] == 21'h(0|1fffff)"),
        *(r"above_\d+\[38:18\] == 21'h(0|1fffff)",),
        "a value normalised over D channels lies below sqrt(D), and the limit a bit too low is that of 4096 channels",
        lambda shape: shape.norm_depth * shape.block < 4096,
    ),
    Reason(
        *("normalise.sv", "width", "plane_offset", r"nest_i1\[7:0\] \+ plane_offset_mux", r"cut\(.*\)"),
        "the place of a word among the two planes of a token, of at most norm_depth words each: 8 bits are for more than 64",
        lambda shape: shape.norm_depth <= 64,
    ),
    Reason(
        *("enqueue.sv", "constant", "queue_value_add_above_limit", r"37'h8000 < queue_value_add"),
        *("37'h48000 < queue_value_add",),
        "no gate is above its limit (tests/integer/test_arithmetic.py goes through all sums)",
    ),
    Reason(
        *("enqueue.sv", "width", "queue_value_add_above_limit", r"37'h8000 < queue_value_add", r"cut\(.*\)"),
        "no gate is above its limit (tests/integer/test_arithmetic.py goes through all sums)",
    ),
    Reason(
        *("activate.sv", "index", r"above_\d_\d_is_(0|limit)", r"product_\d_\d_\d\[48:39\] == 10'h(0|3ff)"),
        *(r"product_\d_\d_\d\[47:38\] == 10'h(0|3ff)",),
        "2^38 and more, shifted by fewer than 32, are beyond a signed operand all the same, and no activation is so large",
    ),
    Reason(
        *("activate.sv", "index", r"above_\d_\d_is_0_2", r"above_\d_\d_s6\[40:24\] == 17'h0"),
        *(r"above_\d_\d_s6\[39:23\] == 17'h0",),
        "2^23 and more, shifted by fewer than 16, are beyond any operand all the same; the level before looks at the sign",
    ),
    Reason(
        *("activate.sv", "width", r"delta_\d_\d", r"\{2'h0, delta_\d_\d_rom_s2, 5'h10\} \+ .*", r"cut\(.*\)"),
        "it lies between two entries of the table, of which none is negative: the top bit is no part of it",
    ),
    Reason(
        *("form_passes.sv", "index", "pass_1", r"move_\d_\d\[63:48\] \| move_1\[15:0\]"),
        *(r"move_\d_\d\[62:47\] \| move_1\[15:0\]",),
        "above a move are zeros, and its top bit is that of an address",
        lambda shape: shape.activation_depth <= 1 << 15,
    ),
    Reason(
        *("normalise.sv", "constant", r"above_\d+_is_0_2", r"\{above_\d+\[39\], 39'h0\} == 40'h0"),
        *(r"\{above_\d+\[39\], 39'h80000\} == 40'h0",),
        "it tells of values shifted by 32 and more, which the root of a larger variance would be",
        lambda shape: ((shape.norm_depth * shape.block) ** 2 << 30) + (1 << 48) < 1 << 54,
    ),
    Reason(
        *("rescale.sv", "constant", r"slice_least_\d+", r"slice_least_\d+_and \? .* : 13'hfff"),
        *(r"slice_least_\d+_and \? .* : 13'hfbf",),
        "both are more than the exponent of any score, of which one is always there in a row's first tile",
    ),
    Reason(
        *("rescale.sv", "width", r"beyond_\d_\d_5", r"not_above_\d_\d_is_0_5 & not_above_\d_\d_is_3", r"cut\(.*\)"),
        "a single bit too many is the sign of what is kept, which is not the product's then: the last comparison sees it",
    ),
    Reason(
        *("rescale.sv", "constant|width", r"slice_\d_\d_is_limit", r"\{slice_\d_\d\[20:8\], 8'h0\} == 21'hfff00"),
        *(r"\{slice_\d_\d\[20:8\], 8'h10\} == 21'hfff00|cut\(.*\)",),
        "the exponent is taken where it is the largest, which is what stands there without any",
    ),
    Reason(
        *(
            "feed.sv",
            "width",
            r"risen_\d",
            r"\{1'h0, x_\d_read_data\[.*\]\} \+ \{4'h0, shift_\d_next\w*\}",
            r"cut\(.*\)",
        ),
        "the sum of two shifts of at most 31 is below 256",
    ),
    Reason(
        *(
            "inverse_deviation.sv",
            "width",
            "variance_below_1",
            r"\$signed\(variance_s\d+\) < \$signed\(66'h1\)",
            r"cut\(.*\)",
        ),
        "without a variance all values are their mean, and nothing is scaled by what the root is",
    ),
    Reason(
        *("pool.sv", "width", r"to_step_0_and\w*", r"not_j_below_conv2_\w+ & steps_is_0\w*", r"cut\(.*\)"),
        "a mean of one block has a step for each of its channels, whatever else the header says",
    ),
    Reason(
        *(
            "pool.sv",
            "condition",
            r"(plane_)?first",
            r"\(\(advance_\d & \(step_\d == 2'd0\)\) & place_group_is_0\w*\)",
            r"~\(.*\)",
        ),
        "the same product of the header's fields, whichever of the two ways into the loop loads it",
    ),
    Reason(
        *(
            "rank.sv",
            "constant",
            r"arriving_\d+_mux",
            r"address_or_s\d+ \? 32'h0 : .*",
            r"address_or_s\d+ \? 32'h10000 : .*",
        ),
        "what is read behind the last token is not ranked",
    ),
    Reason(
        *(
            "inverse_deviation.sv",
            "width",
            "error_mul",
            r"\$signed\(.*normalised_s\d+\[63:46\]\}\) \* .*",
            r"cut\(.*\)",
        ),
        "a value times the square of its inverse root is about 2^34: the top bit, 2^35, is never there",
    ),
    Reason(
        *(r"(inverse_deviation|reciprocals)\.sv", "width", "d", r"(error|shifted)\[37:\d+\] \+ .*", r"cut\(.*\)"),
        "a Newton step's factor is about one, of which the top bit is twice as much and more",
    ),
    Reason(
        *("exponentials.sv", "condition", r"token_\d+_mux", r"nest_i2_is_0_s\d+ \? 17'h0 : token_\d+"),
        *(r"nest_i2_is_0_s\d+ \? token_\d+ : 17'h0",),
        "an expert of a pass that there is not comes after the chosen ones of the token, which alone are queued",
        lambda shape: not shape.thresholds and not shape.rooms,
    ),
    Reason(
        *("rescale.sv", "width", r"multiple_\d_\d_4", r"multiple_\d_\d_4_xor \? .*", r"cut\(.*\)"),
        "a multiplier of 2^16 and more, which a reciprocal alone is, and a sum of 2^30 and more, which no context has",
        lambda shape: shape.precision.activation_bits == 8 and shape.max_tokens < 1 << 15,
    ),
    Reason(
        *("activate.sv", "operator", r"results_\d+_wanted", r"\(valid_0 & \(step_0 == 1'd1\)\)"),
        *(r"\(valid_0 & \(step_0 != 1'd1\)\)",),
        "whether there is room for the results of one lane is whether there is room for those of the others",
        lambda shape: shape.token_parallel > 1,
    ),
)


def explained(fault: Fault, shape: Shape) -> str | None:
    """Why a break of an accelerator of this shape cannot be seen, where that is known."""
    found = (
        reason
        for (file, good, broken), reason in _BY_TEXT.items()
        if file == fault.file and good in fault.good and broken in fault.broken
    )
    return next(found, None) or next((r.why for r in _BY_PATTERN if r.explains(fault, shape)), None)
