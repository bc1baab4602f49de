"""Steps of norms: what `moehls.plan.program` does for a Norm, of all tokens or of a block of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

from moehls.integer.operations import IntegerNorm
from moehls.plan.builder import Builder
from moehls.plan.instruction import Flag, Instruction, Kind, Target
from moehls.plan.splits import Block
from moehls.plan.steps import Access, Channels, Memory, Place, part_name

_TARGETS: dict[Memory, Target] = {"m0": Target.M0, "m1": Target.M1, "m2": Target.M2}


class NormSteps(Builder):
    """One method for the operation, the others for its parts."""

    def norm(self, op: IntegerNorm) -> None:
        x = self.current_residual(op, op.input)
        rows = op.stop - op.start
        memory, heads = self.roles.get(op.operand, ("m0", 1))
        if heads != x.channels.heads:
            self.refuse(op, f"an attention of {heads} heads reads it, and its input is not the output of a linear")
        if op.heads > 1 and (op.heads != heads or rows != x.rows):
            self.refuse(op, f"normalises {op.heads} heads of an attention of {heads}, or of some tokens only")
        fine_is_read = op.fine in self.last_use or op.fine in self.shown
        if fine_is_read and memory != "m0":
            self.refuse(op, "its output is read by an attention and by a router, or shown")
        if op.fine in self.blockwise:
            self.norms[op.fine] = op
            if op.operand in self.last_use:
                self.normalise(op, x, self.place_operand(memory, op.operand, rows, x.channels), fine_is_read=False)
            if op.fine in self.shown:
                for part, fine in self.fine_blocks(op.fine):
                    self.store(op.fine, "fine", fine, rows, part.first)
            return
        y = self.place_operand(memory, op.operand, rows, x.channels)
        fine = self.normalise(op, x, y, fine_is_read=fine_is_read)
        if fine_is_read:
            self.places[op.fine] = fine
            self.store(op.fine, "fine", fine)

    def fine_blocks(self, value: str) -> Iterator[tuple[Block, Place]]:
        """The fine value `value`, normalised a block of tokens at a time, each at the place of those before it."""
        op = self.norms[value]
        x, known = self.current_residual(op, op.input), self.places.get(op.operand)
        parts = self.blocks_in(op.stop - op.start)
        for part in parts:
            y = (
                self.place_operand("m0", op.operand, part.rows, x.channels)
                if known is None
                else part.of(known, self.shape)
            )
            yield part, self.normalise(op, x, y, fine_is_read=True, part=part)
            self.memory.release(op.fine)
            if known is None:
                self.memory.release(op.operand)
                del self.places[op.operand]

    def normalise(self, op: IntegerNorm, x: Place, y: Place, *, fine_is_read: bool, part: Block | None = None) -> Place:
        """A NORM of all rows or of those of `part`; the place of the fine values, where they are read."""
        tt = self.shape.token_parallel
        rows, row = (op.stop - op.start, None) if part is None else (part.rows, part.first)
        start = op.start + (row or 0)
        planes = 16 // self.shape.precision.activation_bits
        base = self.memory.take("m2", op.fine, self.groups(rows) * planes * x.stride) if fine_is_read else 0
        fine = Place("m2", base, planes * x.stride, rows, x.channels, planes=planes)
        # heads lie side by side as token groups do: a row of each lane, head and group
        own = Channels(x.channels.count // op.heads, x.channels.heads // op.heads)
        blocks = self.blocks(own)
        instruction = Instruction(
            Kind.NORM,
            _TARGETS[y.memory],
            flags=(Flag.PLANES if fine_is_read else 0)
            | (0 if op.centred else Flag.RMS)
            | (Flag.PLAIN if op.plain else 0),
            n2=blocks,
            rows=rows if op.heads == 1 else self.groups(rows) * tt * op.heads,
            channels=own.count,
            epsilon=op.epsilon,
            w_base=start % tt,
            w_s0=x.base // blocks + start // tt,
            x_base=base,
            y_base=y.base,
        )
        own_row = None if op.operand in self.last_use else row  # of an operand that is whole the name is its own
        written = Access(part_name(op.operand, own_row), y)
        writes = (written, Access(part_name(op.fine, row), fine)) if fine_is_read else (written,)
        parameters = self.parameters(own, op.scaling)
        self.step(op.name, op.name, instruction, parameters, reads=(Access(op.input, x),), writes=writes)
        if part is None or own_row is not None:
            self.stage(op.operand, "operand", y, row=own_row)
        if fine_is_read:
            self.stage(op.fine, "fine", fine, row=row)
        return fine
