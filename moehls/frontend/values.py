"""What the front end knows of a tensor while it reads the graph in order.

Each kind says exactly what the tensor holds; nothing is a guess. Kinds are lazy: a matrix product stays an `Affine`
map until something that is not affine reads it, so the order in which an exporter splits, scales or reshapes does not
matter. Array conventions are those of `moehls.frontend.layout`: `*axes` first, then trailing axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from moehls.frontend.layout import Array, Layout
from moehls.network.operations import ActivationForm, FloatArray, Lattice

IntArray = npt.NDArray[np.int64]
RealFunction = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Constant:
    array: Array


@dataclass(frozen=True, eq=False)
class PerTask:
    """A tensor that depends on the task only: `table[task]`."""

    table: Array


@dataclass(frozen=True)
class TaskIndex:
    """The integer task input itself, scalar or one element."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """Random values of `shape`; meaningful only when multiplied by zero."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pixels:
    """Image elements: `scale · image.flat[index] + offset`, in double precision."""

    index: IntArray
    image: tuple[int, int, int]
    scale: Array
    offset: Array
    patch_norm: tuple[float, float, float] | None = None
    """where each patch is normalised first, so that the elements are those of the normalised patches: epsilon, and scale and
    offset of the pixels before that"""
    integer: bool = False
    """whether the tensor is of an integer type"""


@dataclass(frozen=True, eq=False)
class Patches:
    """An affine map of the image's patches, with leading constant tokens and positions; becomes `Embed`."""

    layout: Layout
    patch: tuple[int, int, int]
    weight: FloatArray
    """[*axes, pixels a patch]"""
    bias: FloatArray
    """[*axes], the patch tokens only"""
    prefix: FloatArray
    """[*axes], rows of the leading tokens, zero elsewhere"""
    position: FloatArray
    """[*axes], all tokens"""
    leading: int


@dataclass(frozen=True)
class Base:
    """A token matrix of the network: its value name and shape."""

    name: str
    tokens: int
    channels: int
    stand_in: bool = False
    """in place of what a refused node writes, so that the rest of the graph can be read"""


@dataclass(frozen=True, eq=False)
class RouteSource:
    """Router logits and the random logits on which everything computed from them is evaluated."""

    logits: Affine
    onnx_name: str
    samples: tuple[FloatArray, ...]
    """each of the logits' tensor shape"""
    compared: list[float] = field(default_factory=list)
    """constants that values computed from the logits are compared with"""
    added: list[FloatArray] = field(default_factory=list)
    """`[experts]`: constants that are added to the sigmoids of the logits"""
    ordered: list[str] = field(default_factory=list)
    """nodes that put the tokens in the order of values computed from the logits"""


@dataclass(frozen=True, eq=False)
class Selector:
    """Which variant of a component a token uses: the task, or sampled expert indices `[*axes]` from a router."""

    source: RouteSource | Literal["task"]
    samples: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class Weighing:
    """Gate weights, from a router, that multiply the token itself before a map of it."""

    source: RouteSource
    samples: tuple[Array, ...]
    """[*axes] each"""


@dataclass(frozen=True, eq=False)
class Grid:
    """The integers that the graph gives a tensor between a `QuantizeLinear` and a `DequantizeLinear`: `(q - zero) · scale`."""

    scale: Array
    """[*axes] of the value it belongs to"""
    zero: Array
    """[*axes]"""
    bits: int
    signed: bool


@dataclass(frozen=True, eq=False)
class Affine:
    """`factor · (weight · base[token] + bias)` for each element; `weight` is None for `factor · base[token, index]`.

    With a `weighing` it is that of the weighed token.
    """

    layout: Layout
    base: Base
    weight: FloatArray | None
    """[*axes, variants, channels of base]"""
    index: IntArray | None
    """[*axes]"""
    bias: FloatArray
    """[*axes, variants]"""
    factor: float = 1.0
    selector: Selector | None = None
    grid: Grid | None = None
    """where the graph quantises this value; whatever changes the value drops it"""
    weighing: Weighing | None = None


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function of each element of an affine map, not yet known to be a supported activation."""

    operand: Affine
    function: RealFunction

    @property
    def layout(self) -> Layout:
        return self.operand.layout


@dataclass(frozen=True, eq=False)
class Hidden:
    """`activation(pre)`, times `up` in a gated MLP; both are maps of one base in one layout."""

    pre: Affine
    form: ActivationForm
    up: Affine | None = None
    grid: Grid | None = None

    @property
    def layout(self) -> Layout:
        return self.pre.layout


@dataclass(frozen=True, eq=False)
class FeedForward:
    """`coefficient · (second · hidden + second_bias)` for each element.

    `hidden = activation(first · base[token] + first_bias)`, times `up · base[token] + up_bias` in a gated MLP.
    """

    layout: Layout
    base: Base
    form: ActivationForm
    first: FloatArray
    """[*axes, variants, hidden, channels of base]"""
    first_bias: FloatArray
    """[*axes, variants, hidden]"""
    second: FloatArray
    """[*axes, variants, hidden]"""
    second_bias: FloatArray
    """[*axes, variants]"""
    selector: Selector | None = None
    coefficient: tuple[Array, ...] | None = None
    """[*axes] for each sample of the routing"""
    source: RouteSource | None = None
    up: FloatArray | None = None
    """[*axes, variants, hidden, channels of base]"""
    up_bias: FloatArray | None = None
    """[*axes, variants, hidden]"""
    grid: Lattice | None = None
    """of the hidden layer, `[hidden]`; of the product in a gated MLP"""
    up_grid: Lattice | None = None
    """of the other branch of a gated MLP, `[hidden]`"""
    weighing: Weighing | None = None
    """of the tokens it reads"""


@dataclass(frozen=True, eq=False)
class ExpertTerm:
    """One feed-forward network and the coefficient each token gives it."""

    first: FloatArray
    """[hidden, channels]"""
    first_bias: FloatArray
    second: FloatArray
    """[out, hidden]"""
    second_bias: FloatArray
    coefficient: Array
    """[samples · tokens]"""
    up: FloatArray | None = None
    """[hidden, channels]"""
    up_bias: FloatArray | None = None
    grid: Lattice | None = None
    """of the hidden layer"""
    up_grid: Lattice | None = None
    inputs: Array | None = None
    """[samples · tokens], what multiplies the tokens that it reads"""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A sum of expert terms over one input."""

    layout: Layout
    base: Base
    form: ActivationForm
    terms: tuple[ExpertTerm, ...]
    source: RouteSource


@dataclass(frozen=True, eq=False)
class Shared:
    """`sigmoid(gate) · network` for each token; the gate has one element a token."""

    layout: Layout
    network: FeedForward
    gate: Affine


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of two token matrices of one layout."""

    left: Tokens
    right: Tokens

    @property
    def layout(self) -> Layout:
        return self.left.layout


@dataclass(frozen=True, eq=False)
class Beside:
    """Channels of different token matrices side by side, in the last dimension; their other dimensions are the same."""

    parts: tuple[Affine, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [part.layout.shape for part in self.parts]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


@dataclass(frozen=True, eq=False)
class Normalised:
    """Layer normalisation of a token matrix over its channels, which lie in tensor order, or over those of each head."""

    layout: Layout
    base: Base
    epsilon: float
    weight: FloatArray
    """[channels of a head]"""
    bias: FloatArray
    centred: bool = True
    """False: root mean square normalisation"""
    grid: Lattice | None = None


@dataclass(frozen=True)
class Statistic:
    """A piece of a decomposed layer normalisation of the matrix `rows`; not of `x - mean` but of x without `centred`."""

    kind: Literal["mean", "centred", "square", "variance", "deviation", "inverse"]
    rows: Affine
    layout: Layout
    epsilon: float = 0.0
    centred: bool = True
    factor: float = 1.0
    """of a deviation: a length is that of the root mean square times the root of the number of channels"""


@dataclass(frozen=True, eq=False)
class Scores:
    """`scale · q kᵀ + bias`, one matrix a head, perhaps after softmax; dimensions `[…heads, queries, keys]`."""

    query: Affine
    key: Affine
    """dimensions `[…heads, keys, channels]`"""
    scale: float
    softmax: bool
    is_nan: bool = False
    bias: FloatArray | None = None
    """of the scores' shape: added to what is scaled; -inf hides a key from a query"""

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.query.layout.shape[:-1], self.key.layout.shape[-2])


@dataclass(frozen=True, eq=False)
class Routed:
    """A tensor computed from router logits alone, evaluated on the source's samples."""

    source: RouteSource
    samples: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.samples[0].shape


@dataclass(frozen=True, eq=False)
class Gathered:
    """`table[index]` along the first dimension, with expert indices from a router."""

    table: Array
    index: Routed

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.index.shape, *self.table.shape[1:])


@dataclass(frozen=True, eq=False)
class Dispatched:
    """Rows `tokens` of a per-token value, as an expert gets them; row m is `weight[m] · rows[tokens[m]]`.

    The number of rows differs from sample to sample, so that the tensor has no fixed shape.
    """

    rows: Affine | Pointwise | Hidden | FeedForward | Mixture
    """in the layout that the tensor would have with all tokens in the place of the rows, tokens before channels"""
    tokens: Routed
    """`[rows]` of each sample"""
    weight: tuple[Array, ...] | None = None
    """`[rows]` of each sample"""
    of: Mixture | None = None
    """the running sum that the rows are of"""
    slots: Slotted | None = None
    """where the rows are of a matrix that repeats every token for each of its slots"""


@dataclass(frozen=True, eq=False)
class Slotted:
    """Rows of a matrix of `count` rows a token, one after the other."""

    count: int
    rows: tuple[Array, ...]
    """`[rows]` of each sample: places in that matrix"""


@dataclass(frozen=True, eq=False)
class Placed:
    """Rows that experts have written into a matrix of `shape`, each row by one expert; some are not written yet."""

    shape: tuple[int, ...]
    parts: tuple[Dispatched, ...]


@dataclass(frozen=True, eq=False)
class Permuted:
    """All rows of `rows` in another order: row r is `rows[places[r]]`, `places` a permutation that routing decides."""

    rows: Affine | Pointwise | Hidden | FeedForward
    """dimensions `[tokens · slots, …]`"""
    places: Routed


@dataclass(frozen=True, eq=False)
class Updated:
    """Rows `rows.tokens` of the sum `total` with the weighed `rows` added, as they are written back into `total`."""

    total: Mixture
    rows: Dispatched


@dataclass(frozen=True, eq=False)
class Quantised:
    """What a `QuantizeLinear` writes of `value`."""

    value: Value
    scale: Array
    """one, or one an entry of dimension `axis`"""
    zero: Array
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.value) or ()


@dataclass(frozen=True)
class Unknown:
    """The output of a node that was refused, or that reads one."""

    shape: tuple[int, ...] | None = None


Tokens = Affine | Pointwise | Hidden | FeedForward | Mixture | Shared | Sum | Normalised | Patches
Evaluated = Constant | PerTask | TaskIndex | Noise | Routed | Gathered
Value = (
    Evaluated
    | Pixels
    | Tokens
    | Statistic
    | Scores
    | Dispatched
    | Permuted
    | Placed
    | Updated
    | Quantised
    | Beside
    | Unknown
)


def shape_of(value: Value) -> tuple[int, ...] | None:
    """The tensor shape of a value, None where it is not known."""
    if isinstance(value, Constant):
        return value.array.shape
    if isinstance(value, PerTask):
        return value.table.shape[1:]
    if isinstance(value, Pixels):
        return value.index.shape
    if isinstance(value, (Dispatched, Updated)):
        return None
    if isinstance(value, Permuted):
        return value.rows.layout.shape
    if isinstance(value, (TaskIndex, Noise, Scores, Routed, Gathered, Placed, Quantised, Unknown, Beside)):
        return value.shape
    return value.layout.shape
