"""Registers written without a condition, where nobody sees the difference."""

from __future__ import annotations

from moehls.rtl.graph import Node
from moehls.rtl.ir import Process, RegisterWrite


def free_writes(process: Process) -> None:
    """A loop's counters are written in its last iteration too, so that the end of the loop does not decide over their enables.

    Nobody sees it where only the loop reads the register, and whoever enters the loop writes it first.
    """
    readers: dict[str, set[int]] = {}
    for step in process.steps:
        for name in _registers(process.step_roots(step.index)):
            readers.setdefault(name, set()).add(step.index)
    for w in process.writes:
        again = next((c for c, target in process.steps[w.step].successors if target == w.step), None)
        if again is w.predicate and readers.get(w.register) == {w.step} and _entered(process, w):
            w.predicate = process.graph.const(1, 1)


def _entered(process: Process, write: RegisterWrite) -> bool:
    """Whether every other step that leads to the loop writes the register when it goes there."""
    for step in process.steps:
        into = next((c for c, target in step.successors if target == write.step), None)
        if step.index == write.step or into is None:
            continue
        if not any(
            w.step == step.index and w.register == write.register and (w.predicate is into or w.predicate.op == "const")
            for w in process.writes
        ):
            return False
    return True


def _registers(roots: list[Node]) -> set[str]:
    seen: set[int] = set()
    found: set[str] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node.id not in seen:
            seen.add(node.id)
            todo.extend(node.args)
            if node.op == "reg":
                found.add(str(node.aux))
    return found
