"""A process as steps of data flow: what they read and write, and the error for C++ outside the subset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from moehls.errors import MoehlsError
from moehls.rtl.graph import Graph, Node

SITE_BITS = 8
"""of the number of a call in its program"""


@dataclass
class Access:
    """One use of a port by a step: read or write of a stream ("sread", "swrite"), of a memory bank ("mread", "mwrite"), or a
    "call" of a process or region, whose `data` is the index of the call in `Process.calls`."""

    port: str
    kind: Literal["sread", "swrite", "mread", "mwrite", "call"]
    step: int
    predicate: Node
    address: Node | None = None
    data: Node | None = None
    arguments: tuple[Node, ...] = ()
    place: str = ""


@dataclass
class RegisterWrite:
    register: str
    step: int
    predicate: Node
    value: Node


@dataclass
class Step:
    """What lies between two cuts: `successors` are (predicate, step), where step -1 is the end."""

    index: int
    name: str
    place: str
    successors: list[tuple[Node, int]] = field(default_factory=list)
    stream_order: list[tuple[str, str]] = field(default_factory=list)
    """(port, kind) of its stream accesses in program order"""
    loop: bool = False
    """an innermost loop, asked to start a step a cycle"""


@dataclass(frozen=True)
class Memory:
    """A memory as a process or program sees it: banks of `depth` words of `width` bits."""

    name: str
    banks: int
    depth: int
    element_bytes: int
    width: int
    storage: str = ""


@dataclass(frozen=True)
class Rom:
    name: str
    width: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call of a program: the function, the names bound to its pointer parameters in their order, its scalars' widths."""

    function: str
    pointers: tuple[tuple[str, str], ...]
    """(formal, actual)"""
    scalars: tuple[tuple[str, int], ...]
    """(formal, width)"""


@dataclass
class Process:
    """A process or program, ready to be scheduled."""

    name: str
    function: str
    graph: Graph
    steps: list[Step]
    accesses: list[Access]
    writes: list[RegisterWrite]
    registers: dict[str, int]
    inputs: dict[str, int]
    streams: dict[str, tuple[str, int]]
    """lane of a stream parameter -> (direction "in" or "out", width)"""
    memories: dict[str, Memory]
    """memory parameters and the memories of its own"""
    own: set[str]
    """names of `memories` that live in it"""
    roms: dict[str, Rom]
    calls: list[Call] = field(default_factory=list)
    formals: dict[str, str] = field(default_factory=dict)
    """scalar parameter -> its name in `inputs`, where it is used"""
    objects: dict[str, str] = field(default_factory=dict)
    """name of a stream or memory here -> the parameter or variable it is"""
    shapes: dict[str, Any] = field(default_factory=dict)
    """of those parameters and variables (`pointers.Shape`)"""

    def port_base(self, port: str) -> tuple[str, int]:
        """The parameter or variable of a port, and its lane or bank."""
        if "." in port:
            name, bank, _ = port.split(".")
            return self.objects[name], int(bank)
        name, _, lane = port.rpartition("_")
        return (self.objects[port], 0) if port in self.objects else (self.objects[name], int(lane))

    def roots(self) -> list[Node]:
        """Every node something outside the graph uses."""
        found: list[Node] = []
        for access in self.accesses:
            found += [n for n in (access.predicate, access.address, access.data, *access.arguments) if n is not None]
        for write in self.writes:
            found += [write.predicate, write.value]
        found += [p for step in self.steps for p, _ in step.successors]
        return found

    def step_roots(self, step: int) -> list[Node]:
        """Of those the ones of a step."""
        found = [
            n
            for a in self.accesses
            if a.step == step
            for n in (a.predicate, a.address, a.data, *a.arguments)
            if n is not None
        ]
        found += [n for w in self.writes if w.step == step for n in (w.predicate, w.value)]
        return found + [p for p, _ in self.steps[step].successors]

    def replace(self, graph: Graph, swap: Callable[[Node], Node]) -> None:
        """Take over a rewritten graph."""
        self.graph = graph
        for a in self.accesses:
            a.predicate = swap(a.predicate)
            a.address = swap(a.address) if a.address else None
            a.data = swap(a.data) if a.data else None
            a.arguments = tuple(swap(n) for n in a.arguments)
        for w in self.writes:
            w.predicate, w.value = swap(w.predicate), swap(w.value)
        for step in self.steps:
            step.successors = [(swap(p), s) for p, s in step.successors]


def refuse(place: str, what: str, remedy: str) -> MoehlsError:
    """The error for C++ outside the subset."""
    return MoehlsError(f"{place or 'generated code'}: {what}; {remedy}")
