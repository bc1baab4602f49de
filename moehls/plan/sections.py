"""The sections of a program that prefetches experts: what lies between one choice of experts and the next.

In go steps in order, a SECTION step before the experts of each choice; out come the same steps with the words of what
follows in each SECTION, and with their headers grouped so that every expert, and what comes after the last one, begins a
group of them. What a section reads in the accelerator follows from that and from who was chosen (`docs/accelerator.md`,
section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moehls.plan.instruction import Flag, Kind
from moehls.plan.payload import header_words, headers_together
from moehls.plan.shape import Shape
from moehls.plan.steps import Step, headers_begun

_LOW = 32
"""bits of the dense part's words; an expert's payload lies above them"""


def in_sections(steps: Sequence[Step], shape: Shape) -> tuple[Step, ...]:
    """`steps` with flag LAST and the fields of SECTION set."""
    marked = [_marked(step) if _ends_a_word(steps, n) else step for n, step in enumerate(steps)]
    headers = [header_words(shape) if n else 0 for n in headers_begun(marked, headers_together(shape))]
    for n, step in enumerate(marked):
        if step.instruction.kind == Kind.SECTION:
            marked[n] = _with_words(marked, headers, n)
    return tuple(marked)


def _ends_a_word(steps: Sequence[Step], n: int) -> bool:
    """The next step is of another expert, or what follows is read by choice."""
    if n + 1 == len(steps) or steps[n].instruction.kind == Kind.SECTION:
        return True
    return steps[n].instruction.expert != steps[n + 1].instruction.expert


def _marked(step: Step) -> Step:
    return replace(step, instruction=replace(step.instruction, flags=step.instruction.flags | Flag.LAST))


def _with_words(steps: Sequence[Step], headers: Sequence[int], at: int) -> Step:
    """The SECTION step at `at`: words of an expert's payload, and of the dense part up to the next section.

    `headers` are the words of headers that each step begins.
    """
    section = steps[at].instruction
    end = at + 1
    while steps[end].instruction.expert == 0:
        end += 1
    first = range(at + 1, end)
    payload = sum(steps[n].instruction.payload_words for n in first)
    begin = at + 1 + section.n0 * len(first)
    kinds = [step.instruction.kind for step in steps]
    end = kinds.index(Kind.SECTION, begin) if Kind.SECTION in kinds[begin:] else len(steps) - 1
    dense = sum(headers[n] + steps[n].instruction.payload_words for n in range(begin, end + 1))
    return replace(steps[at], instruction=replace(section, epsilon=payload << _LOW | dense))
