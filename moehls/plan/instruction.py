"""The header word of a step: fields, kinds, modes, bindings, and their encoding.

The one definition of the instruction format. `include/program.hpp` of a project is rendered from `FIELDS`; the
meaning of the fields a kind is in `docs/accelerator.md`, section 3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from moehls.errors import MoehlsError

HEADER_BITS = 512
ANY_TASK = 0xFFFF
NO_EXPERT = 0xFFFF
NO_SPLIT = 0xFFFF
EXPERT_STEPS = 4
"""steps an expert has, at most: gather, up, first, second"""
NO_CAPACITY = 0xFFFF
"""`split` of a ROUTE step"""


class Kind(enum.IntEnum):
    END = 0
    INPUT = 1
    LOAD = 2
    NORM = 3
    LINEAR = 4
    ROUTE = 5
    GATHER = 6
    STORE = 7
    POOL = 8
    SECTION = 9
    """only where experts are prefetched"""


class Mode(enum.IntEnum):
    """Epilogue of a LINEAR step."""

    REQUANTISE = 0
    GELU = 1
    RESIDUAL = 2
    RAW = 3
    SOFTMAX = 4
    CONTEXT = 5
    SCATTER = 6
    GATED = 7
    WIDE = 8


class Source(enum.IntEnum):
    """`mode` of a STORE or POOL step."""

    RESIDUAL = 0
    FINE = 1
    RAW = 2


class Target(enum.IntEnum):
    """`mode` of a NORM step: the memory of its operand."""

    M0 = 0
    M1 = 1
    M2 = 2


class Gating(enum.IntFlag):
    """`mode` of a ROUTE step."""

    RENORMALISE = 1
    BY_CHOICE = 2
    SIGMOID = 4
    UNDIVIDED = 8
    SELECTION = 16
    PAIRS = 32
    ROOM = 64


class Flag(enum.IntFlag):
    W_MEMORY = 1
    PARAMETERS = 2
    X_UNSIGNED = 4
    PLANES = 8
    CHOSEN = 16
    RMS = 32
    PLAIN = 64
    LAST = 128
    """the next header begins a word of its own; only where experts are prefetched"""


class Binding(enum.IntEnum):
    """Which memories (X, W, Y) the engine's array arguments are."""

    QUERY_VALUE = 0
    KEY = 1
    SCORES = 2
    CONTEXT = 3
    PROJECT = 4
    ROUTER = 5
    UP = 6
    CONTEXT_BESIDE = 7


@dataclass(frozen=True)
class Field:
    """A field of the header: `bits` wide from bit `offset`."""

    name: str
    offset: int
    bits: int
    signed: bool = False


def _layout(*fields: tuple[str, int, bool]) -> tuple[Field, ...]:
    placed, offset = [], 0
    for name, bits, signed in fields:
        placed.append(Field(name, offset, bits, signed))
        offset += bits
    assert offset <= HEADER_BITS
    return tuple(placed)


FIELDS = _layout(
    ("kind", 8, False),
    ("mode", 8, False),
    ("binding", 8, False),
    ("flags", 8, False),
    ("payload_words", 32, False),
    ("task", 16, False),
    ("expert", 16, False),
    ("n0", 16, False),
    ("n1", 16, False),
    ("n2", 16, False),
    ("rows", 16, False),
    ("x_base", 16, False),
    ("x_s0", 16, True),
    ("x_s1", 16, True),
    ("x_s2", 16, True),
    ("w_base", 16, False),
    ("w_s0", 16, True),
    ("w_s1", 16, True),
    ("w_s2", 16, True),
    ("y_base", 16, False),
    ("y_s0", 16, True),
    ("y_s1", 16, True),
    ("split", 16, False),
    ("multiplier", 16, False),
    ("shift", 8, False),
    ("channels", 16, False),
    ("offset", 24, True),
    ("epsilon", 64, False),
)


@dataclass(frozen=True)
class Instruction:
    """One step. Field meanings a kind: `docs/accelerator.md`, section 3."""

    kind: Kind
    mode: int = 0
    binding: int = 0
    flags: int = 0
    payload_words: int = 0
    task: int = ANY_TASK
    expert: int = NO_EXPERT
    n0: int = 0
    n1: int = 0
    n2: int = 0
    rows: int = 0
    x_base: int = 0
    x_s0: int = 0
    x_s1: int = 0
    x_s2: int = 0
    w_base: int = 0
    w_s0: int = 0
    w_s1: int = 0
    w_s2: int = 0
    y_base: int = 0
    y_s0: int = 0
    y_s1: int = 0
    split: int = NO_SPLIT
    multiplier: int = 0
    shift: int = 0
    channels: int = 0
    offset: int = 0
    epsilon: int = 0


def encode(instruction: Instruction) -> int:
    """The header as an integer of HEADER_BITS bits.

    Raises:
        MoehlsError: a field does not fit its width: the model is too large for the machine.
    """
    word = 0
    for field in FIELDS:
        value = int(getattr(instruction, field.name))
        low, high = (-(1 << (field.bits - 1)), 1 << (field.bits - 1)) if field.signed else (0, 1 << field.bits)
        if not low <= value < high:
            raise MoehlsError(
                f"step {instruction.kind.name}: {field.name} = {value} does not fit the machine's {field.bits} bits; "
                "the model has too many tokens, channels or experts for this accelerator"
            )
        word |= (value & ((1 << field.bits) - 1)) << field.offset
    return word
