"""The integer network against the float model, sample by sample.

In: a sample and the reference's execution of it. Out: `Fidelity`, sums over all samples. The float model runs twice:
free, and with the integer model's expert choices forced, so that one flipped near-tie does not hide the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls import reference
from moehls.integer.host import dequantise_output, parts_of
from moehls.integer.operations import IntegerNetwork, IntegerNorm, IntegerRoute
from moehls.network import interpreter
from moehls.network.operations import FloatArray, Network
from moehls.simulate.fidelity import Array, Error, Share, agreement, correct


@dataclass(frozen=True)
class StageFidelity:
    """SQNR of one value with routing forced."""

    name: str
    kind: str
    sqnr_db: float | None


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one output for one task, of the integers and of the float model."""

    output: str
    task: int
    integer: float
    float_: float
    labelled: int


@dataclass(frozen=True)
class ExpertUse:
    """How many tokens chose each expert of one layer, by task."""

    name: str
    counts: tuple[tuple[int, ...], ...]
    """[tasks][experts]"""
    tokens: tuple[int, ...]
    """[tasks], tokens of all samples"""


@dataclass(frozen=True)
class Fidelity:
    """The reference against the float model, over all samples. `None`: not defined (no noise, no experts)."""

    samples: int
    sqnr_db: float | None
    sqnr_forced_db: float | None
    cosine: float | None
    routing_agreement: float | None
    classes_kept: float | None
    """share of the integers that the outputs hold, such as classes, that are the float model's"""
    accuracy: tuple[Accuracy, ...]
    stages: tuple[StageFidelity, ...]
    routing: tuple[ExpertUse, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json` and the summary."""
        return {
            "samples": self.samples,
            "sqnr_db": self.sqnr_db,
            "sqnr_forced_db": self.sqnr_forced_db,
            "cosine": self.cosine,
            "routing_agreement": self.routing_agreement,
            "classes_kept": self.classes_kept,
            "accuracy": [
                {"output": a.output, "task": a.task, "integer": a.integer, "float": a.float_, "labelled": a.labelled}
                for a in self.accuracy
            ],
            "stages": [{"name": s.name, "kind": s.kind, "sqnr_db": s.sqnr_db} for s in self.stages],
            "routing": [
                {"name": use.name, "counts": [list(row) for row in use.counts], "tokens": list(use.tokens)}
                for use in self.routing
            ],
        }


@dataclass
class FidelityMeter:
    """Takes samples one by one; `result` gives the figures of all that were added."""

    network: Network
    integer: IntegerNetwork
    samples: int = 0
    free: Error = field(default_factory=Error)
    forced: Error = field(default_factory=Error)
    kept: Share = field(default_factory=Share)
    classes: Share = field(default_factory=Share)
    stages: dict[str, Error] = field(default_factory=dict)
    scores: dict[tuple[str, int], tuple[Share, Share]] = field(default_factory=dict)
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    tokens: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(
        self,
        image: FloatArray,
        task: int,
        execution: reference.Execution,
        labels: Mapping[str, npt.NDArray[np.int64]],
    ) -> None:
        """One sample: its image, task, integer execution and the labels of its outputs."""
        self.samples += 1
        routes = [op for op in self.integer.operations if isinstance(op, IntegerRoute)]
        choices = {op.name: execution.routing(op.output).chosen for op in routes}
        free = interpreter.run(self.network, image[None], task, keep=True)
        forced = free
        if routes:
            routing = {name: chosen[None] for name, chosen in choices.items()}
            forced = interpreter.run(self.network, image[None], task, routing, keep=True)
        for op in routes:
            value = free[op.output]
            assert isinstance(value, interpreter.Routing)
            self.kept.add(*agreement(value.indices[0], choices[op.name]))
            self._count(op, choices[op.name], task)
        self._outputs(free, forced, execution, task, labels)
        self._stages(forced, execution)

    def result(self) -> Fidelity:
        """The figures of every sample so far."""
        return Fidelity(
            samples=self.samples,
            sqnr_db=self.free.sqnr_db,
            sqnr_forced_db=self.forced.sqnr_db,
            cosine=self.free.cosine,
            routing_agreement=self.kept.value,
            classes_kept=self.classes.value,
            accuracy=tuple(
                Accuracy(output, task, ours.value or 0.0, theirs.value or 0.0, ours.total)
                for (output, task), (ours, theirs) in sorted(self.scores.items())
                if ours.total
            ),
            stages=tuple(
                StageFidelity(name, self.integer.formats[name].kind, error.sqnr_db)
                for name, error in self.stages.items()
            ),
            routing=tuple(
                ExpertUse(
                    name, tuple(tuple(int(n) for n in row) for row in rows), tuple(int(n) for n in self.tokens[name])
                )
                for name, rows in self.counts.items()
            ),
        )

    def _count(self, op: IntegerRoute, chosen: npt.NDArray[np.int64], task: int) -> None:
        experts = op.weight.shape[1]
        counts = self.counts.setdefault(op.name, np.zeros((self.network.tasks, experts), np.int64))
        counts[task] += np.bincount(chosen[chosen >= 0], minlength=experts)
        self.tokens.setdefault(op.name, np.zeros(self.network.tasks, np.int64))[task] += len(chosen)

    def _outputs(
        self,
        free: interpreter.Values,
        forced: interpreter.Values,
        execution: reference.Execution,
        task: int,
        labels: Mapping[str, npt.NDArray[np.int64]],
    ) -> None:
        free_outputs, forced_outputs = (interpreter.outputs(self.network, values) for values in (free, forced))
        for output in (output for output in self.integer.outputs if not output.part_of):
            tensors = [execution.array(part.value) for part in parts_of(self.integer, output.name)]
            ours = dequantise_output(self.integer, output.name, *tensors)
            self._figures(free_outputs[output.name], forced_outputs[output.name], ours)
            if output.name in labels:
                mine, theirs = self.scores.setdefault((output.name, task), (Share(), Share()))
                mine.add(*correct(ours, labels[output.name]))
                theirs.add(*correct(free_outputs[output.name], labels[output.name]))

    def _figures(self, free: Array, forced: Array, ours: Array) -> None:
        if np.issubdtype(ours.dtype, np.integer):
            self.classes.add(int((free == ours).sum()), ours.size)
        else:
            self.free.add(free, ours)
            self.forced.add(forced, ours)

    def _stages(self, forced: interpreter.Values, execution: reference.Execution) -> None:
        for name, exact in self._counterparts(forced).items():
            meaning = self.integer.formats[name]
            real = (execution.array(name).astype(np.float64) - meaning.offset) * meaning.scale
            if real.shape == exact.shape:
                self.stages.setdefault(name, Error()).add(exact, real)

    def _counterparts(self, values: interpreter.Values) -> dict[str, FloatArray]:
        """The float value `[tokens, channels]` that each integer value stands for, in the order of computation."""
        read = {op.input for op in self.integer.operations if isinstance(op, IntegerRoute)}
        read |= {output.value for output in self.integer.outputs}
        found: dict[str, FloatArray] = {}
        for op in self.integer.operations:
            if isinstance(op, IntegerRoute):
                continue
            names: tuple[str, ...] = (op.operand,) if isinstance(op, IntegerNorm) else (op.output,)
            if isinstance(op, IntegerNorm) and op.fine in read:
                names = (op.operand, op.fine)
            value = values.get(names[0])
            if isinstance(value, np.ndarray):
                found |= dict.fromkeys(names, value[0])
        return {name: value for name, value in found.items() if name in self.integer.formats}
