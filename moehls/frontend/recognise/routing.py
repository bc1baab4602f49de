"""Routers: everything computed from the logits alone is evaluated on sampled logits, whatever nodes it is written in.

The samples travel through softmax, top-k, slices, one-hots, scatters, masks and renormalisation;
`moehls.frontend.gates` then decides from the values what gate they are.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.activations import is_sigmoid
from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.gates import below_bias, distinct, sample_logits
from moehls.frontend.layout import Array, LayoutError
from moehls.frontend.recognise.structure import new_shape
from moehls.frontend.values import Affine, Constant, Gathered, Pointwise, Routed, RouteSource, Unknown, Value
from moehls.network.operations import FloatArray

_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ThresholdedRelu"}
_PASSING = {"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"}
_LARGEST = 1 << 22
"""Elements a sampled tensor may have."""


def source_of(
    context: Context, value: Affine, name: str, of_sigmoids: bool = False, bias: FloatArray | None = None
) -> RouteSource:
    """The router whose logits `value` holds; `of_sigmoids` where their sigmoids, perhaps with a bias, rank the experts.

    Raises:
        LayoutError: it is not one row of logits a token.
    """
    known = context.sources.get(id(value))
    if known is None:
        if not all(len({axis.token for axis in dim}) == 1 for dim in value.layout.dims if dim):
            raise LayoutError("softmax or top-k runs over tokens and channels together")
        samples = sample_logits(value.layout.shape, context.seed + len(context.sources))
        if of_sigmoids:
            samples = tuple(map(distinct, samples))
        if bias is not None:
            samples += below_bias(samples, bias, context.seed + len(context.sources))
        known = (value, RouteSource(value, name, samples))
        context.sources[id(value)] = known
    return known[1]


def read_logits(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The node that first reads the logits."""
    if not isinstance(inputs[0], Affine) or not all(isinstance(value, Constant) for value in inputs[1:]):
        return None
    if inputs[0].base.stand_in:
        return [Unknown() for _ in node.outputs]
    given = node.inputs[0]
    source = source_of(context, inputs[0], given.name or "" if given is not None else "")
    return sampled(context, node, [Routed(source, source.samples), *inputs[1:]])


def read_largest(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The largest logit, as a softmax that is written out subtracts it."""
    after = [use.node for output in node.outputs for use in output.uses()]
    following = [use.node.op_type for one in after for output in one.outputs for use in output.uses()]
    if [one.op_type for one in after] != ["Sub"] or following != ["Exp"]:
        return None
    return read_logits(context, node, inputs)


def read_scores(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The node that first reads scores of an expert each, as sigmoids of the logits are."""
    scores = inputs[0]
    if not isinstance(scores, Pointwise) or not all(isinstance(value, Constant) for value in inputs[1:]):
        return None
    if scores.operand.base.stand_in:
        return [Unknown() for _ in node.outputs]
    if not is_sigmoid(scores.function):
        raise UnsupportedError(
            "experts are chosen by scores that are neither a softmax nor the sigmoids of the logits",
            "train the gate with softmax, before or after top-k, or with sigmoids",
        )
    source = source_of(context, scores.operand, _logits_name(node.inputs[0]), of_sigmoids=True)
    samples = tuple(_scores(scores, sample) for sample in source.samples)
    return sampled(context, node, [Routed(source, samples), *inputs[1:]])


def read_biased_scores(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Sigmoids with a number an expert added, by which experts are chosen but not weighed (DeepSeek-V3)."""
    for scores, bias in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(scores, Pointwise) or not isinstance(bias, Constant) or not is_sigmoid(scores.function):
            continue
        experts = scores.layout.shape[-1]
        if bias.array.size != experts or bias.array.shape[-1:] != (experts,) or experts < 2:
            continue
        given = node.inputs[0 if scores is inputs[0] else 1]
        added = bias.array.reshape(-1).astype(np.float32)
        source = source_of(context, scores.operand, _logits_name(given), of_sigmoids=True, bias=added)
        source.added.append(added)
        samples = tuple(_scores(scores, sample) for sample in source.samples)
        return sampled(context, node, [Routed(source, samples) if value is scores else value for value in inputs])
    return None


def _logits_name(scores: ir.Value | None) -> str:
    """The tensor that the elementwise node behind `scores` reads; quantisation and casts between them count for nothing."""
    before = None if scores is None else scores.producer()
    while before is not None and before.op_type in _PASSING and before.inputs[0] is not None:
        before = before.inputs[0].producer()
    logits = None if before is None else before.inputs[0]
    return "" if logits is None else logits.name or ""


def _scores(value: Pointwise, sample: Array) -> Array:
    return value.function(sample.astype(np.float64)).astype(np.float32)


def _concrete(value: Value, source: RouteSource, sample: int) -> Array | None:
    if isinstance(value, Constant):
        return value.array
    if isinstance(value, Routed):
        return value.samples[sample]
    if isinstance(value, Affine) and value is source.logits:
        return source.samples[sample]
    if isinstance(value, Pointwise) and value.operand is source.logits:
        return _scores(value, source.samples[sample])
    if isinstance(value, Gathered):
        if prod(value.shape) > _LARGEST:
            raise LayoutError("weights gathered by expert are changed before they meet the tokens")
        return np.asarray(value.table[value.index.samples[sample]])
    return None


def sampled(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Evaluate a node of constants and routed values on every sample; None where other values take part."""
    sources = {id(source): source for value in inputs if (source := _source(value)) is not None}
    if len(sources) != 1:
        if len(sources) > 1:
            raise UnsupportedError(
                "values of two routers, or of two heads, are combined",
                "let each expert layer use one router; give out what each head computes and combine it behind the graph",
            )
        return None
    (source,) = sources.values()
    if node.op_type in _COMPARISONS:
        scalars = [value.array for value in inputs if isinstance(value, Constant) and value.array.size == 1]
        source.compared.extend(float(array.reshape(-1)[0]) for array in scalars if array.dtype.kind == "f")
        source.compared.extend([float(attribute(node, "alpha", 1.0))] if node.op_type == "ThresholdedRelu" else [])
    if node.op_type == "TopK" and isinstance(inputs[0], Routed) and _over_tokens(node, inputs[0]):
        source.ordered.append(node.name or "")
    evaluate = NodeEvaluator(node, context.opset)
    results: list[list[Array]] = []
    for number in range(len(source.samples)):
        arrays = [_concrete(value, source, number) for value in inputs]
        if any(array is None for array in arrays):
            return None
        given = [name is not None for name in node.inputs] or [True] * len(arrays)
        try:
            results.append(evaluate([array if there else None for array, there in zip(arrays, given, strict=True)]))
        except UnsupportedError as error:
            raise _baked_in(inputs) or error from error
    if node.op_type == "Shape" and all(np.array_equal(result[0], results[0][0]) for result in results):
        return Constant(results[0][0])
    outputs = [Routed(source, tuple(result[i] for result in results)) for i in range(len(results[0]))]
    if any(sample.size > _LARGEST for output in outputs for sample in output.samples):
        raise LayoutError("routing makes a very large tensor")
    return outputs


def _over_tokens(node: ir.Node, value: Routed) -> bool:
    """Whether a TopK puts all tokens in the order of real numbers."""
    size = value.shape[attribute(node, "axis", -1)] if value.shape else 0
    return value.samples[0].dtype.kind == "f" and size == value.source.logits.layout.tokens


def _baked_in(inputs: list[Value]) -> UnsupportedError | None:
    """What is wrong where shapes that depend on the routing do not fit the graph: it holds the choices of one input."""
    if all(len({sample.shape for sample in value.samples}) == 1 for value in inputs if isinstance(value, Routed)):
        return None
    return UnsupportedError(
        "its shapes fit the routing of some inputs only: a loop in Python over the experts that are hit holds those of the "
        "example input",
        "loop over all experts, or compute them side by side (transformers: experts_implementation='batched_mm')",
        ends=True,
    )


def _source(value: Value) -> RouteSource | None:
    if isinstance(value, Routed):
        return value.source
    return value.index.source if isinstance(value, Gathered) else None


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Weights gathered by expert index: Gather, or GatherND with one index."""
    table, index = inputs[0], inputs[1]
    if not isinstance(table, Constant) or not isinstance(index, Routed) or table.array.ndim < 2:
        return None
    if table.array.dtype != np.float32:
        return None
    if node.op_type == "GatherND":
        if index.shape[-1] != 1 or attribute(node, "batch_dims", 0):
            return None
        index = replace(index, samples=tuple(sample[..., 0] for sample in index.samples))
    elif attribute(node, "axis", 0) != 0:
        return None
    experts = table.array.shape[0]
    wrapped = tuple(np.where(sample < 0, sample + experts, sample) for sample in index.samples)
    if any(sample.min(initial=0) < 0 or sample.max(initial=0) >= experts for sample in wrapped):
        raise LayoutError(f"the router chooses among more experts than the {experts} it gathers weights of")
    return Gathered(table.array, replace(index, samples=wrapped))


def read_gathered(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Reshape and Transpose of gathered weights, index dimensions and weight dimensions apart."""
    value = inputs[0]
    if not isinstance(value, Gathered):
        return None
    index, rank = value.index, len(value.index.shape)
    if node.op_type == "Transpose":
        order = tuple(attribute(node, "perm", ()))
        if order[:rank] != tuple(range(rank)):
            return None
        return replace(value, table=value.table.transpose(0, *(place - rank + 1 for place in order[rank:])))
    shape = new_shape(node, value.shape, inputs, context.opset)
    for cut in range(len(shape) + 1):
        if prod(shape[:cut]) == prod(index.shape) and prod(shape[cut:]) == prod(value.table.shape[1:]):
            samples = tuple(sample.reshape(shape[:cut]) for sample in index.samples)
            return Gathered(value.table.reshape(len(value.table), *shape[cut:]), replace(index, samples=samples))
    return None


def read_einsum(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """An Einsum of routed values alone, of whatever form."""
    return sampled(context, node, inputs) if all(isinstance(value, (Routed, Constant)) for value in inputs) else None


RULES: Rules = (
    ("Einsum", read_einsum),
    ("Gather GatherND", read_gather),
    ("Reshape Flatten Squeeze Unsqueeze Transpose", read_gathered),
    ("Softmax TopK LogSoftmax ArgMax", read_logits),
    ("ReduceMax", read_largest),
    ("TopK", read_scores),
    ("Add", read_biased_scores),
)
