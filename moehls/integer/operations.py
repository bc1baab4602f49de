"""Operations of the integer network. What each computes is written in `docs/numbers.md`, section 3.

Weights are int8 or int16 arrays, every other array is int64. Values are named as in the float network; a residual value
is updated in place by the machine, so each residual value is read by at most one later residual update.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm, GateNormalisation, Priority, Score
from moehls.network.processing import Step

IntArray = npt.NDArray[np.int64]
WeightArray = npt.NDArray[np.int8] | npt.NDArray[np.int16]
RealArray = npt.NDArray[np.float64]
HIDDEN = -(1 << 15)
"""entry of a score bias"""
TensorKind = Literal["residual", "fine", "operand", "raw", "routing"]


@dataclass(frozen=True)
class Scaling:
    """Requantisation parameters, one an output channel (the last axis): `requantise(acc; bias, multiplier, shift)`."""

    bias: IntArray
    multiplier: IntArray
    shift: IntArray


@dataclass(frozen=True)
class Requantise:
    """Epilogue: saturate to a signed operand."""


@dataclass(frozen=True)
class GeluRequantise:
    """Epilogue: activation, then `usat(rs((gelu + offset) · multiplier, shift), AB)`, an unsigned operand."""

    multiplier: IntArray
    """[out] (Linear) or [experts, hidden] (Experts), 0 … 255"""
    shift: int
    offset: int
    """delta_fraction fraction bits"""
    form: int = 0
    """which of the network's activations"""


@dataclass(frozen=True)
class GatedRequantise:
    """Epilogue: activation times the operand `up`, then `sat(rs(activation · (up · multiplier), shift), AB)`, signed."""

    up: str
    multiplier: IntArray
    """[out], 0 … 255"""
    shift: int
    form: int = 0
    """which of the network's activations"""


@dataclass(frozen=True)
class AddResidual:
    """Epilogue: add to the residual value `residual`."""

    residual: str


@dataclass(frozen=True)
class Widen:
    """Epilogue: saturate to a residual value of its own."""


@dataclass(frozen=True)
class Raw:
    """Epilogue: accumulator plus bias."""


Epilogue = Requantise | GeluRequantise | GatedRequantise | AddResidual | Widen | Raw


def magnitudes(weight: WeightArray) -> IntArray:
    """`[…, out]`: `Σ|w|` over the inputs of each output, for `weight` `[…, out, in]` symmetric as integers are."""
    total: IntArray = np.abs(weight).sum(axis=-1, dtype=np.int64)
    return total


@dataclass(frozen=True)
class IntegerEmbed:
    name: str
    input: str
    output: str
    weight: WeightArray
    """[channels, pixels a patch]"""
    scaling: Scaling
    initial: IntArray
    """[tokens, channels], residual scale"""
    prefix: int

    @cached_property
    def magnitudes(self) -> IntArray:
        """`[channels]`: `Σ|w|` of each output, which bounds its sum."""
        return magnitudes(self.weight)


@dataclass(frozen=True)
class IntegerConstant:
    """A residual value of its own that no image changes."""

    name: str
    output: str
    rows: IntArray
    """[rows, channels]"""


@dataclass(frozen=True)
class IntegerNorm:
    """LayerNorm, or RMSNorm where not `centred`, of the tokens `start … stop-1`; writes a fine value and its narrowed operand.

    Rows outside the range are not computed; the outputs have `stop - start` rows.
    """

    name: str
    input: str
    fine: str
    operand: str
    start: int
    stop: int
    scaling: Scaling
    """multiplier holds the signed gain"""
    epsilon: int
    centred: bool = True
    plain: bool = False
    """whether the residual is not normalised, only scaled"""
    heads: int = 1
    """parts of the channels that are normalised by themselves; `scaling` is of one"""


@dataclass(frozen=True)
class IntegerPool:
    """The sum of the rows `start … stop-1`, requantised: of a residual to a residual, of a fine value to an operand."""

    name: str
    input: str
    output: str
    of_fine: bool
    """whether the input is a fine value"""
    start: int
    stop: int
    scaling: Scaling


@dataclass(frozen=True)
class IntegerLinear:
    name: str
    input: str
    output: str
    weight: WeightArray
    """[out, in]"""
    scaling: Scaling
    """unused multiplier 1 and shift 0 with Raw"""
    epilogue: Epilogue

    @cached_property
    def magnitudes(self) -> IntArray:
        """`[out]`: `Σ|w|` of each output, which bounds its sum."""
        return magnitudes(self.weight)


@dataclass(frozen=True)
class ScoreBias:
    """What is added to the sums of scores: `entries · 2^shift`; an entry of `HIDDEN` hides the key from the query."""

    entries: npt.NDArray[np.int16]
    """[heads, queries, keys]"""
    shift: IntArray
    """[heads], 0 … 31"""


@dataclass(frozen=True)
class IntegerAttention:
    name: str
    query: str
    key: str
    value: str
    output: str
    heads: int
    score_multiplier: IntArray
    """[heads]"""
    score_shift: IntArray
    """[heads]"""
    scaling: Scaling
    bias: ScoreBias | None = None


@dataclass(frozen=True)
class IntegerRoute:
    name: str
    input: str
    """a fine value"""
    output: str
    weight: WeightArray
    """[tasks, experts, channels]"""
    bias: IntArray
    """[tasks, experts]"""
    multiplier: IntArray
    """[tasks]"""
    shift: IntArray
    """[tasks]"""
    k: int
    normalisation: GateNormalisation
    threshold: int = 0
    """gate_fraction fraction bits; 0 for none"""
    renormalise: bool = False
    """whether the gates above the threshold are divided by their sum"""
    capacity: int = 0
    """tokens an expert takes at most; 0 for no limit"""
    priority: Priority = "token"
    score: Score = "softmax"
    group: int = 0
    """experts of a group; 0 where there are no groups"""
    kept_groups: int = 0
    """groups a token chooses its experts from"""
    pairs: bool = False
    """whether groups are chosen by the sum of their two largest ranks"""
    selection: IntArray | None = None
    """[tasks, experts], units of 1/65535, added to the sigmoids by which experts are ranked; None where logits rank them"""
    room: bool = False
    """whether the gates of the choices that find places are divided by their sum"""


@dataclass(frozen=True)
class IntegerExperts:
    name: str
    input: str
    routing: str
    residual: str
    output: str
    first_weight: WeightArray
    """[experts, hidden, channels]"""
    first_scaling: Scaling
    """[experts, hidden]"""
    gelu: GeluRequantise
    """multiplier and shift of gated experts too; their offset is 0"""
    second_weight: WeightArray
    """[experts, channels, hidden]"""
    second_scaling: Scaling
    """[experts, channels]"""
    up_weight: WeightArray | None = None
    """[experts, hidden, channels] of gated experts"""
    up_scaling: Scaling | None = None
    """[experts, hidden]"""
    weigh_inputs: bool = False
    """whether gates multiply what an expert reads, in place of what it gives"""

    @cached_property
    def magnitudes(self) -> tuple[IntArray, IntArray, IntArray | None]:
        """`[experts, out]`: `Σ|w|` of each output of the first, second and up matrices."""
        up = None if self.up_weight is None else magnitudes(self.up_weight)
        return magnitudes(self.first_weight), magnitudes(self.second_weight), up


IntegerOperation = (
    IntegerEmbed
    | IntegerConstant
    | IntegerNorm
    | IntegerPool
    | IntegerLinear
    | IntegerAttention
    | IntegerRoute
    | IntegerExperts
)


@dataclass(frozen=True)
class Format:
    """What the integers of a value mean: `real = (q - offset) · scale`, a channel. Not for the machine."""

    kind: TensorKind
    bits: int
    signed: bool
    scale: RealArray
    """[channels]"""
    offset: RealArray
    """[channels]"""


@dataclass(frozen=True)
class IntegerInput:
    """The image input; pixels are quantised a channel (`docs/numbers.md`, section 2)."""

    name: str
    shape: tuple[int, int, int]
    """[channels, height, width]"""
    patch: tuple[int, int]
    scale: RealArray
    offset: RealArray
    given: tuple[int, ...] = ()
    """of a sample as the graph takes it, where that is no image"""
    type: str = "float32"
    """of the graph's input"""
    steps: tuple[Step, ...] = ()
    """what the host makes an image of a sample with"""


@dataclass(frozen=True)
class IntegerOutput:
    """A value that the machine gives out: an output of the graph, or a further part of one, which the host adds to it."""

    name: str
    value: str
    shape: tuple[int, ...]
    part_of: str = ""
    """name of the output that this is a further part of"""
    steps: tuple[Step, ...] = ()
    """what the host makes the output of `[tokens, channels]` with; of further parts none"""


@dataclass(frozen=True)
class IntegerNetwork:
    """The whole specification of the numbers of one model."""

    name: str
    precision: Precision
    input: IntegerInput
    tokens: int
    operations: tuple[IntegerOperation, ...]
    formats: dict[str, Format]
    outputs: tuple[IntegerOutput, ...]
    tasks: int
    task_input: str | None
    activations: tuple[ActivationForm, ...]
    """the forms its activations have, at least one; epilogues say which by number"""
