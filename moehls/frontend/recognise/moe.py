"""onnxruntime's MoE operator: router logits, softmax, top-k, and two-layer experts, in one node. Its "gelu" is the tanh form.

SiLU and ReLU are read too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.gates import Gate, gate_weights
from moehls.frontend.recognise.layer_norm import token_rows
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.recognise.routing import source_of
from moehls.frontend.values import Constant, ExpertTerm, Mixture, Value
from moehls.network.operations import ActivationForm, FloatArray, GateNormalisation

_REMEDY = "use two-layer experts: inputs 0 to 5, activation_type gelu, silu or relu, softmax before top-k"
_FORMS: dict[str, ActivationForm] = {"gelu": "tanh", "silu": "silu", "relu": "relu"}


def read_moe(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    rows, logits = token_rows(context, inputs[0]), as_affine(context, inputs[1])
    if rows is None or logits is None:
        return None
    if any(node.inputs[place] is not None for place in range(6, len(inputs))):
        raise UnsupportedError("experts with a third matrix (SwiGLU)", _REMEDY)
    activation = str(attribute(node, "activation_type", "relu"))
    if activation not in _FORMS or attribute(node, "use_sparse_mixer", 0):
        raise UnsupportedError(f"experts with activation {activation} or a sparse mixer", _REMEDY)
    first, second = _weight(node, inputs, 2), _weight(node, inputs, 4)
    if first is None or second is None:
        return None
    experts, hidden, channels = first.shape
    k = int(attribute(node, "k", 1))
    fits = second.shape == (experts, channels, hidden) and channels == rows.layout.features
    if not fits or logits.layout.shape != (rows.layout.tokens, experts) or not 1 <= k <= experts:
        raise UnsupportedError(f"{k} of {experts} experts {list(first.shape)} and {list(second.shape)}", _REMEDY)
    first_bias = _weight(node, inputs, 3, (experts, hidden))
    second_bias = _weight(node, inputs, 5, (experts, channels))
    if first_bias is None or second_bias is None:
        return None
    given = node.inputs[1]
    source = source_of(context, logits, given.name or "" if given is not None else "")
    order: GateNormalisation = "chosen" if attribute(node, "normalize_routing_weights", 0) else "all"
    gates = np.concatenate([gate_weights(sample.reshape(-1, experts), Gate(k, order)) for sample in source.samples])
    terms = tuple(ExpertTerm(first[e], first_bias[e], second[e], second_bias[e], gates[:, e]) for e in range(experts))
    return Mixture(rows.layout, rows.base, _FORMS[activation], terms, source)


def _weight(node: ir.Node, inputs: list[Value], place: int, absent: tuple[int, ...] | None = None) -> FloatArray | None:
    """A constant weight; zeros of shape `absent` where the optional input is not there."""
    if place >= len(inputs) or node.inputs[place] is None:
        return None if absent is None else np.zeros(absent, np.float32)
    value = inputs[place]
    return value.array.astype(np.float32) if isinstance(value, Constant) else None


RULES: Rules = (("com.microsoft::MoE", read_moe),)
