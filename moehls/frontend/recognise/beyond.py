"""Operators that the network has no operation for: refused by what they are, where no other rule reads them."""

from __future__ import annotations

import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, operator_of
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Mixture, Pixels, Routed, Value

_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearMatMul QLinearConv QGemm MatMulInteger ConvInteger "
        "com.microsoft::QAttention com.microsoft::MatMulNBits com.microsoft::QMoE com.microsoft::QGemm "
        "com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat com.microsoft::QLinearAdd",
        "an operator of integers, or a dynamic scale; only QuantizeLinear with DequantizeLinear and constant scales are read",
        "export the float model, or quantise statically in the QDQ format (quant_format=QuantFormat.QDQ)",
    ),
    (
        "HardSwish Elu Selu LeakyRelu Mish HardSigmoid",
        "an activation without a table",
        "train with nn.GELU, nn.SiLU or nn.ReLU",
    ),
    (
        "RotaryEmbedding com.microsoft::RotaryEmbedding com.microsoft::GroupQueryAttention",
        "rotary positions or grouped queries",
        "use learned positions added to the tokens and as many keys as queries",
    ),
    (
        "Conv",
        "a convolution of tokens or behind the patch embedding",
        "use a plain ViT: one convolution cuts the patches",
    ),
    (
        "BatchNormalization GroupNormalization InstanceNormalization",
        "not layer normalisation",
        "train with nn.LayerNorm",
    ),
    (
        "GlobalAveragePool AveragePool MaxPool ReduceMax Resize CumSum",
        "it mixes tokens otherwise than attention does",
        "take a head of the class token or of the tokens' mean",
    ),
    ("Loop Scan", "a loop in the graph", "export with constant shapes, so that loops are unrolled"),
)


def read_beyond(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    if not any(isinstance(value, (*TOKENS, Pixels)) for value in inputs):
        return None
    reason, remedy = next((why, what) for names, why, what in _REASONS if operator_of(node) in names.split())
    raise UnsupportedError(reason, remedy)


def read_weighed_sum(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """DeepSpeed's residual mixture: a softmax of two weighs an MLP and a sum of experts."""
    if not any(isinstance(value, Mixture) for value in inputs) or not any(
        isinstance(value, Routed) for value in inputs
    ):
        return None
    raise UnsupportedError(
        "a sum of experts is multiplied by weights of a second softmax or sigmoid, as DeepSpeed's residual mixture "
        "(use_residual) weighs it and an MLP",
        "add the MLP as a shared expert, plain or weighed by sigmoid(gate(x)), to the sum of experts as it is",
    )


RULES: Rules = (("Mul", read_weighed_sum), *((names, read_beyond) for names, _, _ in _REASONS))
