"""Linear: matrix product and one of six epilogues."""

from __future__ import annotations

from moehls.integer.arithmetic import gelu, requantise, rs, sat, usat
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerLinear,
    Raw,
    Requantise,
    Scaling,
    Widen,
)
from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm
from moehls.reference.product import product


def linear(
    operation: IntegerLinear, x: IntArray, other: IntArray | None, precision: Precision, form: ActivationForm
) -> IntArray:
    """Operand `[tokens, in]` to `[tokens, out]`.

    `other` `[tokens, out]` is what AddResidual adds to and what GatedRequantise multiplies with.
    """
    accumulator = product(x, operation.weight)
    scaling = operation.scaling
    match operation.epilogue:
        case Raw():
            return accumulator + scaling.bias
        case GeluRequantise() as epilogue:
            return gelu_requantise(accumulator, scaling, epilogue, precision, form)
        case GatedRequantise() as epilogue:
            assert other is not None
            return gated_requantise(accumulator, scaling, other, epilogue.multiplier, epilogue.shift, precision, form)
        case Requantise():
            return requantised(accumulator, scaling, precision)
        case Widen():
            y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
            return sat(y, precision.residual_bits)
        case AddResidual():
            assert other is not None
            y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
            return sat(other + y, precision.residual_bits)


def requantised(accumulator: IntArray, scaling: Scaling, precision: Precision) -> IntArray:
    """Accumulator `[tokens, out]` to a signed operand."""
    y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
    return sat(y, precision.activation_bits)


def gelu_requantise(
    accumulator: IntArray, scaling: Scaling, epilogue: GeluRequantise, precision: Precision, form: ActivationForm
) -> IntArray:
    """Accumulator `[tokens, hidden]` to an unsigned operand; the parameters are vectors `[hidden]`."""
    y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
    activated = gelu(sat(y, precision.gelu_bits), precision, form) + epilogue.offset
    return usat(rs(activated * epilogue.multiplier, epilogue.shift), precision.activation_bits)


def gated_requantise(
    accumulator: IntArray,
    scaling: Scaling,
    up: IntArray,
    multiplier: IntArray,
    shift: int,
    precision: Precision,
    form: ActivationForm,
) -> IntArray:
    """Accumulator and the operand `up`, both `[tokens, hidden]`, to a signed operand."""
    g = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
    product = gelu(sat(g, precision.gelu_bits), precision, form) * (up * multiplier)
    return sat(rs(product, shift), precision.activation_bits)
