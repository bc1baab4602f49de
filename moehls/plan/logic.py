"""LUTs and flip-flops planned for a shape, process by process: bits of its structure times what a bit takes.

The terms are read from the C++: words that are taken apart, lanes, accumulators, operands, multiplexers. What a bit of each takes
was fitted to RTL counted by yosys (its LUTs as they are, docs/simulation.md), in shapes that differ in parallelism, lanes,
precision and options: `python -m benchmarks resources --calibrate --fit` counts them again and fits.
"""

from __future__ import annotations

from collections.abc import Mapping

from moehls.plan.shape import BIAS_BITS, Shape

Terms = dict[str, float]
COEFFICIENTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "multiply": {
        "accumulators": (0.408, 0.939),
        "columns in LUTs": (1.37, 1.18),
        "products": (3.4, 0.0),
        "words": (0.205, 2.94),
    },
    "weights": {
        "words": (2.55, 3.55),
        "parameters": (1.4, 2.43),
        "places": (0.33, 0.0),
        "token words": (0.258, 0.162),
        "biases": (1.0, 1.0),
    },
    "feed": {
        "operands": (6.25, 5.89),
        "one": (229.0, 323.0),
    },
    "engine": {
        "accumulators": (1.14, 0.206),
        "lanes": (1.79, 0.206),
        "words": (0.0, 0.0),
        "one": (1150.0, 494.0),
    },
    "rescale": {
        "lanes": (188.0, 150.0),
        "shifts": (0.87, 0.676),
        "wide products": (25.7, 18.3),
        "accumulators": (1.17, 1.77),
        "biases": (1.0, 1.0),
    },
    "activate": {
        "lanes": (111.0, 147.0),
        "shifts": (1.56, 0.997),
        "halvings": (1.73, 2.3),
        "factors": (0.0, 19.4),
        "accumulators": (0.242, 0.201),
        "one": (122.0, 1350.0),
    },
    "write": {
        "lanes": (4.66, 6.39),
        "residual": (3.05, 6.66),
        "channels": (0.0, 0.0),
        "one": (376.0, 709.0),
    },
    "norm": {
        "channels": (29.3, 17.9),
        "rows of lanes": (2.61, 5.06),
        "targets": (0.0, 0.0),
        "one": (2140.0, 4070.0),
    },
    "route": {
        "logits": (0.0, 0.0),
        "pairs": (3.61, 1.79),
        "options": (2.82, 2.85),
        "one": (3020.0, 2870.0),
    },
    "gather": {
        "copies": (0.86, 0.269),
        "words": (0.0, 0.0),
        "one": (384.0, 556.0),
    },
    "pool": {
        "channels": (11.6, 14.5),
    },
    "store": {
        "rows": (0.562, 0.0758),
        "one": (1010.0, 1150.0),
    },
    "compute": {
        "token words": (10.7, 5.05),
        "residual words": (0.0, 0.0),
        "words": (0.372, 9.97),
    },
    "stream": {
        "words": (1.14, 3.42),
        "ports": (725.0, 251.0),
        "one": (1910.0, 365.0),
    },
    "sections": {
        "ports": (615.0, 457.0),
        "one": (1230.0, 914.0),
    },
}
"""process → term → (LUTs, flip-flops) a unit. Two terms are not fitted: for a bit of "biases" that is chosen from two a LUT,
for three such of "places" one."""

_PORT_BITS = 27
"""of a DSP48E2: what a product has above them is made of LUTs"""

PROCESSES = {
    "write_tiles": "write",
    **dict.fromkeys(("moments", "inverse_deviation", "normalise", "norm"), "norm"),
    **dict.fromkeys(("score", "rank", "prune", "settle", "exponentials", "enqueue", "route"), "route"),
    **dict.fromkeys(("form_passes", "copy_tokens", "gather"), "gather"),
    **dict.fromkeys(("fetch", "send", "store"), "store"),
    **dict.fromkeys(("engine", "reciprocals"), "engine"),
    **dict.fromkeys(
        ("first_section", "copy_segments", "section", "sections", "request", "keep", "choose", "burst_read_segments"),
        "sections",
    ),
}
"""process of the RTL → its name here; what has no name belongs to "stream": masters, registers, what loads and drains"""


def name_of(process: str) -> str:
    """What a process of the RTL counts to."""
    name = PROCESSES.get(process, process)
    return name if name in COEFFICIENTS else "stream"


def terms(shape: Shape) -> dict[str, Terms]:
    """Units of structure of each process, or of the processes of a step (`PROCESSES`)."""
    return {**_array(shape), **_epilogue(shape), **_units(shape), **_streams(shape)}


def _array(shape: Shape) -> dict[str, Terms]:
    """The array, and what feeds it."""
    p, b, tt = shape.precision, shape.block, shape.token_parallel
    token_word, accumulators = b * p.activation_bits + 8, tt * b * p.accumulator_bits
    operands = tt * b * p.activation_bits
    parameters = b * max(shape.channel_bits, shape.activated_bits)
    plain, activated = shape.packing("channel").blocks, shape.packing("activated").blocks
    return {
        "multiply": {
            "accumulators": accumulators,
            "columns in LUTs": shape.lut_columns * b * (2 - tt % 2) * p.activation_bits * p.weight_bits,
            "products": tt * b * b,
            "words": shape.word_bits,
        },
        "weights": {
            "words": shape.word_bits,
            "parameters": parameters,
            # a block is chosen from the places that blocks have in words, twice: with those of activated channels and without
            "places": parameters * (2 * plain + activated - 3),
            "token words": tt * token_word * shape.gated,
            "biases": tt * tt * BIAS_BITS * shape.bias_words * shape.biased,
        },
        "feed": {"operands": operands, "one": 1},
        "engine": {
            "accumulators": accumulators,
            "lanes": tt * shape.epilogue_lanes * p.accumulator_bits,
            "words": shape.word_bits,
            "one": 1,
        },
    }


def _epilogue(shape: Shape) -> dict[str, Terms]:
    p, b, tt, lanes = shape.precision, shape.block, shape.token_parallel, shape.token_parallel * shape.epilogue_lanes
    bias_levels = (shape.bias_shift_high - shape.bias_shift_low).bit_length()
    scaled, second = min(shape.scaled_bits, p.accumulator_bits), min(shape.second_bits, p.accumulator_bits)
    return {
        "rescale": {
            "lanes": lanes,
            "shifts": lanes * scaled * (shape.shift_high - shape.shift_low).bit_length(),
            "wide products": lanes * max(0, scaled - _PORT_BITS),
            "accumulators": tt * b * p.accumulator_bits,
            # the slice of a tile, its shift, and what is added to the sum
            "biases": shape.biased * (tt * tt * BIAS_BITS + lanes * scaled * (bias_levels + 1)),
        },
        "activate": {
            "lanes": lanes,
            "shifts": lanes * second * (shape.second_shift_high - shape.second_shift_low).bit_length(),
            "halvings": lanes * p.activation_bits**2,
            "factors": lanes * p.activation_bits * shape.gated,
            "accumulators": tt * b * p.accumulator_bits,
            "one": 1,
        },
        "write": {
            "lanes": lanes * p.residual_bits,
            "residual": tt * b * p.residual_bits,
            "channels": b * p.accumulator_bits,
            "one": 1,
        },
    }


def _units(shape: Shape) -> dict[str, Terms]:
    """What works beside the array."""
    p, b, tt = shape.precision, shape.block, shape.token_parallel
    residual, token_word = b * p.residual_bits, b * p.activation_bits + 8
    experts = shape.max_experts * p.accumulator_bits
    options = (
        shape.thresholds,
        shape.capacities,
        shape.rooms,
        shape.sigmoids,
        shape.expert_group > 0,
        shape.selections,
    )
    return {
        "norm": {
            "channels": shape.norm_tokens * b * p.residual_bits,
            "rows of lanes": tt * residual,
            "targets": tt * token_word * shape.norm_targets,
            "one": 1,
        },
        "route": {
            "logits": experts,
            "pairs": experts * shape.route_experts,
            "options": experts * sum(options),
            "one": 1,
        },
        "gather": {"copies": shape.gather_tokens * tt * token_word, "words": tt * token_word, "one": 1},
        "pool": {"channels": shape.pools * b * p.accumulator_bits},
        "store": {"rows": tt * (residual + token_word), "one": 1},
    }


def _streams(shape: Shape) -> dict[str, Terms]:
    """The step machine with its memories' ports, and what moves the stream."""
    p, b, tt = shape.precision, shape.block, shape.token_parallel
    prefetched = shape.experts == "prefetched"
    return {
        "compute": {
            "token words": tt * (b * p.activation_bits + 8),
            "residual words": tt * b * p.residual_bits,
            "words": shape.word_bits,
        },
        "stream": {"words": shape.word_bits, "ports": shape.ports, "one": 1},
        "sections": {"ports": prefetched * shape.ports, "one": prefetched},
    }


def logic_by_process(shape: Shape) -> dict[str, tuple[int, int]]:
    """(LUTs, flip-flops) of each process without its memories."""
    found = {}
    for name, units in terms(shape).items():
        each = [(COEFFICIENTS[name][term], n) for term, n in units.items()]
        found[name] = round(sum(unit[0] * n for unit, n in each)), round(sum(unit[1] * n for unit, n in each))
    return found
