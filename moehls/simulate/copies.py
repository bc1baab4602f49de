"""Values that differ by lane and are not of a lane themselves: copied to an array before the loop that reads them.

In go the operands of all lanes at one place of a statement; out comes what they have in common (`Parts`), so that the parts that
lanes take of the same words (eight bits of a byte, say) are copied together and told apart within the loop.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

WIDEST = 32
"""bits that are copied together"""
_BITS = re.compile(r"\[(\d+)(?::(\d+))?\]")

Operands = tuple[tuple[str, str], ...]
"""name and text by lane"""
Words = tuple[tuple[str, ...], tuple[int, ...]]
"""names by lane, and how much higher each lane's bits are than those of lane 0"""
Windows = dict[Words, list[tuple[int, int]]]
"""first and last bit, in lane 0, of what is copied together; ascending"""


@dataclass(frozen=True)
class Parts:
    """The same part of a word of each lane, or the part with its sign.

    Attributes:
        words: of which words.
        low, high: its bits in lane 0.
        text: of lane 0, with a zero character for the name.
    """

    words: Words
    low: int
    high: int
    text: str

    def within(self, array: str, low: int, high: int) -> str:
        """The part of `array`, which holds bits `low` to `high` of the words."""

        def bits(found: re.Match[str]) -> str:
            last, first = int(found[1]) - low, int(found[2] or found[1]) - low
            if (last, first) == (high - low, 0):
                return ""
            return f"[{last}]" if found[2] is None else f"[{last}:{first}]"

        return _BITS.sub(bits, self.text).replace("\0", array)


def _part(name: str, text: str) -> tuple[int, int, str] | None:
    """First and last bit of an operand, and its text without name and place; None: it is not a part of a word."""
    bits = [int(number) for found in _BITS.findall(text) for number in found if number]
    form = re.sub(rf"\b{name}\b", "\0", text)
    if not bits or form.count("\0") != len(_BITS.findall(text)):
        return None
    low = min(bits)
    return low, max(bits), re.sub(r"(?<=[\[:])\d+(?=[\]:])", lambda found: str(int(found[0]) - low), form)


def parts_of(operands: Operands) -> Parts | None:
    """What operands of all lanes have in common; None: they are not parts of words, or not the same parts."""
    found = [part for name, text in operands if (part := _part(name, text)) is not None]
    if len(found) != len(operands) or len({form for _, _, form in found}) != 1:
        return None
    (name, text), (low, high, _) = operands[0], found[0]
    words = tuple(name for name, _ in operands), tuple(first - low for first, _, _ in found)
    return Parts(words, low, high, re.sub(rf"\b{name}\b", "\0", text))


def windows_of(parts: Iterable[Parts]) -> Windows:
    """What to copy together."""
    ends: dict[Words, set[tuple[int, int]]] = defaultdict(set)
    for part in parts:
        ends[part.words].add((part.low, part.high))
    found: Windows = {}
    for words, bits in ends.items():
        windows = found[words] = []
        for low, high in sorted(bits):
            if windows and max(high, windows[-1][1]) - windows[-1][0] < WIDEST:
                windows[-1] = windows[-1][0], max(high, windows[-1][1])
            else:
                windows.append((low, high))
    return found
