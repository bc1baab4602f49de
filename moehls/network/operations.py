"""Operations of the float network.

A network is a sequence of operations in static single assignment form over token matrices `[tokens, channels]`. Each
operation names the values it reads and the one it writes. Arrays are float32; linear weights are `[out, in]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from moehls.network.processing import Step

FloatArray = npt.NDArray[np.float32]
ActivationForm = Literal["exact", "tanh", "quick", "silu", "relu"]
"""GELU exact, by tanh, by `x · sigmoid(1.702 x)`; SiLU `x · sigmoid(x)`; ReLU"""
Score = Literal["softmax", "sigmoid"]
GateNormalisation = Literal["all", "chosen", "none"]
"""what the scores are divided by: their sum over all experts, over the chosen ones, or nothing (sigmoids only)"""
Priority = Literal["token", "choice"]


@dataclass(frozen=True)
class Embed:
    """Image to tokens: non-overlapping patches, leading constant tokens, positions.

    `output[n] = prefix[n] + position[n]` for the leading tokens, `patch[n - len(prefix)] · weightᵀ + bias +
    position[n]` after.
    """

    name: str
    input: str
    output: str
    weight: FloatArray
    """[channels, image channels, patch height, patch width]"""
    bias: FloatArray
    """[channels]"""
    prefix: FloatArray
    """[leading tokens, channels]: class, distillation or register tokens; may have no rows"""
    position: FloatArray
    """[tokens, channels]; zeros where the graph has none"""


@dataclass(frozen=True)
class Constant:
    """Rows that no image changes, as the slots of soft MoE are. Of `input`, a value before it, only the samples are counted."""

    name: str
    input: str
    output: str
    rows: FloatArray
    """[rows, channels]"""


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the channels of each token; without `centred` the mean is not taken off (RMSNorm).

    With several `heads` each normalises its own part of the channels, with the same weight and bias (qk-norm).
    """

    name: str
    input: str
    output: str
    weight: FloatArray
    bias: FloatArray
    epsilon: float
    centred: bool = True
    heads: int = 1


@dataclass(frozen=True)
class Linear:
    """`output = input · weightᵀ + bias`."""

    name: str
    input: str
    output: str
    weight: FloatArray
    """[out, in]"""
    bias: FloatArray
    """[out]"""


@dataclass(frozen=True)
class Activation:
    name: str
    input: str
    output: str
    form: ActivationForm


@dataclass(frozen=True)
class Multiply:
    """`output = left · right`, element by element: the gate of a gated MLP (SwiGLU, GEGLU) and its other branch."""

    name: str
    left: str
    right: str
    output: str


@dataclass(frozen=True)
class Add:
    """Residual add of two token matrices of one shape."""

    name: str
    left: str
    right: str
    output: str


@dataclass(frozen=True)
class Attention:
    """Multi-head attention: `softmax(scale · q kᵀ + bias) v`, heads side by side in the channels.

    A bias of -inf hides a key from a query; every query sees one key at least.
    """

    name: str
    query: str
    key: str
    value: str
    output: str
    heads: int
    scale: float
    bias: FloatArray | None = None
    """[heads, queries, keys], or one for all heads [1, queries, keys]"""


@dataclass(frozen=True)
class Route:
    """Router: logits, scores and top-k. Its output is a routing (expert indices and gate weights a token).

    `logits = input · weight[task]ᵀ + bias[task]`; the gate weights are the softmax over all experts (`all`), or over
    the chosen ones (`chosen`, also softmax, top-k, renormalise), or sigmoids of the logits, as they are (`none`) or divided by
    their sum; equal logits go to the lower expert index. With a `selection` bias those are chosen whose sigmoid plus bias is
    largest; the gate weights are those of the sigmoids alone.

    A choice may be left out: where its gate weight is not above `threshold`, or where its expert has as many tokens as its
    `capacity` already (those above the threshold count). Its index is then written `~expert` and its gate weight is 0.
    """

    name: str
    input: str
    output: str
    weight: FloatArray
    """[tasks, experts, channels]"""
    bias: FloatArray
    """[tasks, experts]"""
    k: int
    normalisation: GateNormalisation
    threshold: float = 0.0
    renormalise: bool = False
    """whether the gate weights above the threshold are divided by their sum"""
    capacity: int = 0
    """tokens an expert takes at most; 0 for no limit"""
    priority: Priority = "token"
    """who comes first: all choices of the first token, or the first choices of all tokens"""
    score: Score = "softmax"
    group: int = 0
    """experts of a group, which lie side by side; 0 where there are no groups"""
    kept_groups: int = 0
    """groups a token chooses its experts from, those with the largest logits or sigmoids with bias"""
    pairs: bool = False
    """whether it is the sum of the two largest of a group that counts, not the largest; needs a `selection`"""
    selection: FloatArray | None = None
    """[tasks, experts], added to the sigmoids for the choice; zeros where they are chosen by, but none is preferred"""
    room: bool = False
    """whether the gate weights of the choices that find room are divided by their sum (two choices, first ones first)"""


@dataclass(frozen=True)
class Experts:
    """`output[n] = Σ_chosen gate[n, e] · (second[e] · h[e] + second_bias[e])`.

    `h[e] = activation(first[e] · input[n] + first_bias[e])`, multiplied by `up[e] · input[n] + up_bias[e]` where the experts
    are gated. A router may have more columns than there are experts: the columns behind them have none.
    """

    name: str
    input: str
    routing: str
    output: str
    first_weight: FloatArray
    """[experts, hidden, channels]"""
    first_bias: FloatArray
    """[experts, hidden]"""
    second_weight: FloatArray
    """[experts, channels, hidden]"""
    second_bias: FloatArray
    """[experts, channels]"""
    form: ActivationForm
    up_weight: FloatArray | None = None
    """[experts, hidden, channels]"""
    up_bias: FloatArray | None = None
    """[experts, hidden]"""
    weigh_inputs: bool = False
    """whether the gate weights multiply what an expert reads, in place of what it gives"""


@dataclass(frozen=True)
class SelectTokens:
    """Rows `start … stop-1` of the token matrix (the class token before a head)."""

    name: str
    input: str
    output: str
    start: int
    stop: int


@dataclass(frozen=True)
class MeanTokens:
    """One row: the mean of the rows `start … stop-1` of the token matrix (mean pooling before a head)."""

    name: str
    input: str
    output: str
    start: int
    stop: int


Operation = (
    Embed
    | Constant
    | LayerNorm
    | Linear
    | Activation
    | Multiply
    | Add
    | Attention
    | Route
    | Experts
    | SelectTokens
    | MeanTokens
)


@dataclass(frozen=True)
class Lattice:
    """The integers that a quantised graph gives a value: `real = (q - zero) · scale`, q saturated to `bits` bits."""

    scale: npt.NDArray[np.float64]
    """[channels], of the image [1] or [image channels]"""
    zero: npt.NDArray[np.float64]
    """as scale, whole numbers"""
    bits: int
    signed: bool


def of_experts(name: str, role: str) -> str:
    """Where the lattices of a network hold that of the `hidden` layers or the `up` linears of the experts `name`.

    Scale and zero are `[experts · hidden]` there.
    """
    return f"{name}.{role}"


@dataclass(frozen=True)
class NetworkInput:
    """The image input of the ONNX graph, and what the host does with a sample of it before the network sees an image."""

    name: str
    shape: tuple[int, int, int]
    """of an image: `[channels, height, width]`"""
    given: tuple[int, ...] = ()
    """of a sample as the graph takes it, without a batch dimension; () where it is an image"""
    type: str = "float32"
    """of the graph's input"""
    channels_last: bool = False
    """whether a sample is `[height, width, channels]`"""
    steps: tuple[Step, ...] = ()
    """from a sample to an image, in single precision at the end"""
    mean: tuple[float, ...] = ()
    """[channels], of the pixels the graph expects, where it says so by subtracting it; for random images"""
    deviation: tuple[float, ...] = ()
    """[channels], likewise, by dividing by it"""


@dataclass(frozen=True)
class NetworkOutput:
    """An output of the ONNX graph: its name, the value `[tokens, channels]` that the host makes it of, its shape in the graph."""

    name: str
    value: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    """from the value to the output; without any the value has the output's shape"""


@dataclass(frozen=True)
class Network:
    """A recognised model. `task_input` names the integer task input, `None` where the graph has one task."""

    name: str
    input: NetworkInput
    operations: tuple[Operation, ...]
    outputs: tuple[NetworkOutput, ...]
    tasks: int
    task_input: str | None
    lattices: Mapping[str, Lattice] = field(default_factory=dict)
    """of the image and of values by name, where the graph quantises them (`QuantizeLinear`, `DequantizeLinear`)"""
