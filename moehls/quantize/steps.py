"""The steps of the accelerator that float operations become, before any number is chosen: one integer operation each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moehls.network.operations import (
    Activation,
    ActivationForm,
    Attention,
    Constant,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    MeanTokens,
    Operation,
    Route,
    SelectTokens,
)

Role = Literal["query", "key", "value"]


@dataclass(frozen=True)
class ConstantStep:
    """Rows that become a residual value `output` beside the stream, in the integers of `operand` where `attention` reads them."""

    constant: Constant
    output: str
    sums: tuple[str, ...] = ()
    """float values of the sums that replace it"""
    attention: Attention | None = None
    operand: str = ""
    stream: bool = False
    """whether the stream begins with them"""


@dataclass(frozen=True)
class OperandStep:
    """The operand `output` that `attention` reads: rows of the residual value `source`, normalised or only scaled."""

    attention: Attention
    output: str
    source: str
    norm: LayerNorm | None = None
    constant: bool = False


@dataclass(frozen=True)
class NormStep:
    """LayerNorm of the rows `start … stop-1` of a residual value; `stop` None for all of them."""

    norm: LayerNorm
    source: str
    start: int
    stop: int | None
    output: str
    """the float value whose rows the integer operation computes"""


@dataclass(frozen=True)
class FineStep:
    """The residual value itself as a fine value, for the routers that read it."""

    source: str


@dataclass(frozen=True)
class RowsStep:
    """Rows of a residual value as an operand, for a head without a norm."""

    selection: SelectTokens


@dataclass(frozen=True)
class PoolStep:
    """The mean of tokens of a residual value or of a LayerNorm's output."""

    mean: MeanTokens
    of_norm: bool


@dataclass(frozen=True)
class AttentionInputStep:
    """A linear that gives the queries, keys or values of `attention`."""

    linear: Linear
    attention: Attention


@dataclass(frozen=True)
class WideStep:
    """A linear that norms read."""

    linear: Linear


@dataclass(frozen=True)
class StreamStep:
    """A linear behind a norm from which the residual stream goes on, added to constant rows where `residual` names them.

    It reads the norm's fine value.
    """

    linear: Linear
    output: str
    residual: str = ""


@dataclass(frozen=True)
class GeluStep:
    linear: Linear
    gelu: Activation


@dataclass(frozen=True)
class UpStep:
    """A linear that the activation of a gated MLP is multiplied with."""

    linear: Linear


@dataclass(frozen=True)
class GatedStep:
    """A linear, its activation, and the product with the value `up`; the product is called `output`."""

    linear: Linear
    activation: Activation
    up: str
    output: str


@dataclass(frozen=True)
class ResidualStep:
    """A linear added to the residual value `residual`; the sum is called `output`."""

    linear: Linear
    residual: str
    output: str


@dataclass(frozen=True)
class OutputStep:
    """A linear that is an output of the network."""

    linear: Linear


@dataclass(frozen=True)
class ExpertsStep:
    experts: Experts
    residual: str
    output: str


LinearStep = AttentionInputStep | WideStep | StreamStep | GeluStep | UpStep | GatedStep | ResidualStep | OutputStep
Step = (
    Embed
    | ConstantStep
    | OperandStep
    | NormStep
    | FineStep
    | RowsStep
    | PoolStep
    | LinearStep
    | Attention
    | Route
    | ExpertsStep
)


@dataclass(frozen=True)
class Structure:
    """The steps of a network, in its order, and what the quantiser asks about its values."""

    steps: tuple[Step, ...]
    residuals: frozenset[str]
    """names of the residual values"""
    readers: dict[str, tuple[Operation, ...]]
    """operations that read a value, in order"""
    activations: tuple[ActivationForm, ...]
    sums: dict[str, tuple[str, ...]]
    """the linears whose sum an output value is, by the name of the value"""
    sources: dict[str, str] = field(default_factory=dict)
    """the float value that an operand made for an attention holds"""
    tied: frozenset[str] = frozenset()
    """operands whose heads have the same grid, as one norm makes them"""


SUPPORTED = {
    "Constant": "the slots and sums of soft MoE",
    "Attention": "queries, keys and values by linears; with one head a LayerNorm of the stream or a constant too",
    "LayerNorm": "a LayerNorm of the residual stream, which may go on from it; of a linear's output, or of its heads, where "
    "attentions read it",
    "Linear": "linears that read a LayerNorm, an attention or an activation, and whose output goes to one attention, "
    "activation, product or residual add or is an output of the network",
    "Activation": "an activation after a linear",
    "Multiply": "the product of an activation and a linear of the same tokens, as in SwiGLU",
    "Add": "residual adds",
    "Route": "a router on a LayerNorm over all tokens, or on the residual stream, that feeds experts",
    "Experts": "experts on a LayerNorm over all tokens, added to the residual stream, or on the slots of soft MoE",
    "MeanTokens": "a mean of tokens of the residual stream before a LayerNorm, or of a LayerNorm's output",
    "SelectTokens": "a selection of rows beside the LayerNorm before a head, or before a head",
}
"""what the accelerator has a place for, by the class of an operation"""
