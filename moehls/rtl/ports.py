"""Ports and text of a SystemVerilog module, and the names of a stream's and a memory bank's signals."""

from __future__ import annotations

from dataclasses import dataclass, field

from moehls.rtl.delay import is_distributed, read_latency
from moehls.rtl.ir import Memory, Process

HEADER = """// {name}: made by moehls from the C++ in ../src. Do not edit.
// A value travels whole where a later stage needs a part of it, and a process takes a part of its header or master:
// verilator lint_off UNUSEDSIGNAL
"""


@dataclass
class Port:
    """A port of a module: `width` 0 is a single wire."""

    direction: str
    name: str
    width: int = 0

    @property
    def declaration(self) -> str:
        return (
            f"{self.direction:6} wire {range_of(self.width)}{self.name}"
            if self.direction == "input"
            else (f"{self.direction} wire {range_of(self.width)}{self.name}")
        )


def range_of(width: int) -> str:
    return f"[{width - 1}:0] " if width else ""


def copies(loads: int) -> str:
    """The attribute by which synthesis copies what drives more loads than that."""
    return f"(* max_fanout = {loads} *) "


def bank_name(memory: str, bank: int, memory_shape: Memory) -> str:
    """The prefix of a bank's signals."""
    return f"{memory}_{bank}" if memory_shape.banks > 1 else memory


def port_prefix(port: str, process: Process) -> tuple[str, str]:
    """(`memory_bank`, "read" or "write") of a memory access's port."""
    name, bank, way = port.split(".")
    return bank_name(name, int(bank), process.memories[name]), way


def address_bits(memory: Memory) -> int:
    return max(1, (memory.depth - 1).bit_length())


@dataclass
class Body:
    """The text of a module in the making."""

    ports: list[Port] = field(default_factory=list)
    declarations: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        ports = ",\n".join(f"    {p.declaration}" for p in self.ports)
        inside = "\n".join(f"    {line}" if line else "" for line in [*self.declarations, "", *self.lines])
        return (
            f"{HEADER.format(name=name)}`default_nettype none\n\nmodule {name} (\n{ports}\n);\n{inside}\n"
            f"endmodule\n\n`default_nettype wire\n"
        )


def memory_width(process: Process, port: str) -> int:
    """Bits of data at a memory's port; 1 where nothing of it is used."""
    if port.endswith(".read"):
        return next((n.width for n in process.graph.nodes if n.op == "read" and n.aux == port), 1)
    return next((a.data.width for a in process.accesses if a.port == port and a.data is not None), 1)


def stream_signals(name: str, direction: str, width: int) -> list[Port]:
    """A stream's port, as its user has it."""
    into = direction == "in"
    return [
        Port("input" if into else "output", f"{name}_data", width),
        Port("input" if into else "output", f"{name}_valid"),
        Port("output" if into else "input", f"{name}_ready"),
    ]


def memory_signals(name: str, way: str, memory: Memory, width: int) -> list[Port]:
    """A memory bank's port, as its user has it."""
    address = Port("output", f"{name}_{way}_address", address_bits(memory))
    if way == "write":
        return [Port("output", f"{name}_write_enable"), address, Port("output", f"{name}_write_data", width)]
    return [
        Port("output", f"{name}_read_enable"),
        Port("output", f"{name}_read_advance"),
        address,
        Port("input", f"{name}_read_data", width),
    ]


def memory_instance(prefix: str, memory: Memory, width: int, ways: set[str]) -> list[str]:
    """An instance of the library's memory on the signals `prefix_…`."""
    style = {"uram": "ultra", "lutram": "distributed", "bram": "block"}.get(
        memory.storage, "distributed" if is_distributed(memory) else "block"
    )
    bits = address_bits(memory)
    read = "read" in ways
    write = "write" in ways
    connections = [
        ".clock(clock)",
        f".read_enable({f'{prefix}_read_enable' if read else chr(49) + chr(39) + 'b0'})",
        f".read_advance({f'{prefix}_read_advance' if read else chr(49) + chr(39) + 'b0'})",
        f".read_address({f'{prefix}_read_address' if read else f'{bits}{chr(39)}d0'})",
        f".read_data({f'{prefix}_read_data' if read else ''})",
        f".write_enable({f'{prefix}_write_enable' if write else chr(49) + chr(39) + 'b0'})",
        f".write_address({f'{prefix}_write_address' if write else f'{bits}{chr(39)}d0'})",
        f".write_data({f'{prefix}_write_data' if write else f'{width}{chr(39)}d0'})",
    ]
    parameters = f'#(.WIDTH({width}), .DEPTH({memory.depth}), .STYLE("{style}"), .LATENCY({read_latency(memory)}))'
    return [
        f"memory {parameters} {prefix}_memory (",
        *(f"    {c}," for c in connections[:-1]),
        f"    {connections[-1]}",
        ");",
        "",
    ]
