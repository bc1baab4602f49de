"""The same RTL so that a simulator passes over what stands still.

In goes the text of a module that moehls generated; out comes it with every wire that only one conditional write reads computed
within that write: `if (valid_3) begin … x_s4 <= x; end` then computes `x` only where there is a token in stage 3. Nothing else
changes: a wire has no state, so where it is computed makes no difference to what is written. Verilator computes every wire
every cycle otherwise, and most of a large machine waits most of the time. The write becomes a task, as Verilator keeps a task's
variables as locals of its C++, where those of a block are members that every cycle stores.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

_WIRE = re.compile(r"^    wire (\[\d+:0\] )?(\w+);$")
_ASSIGN = re.compile(r"^    assign (\w+) = (.+);$")
_WRITE = re.compile(r"^(        if \(.+\)) (\w+ <= .+;)$")
_REGION = re.compile(r"^        if \(.+\) begin$")
_NAME = re.compile(r"[A-Za-z_]\w*")
_OUTSIDE = -1


@dataclass
class _Module:
    """Wires with their expressions, and who reads each name: a region by the number of its first line, or `_OUTSIDE`."""

    lines: list[str]
    widths: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    readers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """wire -> wires whose expressions have it"""


def gated(text: str) -> str:
    """The module with its wires moved into the conditional writes that alone read them."""
    module = _read(text.splitlines())
    homes: dict[str, int] = {}
    order = _ordered(module)
    for name in reversed(order):  # users before what they use
        found = set(module.readers[name]) | {homes[user] for user in module.users[name]}
        homes[name] = found.pop() if len(found) == 1 else _OUTSIDE
    inside: dict[int, list[str]] = defaultdict(list)
    for name in order:
        if homes[name] != _OUTSIDE:
            inside[homes[name]].append(name)
    moved = {name for names in inside.values() for name in names}
    return "\n".join(_written(module, inside, moved)) + "\n"


def _read(lines: list[str]) -> _Module:
    module = _Module(lines)
    for line in lines:
        if found := _WIRE.match(line):
            module.widths[found[2]] = found[1] or ""
    for line in lines:
        if (found := _ASSIGN.match(line)) and found[1] in module.widths:
            module.values[found[1]] = found[2]
    region = _OUTSIDE
    for number, line in enumerate(lines):
        if _WIRE.match(line) or line.lstrip().startswith("//"):
            continue
        if (found := _ASSIGN.match(line)) and found[1] in module.values:
            for name in set(_NAME.findall(found[2])):
                module.users[name].add(found[1])
            continue
        if region == _OUTSIDE and _REGION.match(line):
            region = number
            _use(module, line, _OUTSIDE)
        elif region != _OUTSIDE and line == "        end":
            region = _OUTSIDE
        elif region == _OUTSIDE and (found := _WRITE.match(line)):
            _use(module, found[1], _OUTSIDE)
            _use(module, found[2], number)
        else:
            _use(module, line, region)
    return module


def _use(module: _Module, text: str, reader: int) -> None:
    for name in _NAME.findall(text):
        module.readers[name].add(reader)


def _ordered(module: _Module) -> list[str]:
    """Wires, each behind those that it uses."""
    found: dict[str, None] = {}
    todo = [(name, False) for name in reversed(module.values)]
    while todo:
        name, ready = todo.pop()
        if ready:
            found[name] = None
        elif name not in found:
            todo.append((name, True))
            used = _NAME.findall(module.values[name])
            todo += [(other, False) for other in used if other in module.values and other not in found]
    return list(found)


def _written(module: _Module, inside: dict[int, list[str]], moved: set[str]) -> list[str]:
    """The module, every region with wires of its own as a task."""
    lines: list[str] = []
    task: list[str] = []
    tasks: list[str] = []
    for number, line in enumerate(module.lines):
        if ((found := _WIRE.match(line)) and found[2] in moved) or (
            (found := _ASSIGN.match(line)) and found[1] in moved
        ):
            continue
        if task and line != "        end":
            task.append(line[4:])
            continue
        if task:
            tasks += [*task, "    endtask"]
            task = []
        names = inside.get(number, [])
        if not names:
            lines += [*tasks, line] if line == "endmodule" else [line]
            continue
        begin = [f"    task automatic region_{number};"]
        begin += [f"        logic {module.widths[name]}{name};" for name in names]
        begin += [f"        {name} = {module.values[name]};" for name in names]
        if found := _WRITE.match(line):
            lines.append(f"{found[1]} region_{number}();")
            tasks += [*begin, f"        {found[2]}", "    endtask"]
        else:
            lines += [line, f"            region_{number}();"]
            task = begin
    return lines
