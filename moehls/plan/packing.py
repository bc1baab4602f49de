"""How blocks of parameters lie in words of the stream: one after the other, and again from the start of a word after some.

In go the bits of a block and of a word, out come words and places. Narrow biases let more blocks share a word:
`channel_widths` says what a network needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict

from moehls.integer.operations import (
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerOperation,
    IntegerRoute,
    Raw,
    Scaling,
)

Form = Literal["row", "channel", "activated", "raw"]
"""whose parameters: of NORM, POOL and ROUTE; of LINEAR steps that requantise, that activate too, that only add a bias"""
_MOST_WORDS = 3
"""of a group: blocks of 3/8 of a word fill three"""


@dataclass(frozen=True)
class Packing:
    """Groups of `blocks` blocks of `block_bits`, each in `words` words of `word_bits` from the lowest bit on."""

    block_bits: int
    word_bits: int
    words: int
    blocks: int

    def count(self, blocks: int) -> int:
        """Words that hold `blocks` blocks."""
        return self.word_of(blocks - 1) + 1 if blocks else 0

    def word_of(self, block: int) -> int:
        """The word that `block` ends in; it may begin in the one before."""
        group, own = divmod(block, self.blocks)
        return group * self.words + ((own + 1) * self.block_bits - 1) // self.word_bits

    def begins(self, block: int) -> bool:
        """Whether the word that `block` ends in holds the end of no block before it."""
        return block == 0 or self.word_of(block) != self.word_of(block - 1)


def packing(block_bits: int, word_bits: int, most_words: int = _MOST_WORDS) -> Packing:
    """The group of at most `most_words` words with the most blocks a word; of equal ones the shortest."""
    words = max(range(1, most_words + 1), key=lambda n: (n * word_bits // block_bits / n, -n))
    return Packing(block_bits, word_bits, words, words * word_bits // block_bits)


class ChannelWidths(TypedDict):
    """Fields of `Capabilities`: bits of the parameters of LINEAR steps."""

    channel_bias_bits: int
    activated_bias_bits: int
    channel_shift_bits: int


def channel_widths(network: IntegerNetwork) -> ChannelWidths:
    """The fewest bits that hold the biases and shifts of all channels of `network`."""
    scalings = [pair for op in network.operations for pair in _scalings(op)]
    shifts = [int(s.shift.max()) for form, s in scalings if form != "raw"]
    shift_bits = max(1, *(shift.bit_length() for shift in shifts)) if shifts else 1
    bias = {
        form: _signed_bits(s.bias for own, s in scalings if own == form) for form in ("channel", "activated", "raw")
    }
    beside = network.precision.multiplier_bits + shift_bits  # a raw value's bias has their place too
    return ChannelWidths(
        channel_bias_bits=max(bias["channel"], bias["raw"] - beside),
        activated_bias_bits=bias["activated"],
        channel_shift_bits=shift_bits,
    )


def _scalings(op: IntegerOperation) -> Iterator[tuple[Form, Scaling]]:
    match op:
        case IntegerEmbed() | IntegerAttention():
            yield "channel", op.scaling
        case IntegerLinear(epilogue=Raw()):
            yield "raw", op.scaling
        case IntegerLinear(epilogue=GeluRequantise() | GatedRequantise()):
            yield "activated", op.scaling
        case IntegerLinear():
            yield "channel", op.scaling
        case IntegerRoute():
            yield from (("raw", Scaling(bias, bias, bias)) for bias in op.bias)
        case IntegerExperts():
            yield "activated", op.first_scaling
            yield "channel", op.second_scaling
            if op.up_scaling is not None:
                yield "channel", op.up_scaling


def _signed_bits(arrays: Iterable[IntArray]) -> int:
    """Of two's complement numbers that hold every value."""
    return 1 + max((max(int(a.max()), -int(a.min()) - 1).bit_length() for a in arrays if a.size), default=0)
