"""Linear: matrix product and one of four epilogues."""

from __future__ import annotations

from moehls.integer.arithmetic import gelu, requantise, rs, sat, usat
from moehls.integer.operations import (
    AddResidual,
    GeluRequantise,
    IntArray,
    IntegerLinear,
    Raw,
    Requantise,
    Scaling,
)
from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm
from moehls.reference.product import product


def linear(
    operation: IntegerLinear, x: IntArray, residual: IntArray | None, precision: Precision, form: ActivationForm
) -> IntArray:
    """Operand `[tokens, in]` to `[tokens, out]`; `residual` `[tokens, out]` is what AddResidual adds to."""
    accumulator = product(x, operation.weight)
    scaling = operation.scaling
    match operation.epilogue:
        case Raw():
            return accumulator + scaling.bias
        case GeluRequantise() as epilogue:
            return gelu_requantise(accumulator, scaling, epilogue, precision, form)
        case Requantise():
            y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
            return sat(y, precision.activation_bits)
        case AddResidual():
            assert residual is not None
            y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
            return sat(residual + y, precision.residual_bits)


def gelu_requantise(
    accumulator: IntArray, scaling: Scaling, epilogue: GeluRequantise, precision: Precision, form: ActivationForm
) -> IntArray:
    """Accumulator `[tokens, hidden]` to an unsigned operand; the parameters are vectors `[hidden]`."""
    y = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, precision)
    activated = gelu(sat(y, precision.gelu_bits), precision, form) + epilogue.offset
    return usat(rs(activated * epilogue.multiplier, epilogue.shift), precision.activation_bits)
