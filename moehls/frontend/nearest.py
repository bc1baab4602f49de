"""Words for refusals: what a node reads, and the nearest form that is supported there."""

from __future__ import annotations

from moehls.frontend.values import (
    Affine,
    Dispatched,
    FeedForward,
    Gathered,
    Hidden,
    Mixture,
    Normalised,
    Patches,
    Permuted,
    Pixels,
    Placed,
    Pointwise,
    Routed,
    Scores,
    Statistic,
    Sum,
    Updated,
    Value,
)

GENERAL = "see docs/frontend.md for the forms that are read"
ROUTING = (
    "route with a softmax or sigmoids and top-k, and sum the chosen experts' outputs times their gate weights: a loop over "
    "all experts with a mask is read in any way of writing it"
)
_MLP = "an MLP is linear, GELU, SiLU or ReLU, linear; or down(activation(gate(x)) * up(x))"
_NEAREST: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Scores,), "attention is softmax(scale · q·kᵀ)·v, head by head: export plain multi-head attention"),
    (
        (Routed, Gathered, Dispatched, Permuted, Placed, Updated, Mixture),
        ROUTING,
    ),
    (
        (FeedForward, Hidden, Pointwise),
        _MLP,
    ),
    (
        (Pixels, Patches),
        "cut the patches by one Conv with stride = kernel, add positions, begin the blocks with a norm",
    ),
    (
        (Normalised, Affine, Sum, Statistic),
        "tokens keep their order between norms, linears, attention over all tokens and residual adds: export a plain ViT, "
        "without windows, shifts, pooling or convolutions between the blocks",
    ),
)
"""What the nearest supported form is, by what a node reads; the first that fits."""

_KINDS: dict[str, str] = {
    "Constant": "a constant",
    "PerTask": "a table by task",
    "Pixels": "image pixels",
    "Patches": "embedded patches",
    "Affine": "tokens",
    "Pointwise": "a function of tokens",
    "Hidden": "GELU outputs",
    "FeedForward": "MLP or expert outputs",
    "Mixture": "a sum of experts",
    "Shared": "the output of a shared expert",
    "Sum": "tokens",
    "Normalised": "normalised tokens",
    "Beside": "token matrices side by side",
    "Statistic": "a statistic of tokens",
    "Scores": "attention scores",
    "Routed": "routing values",
    "Gathered": "weights gathered by expert",
    "Dispatched": "tokens dispatched to an expert",
    "Permuted": "tokens sorted by expert",
    "Placed": "outputs of experts at some tokens",
    "Updated": "a sum of experts at some tokens",
    "Noise": "random noise",
    "Quantised": "quantised integers",
    "Unknown": "an unread value",
}


def nearest(inputs: list[Value]) -> str:
    """What to write in place of a node that no form has."""
    if any(isinstance(value, Dispatched) and isinstance(value.rows, (Affine, Pointwise, Hidden)) for value in inputs):
        return f"{_MLP}, also of an expert on its own tokens; {GENERAL}"
    near = (text for kinds, text in _NEAREST if any(isinstance(value, kinds) for value in inputs))
    return f"{text}; {GENERAL}" if (text := next(near, "")) else GENERAL


def describe(value: Value) -> str:
    return _KINDS[type(value).__name__]
