"""Float network and calibration images to the integer network, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from threadpoolctl import threadpool_limits

from moehls.heap import trim
from moehls.integer.host import quantise_image
from moehls.integer.operations import Format, IntegerInput, IntegerNetwork, IntegerOperation, IntegerOutput
from moehls.integer.precision import Precision
from moehls.network.operations import Attention, Embed, FloatArray, Network, Route
from moehls.quantize.attention import convert_attention
from moehls.quantize.builder import Builder
from moehls.quantize.calibrate import Trajectories, checked, residual_range
from moehls.quantize.constant import convert_constant, convert_operand
from moehls.quantize.embed import constant_range, convert_embed, integer_input
from moehls.quantize.experts import convert_experts
from moehls.quantize.fixed_point import significant
from moehls.quantize.linear import (
    convert_attention_input,
    convert_gated,
    convert_gelu,
    convert_output,
    convert_residual,
    convert_stream,
    convert_up,
    convert_wide,
)
from moehls.quantize.norm import convert_fine, convert_norm, convert_rows, fine_name
from moehls.quantize.pool import convert_pool
from moehls.quantize.route import convert_route
from moehls.quantize.steps import (
    AttentionInputStep,
    ConstantStep,
    ExpertsStep,
    FineStep,
    GatedStep,
    GeluStep,
    NormStep,
    OperandStep,
    OutputStep,
    PoolStep,
    ResidualStep,
    RowsStep,
    Step,
    StreamStep,
    Structure,
    UpStep,
    WideStep,
)
from moehls.quantize.structure import structure

Progress = Callable[[int, int, str], None]
"""called with the number of operations done, of all, and the name of the one that comes next"""

_RESIDUAL_HEADROOM = 1.3


def quantize(
    network: Network, images: FloatArray, precision: Precision, progress: Progress | None = None
) -> IntegerNetwork:
    """Quantise `network`, calibrated on `images` for every task.

    Args:
        network: the float network.
        images: `[samples, channels, height, width]`, as the ONNX model takes them.
        precision: bit widths.
        progress: told of every operation.

    Raises:
        MoehlsError: an operation has no place on the accelerator, or the images do not fit the network.

    One BLAS thread: how many there are changes the last bits of floating-point sums, and a range chosen by a hair with them.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _quantize(network, images, precision, progress)


def _quantize(network: Network, images: FloatArray, precision: Precision, progress: Progress | None) -> IntegerNetwork:
    found = structure(network)
    embed = next(step for step in found.steps if isinstance(step, Embed))
    images = checked(network, images, len(embed.position))
    source = integer_input(network.input, embed, images, precision, network.lattices.get(network.input.name))
    outputs = _outputs(network, found)
    largest = max(residual_range(network, images, found.residuals), constant_range(embed, source))
    unit = float(significant(_RESIDUAL_HEADROOM * largest / ((1 << (precision.residual_bits - 1)) - 1)))
    data = Trajectories(network, images)
    builder = Builder(precision, found, data, unit, given=network.lattices)

    def assembled(operations: tuple[IntegerOperation, ...], formats: dict[str, Format]) -> IntegerNetwork:
        return IntegerNetwork(
            network.name,
            precision,
            source,
            len(embed.position),
            operations,
            formats,
            outputs,
            network.tasks,
            network.task_input,
            found.activations,
        )

    bare = assembled((), {})
    data.start(network.input.name, [quantise_image(bare, image) for image in images])
    for step in found.steps:
        if isinstance(step, OperandStep):
            data.keep(step.source, step.attention.output)
    operations: list[IntegerOperation] = []
    for number, step in enumerate(found.steps):
        if progress is not None:
            progress(number, len(found.steps), _title(step))
        operation = _convert(step, source, builder)
        operations.append(operation)
        data.execute(bare, operation)
        if not isinstance(step, OperandStep):  # the attention behind it reads more
            data.forget(_written(step))
        trim()
    return assembled(tuple(operations), builder.formats)


def _convert(step: Step, source: IntegerInput, builder: Builder) -> IntegerOperation:
    match step:
        case Embed():
            return convert_embed(step, source, builder)
        case ConstantStep():
            return convert_constant(step, builder)
        case OperandStep():
            return convert_operand(step, builder)
        case NormStep():
            return convert_norm(step, builder)
        case FineStep():
            return convert_fine(step, builder)
        case RowsStep():
            return convert_rows(step, builder)
        case PoolStep():
            return convert_pool(step, builder)
        case AttentionInputStep():
            return convert_attention_input(step, builder)
        case WideStep():
            return convert_wide(step, builder)
        case StreamStep():
            return convert_stream(step, builder)
        case GeluStep():
            return convert_gelu(step, builder)
        case UpStep():
            return convert_up(step, builder)
        case GatedStep():
            return convert_gated(step, builder)
        case ResidualStep():
            return convert_residual(step, builder)
        case OutputStep():
            return convert_output(step, builder)
        case Attention():
            return convert_attention(step, builder)
        case Route():
            return convert_route(step, builder)
        case ExpertsStep():
            return convert_experts(step, builder)


def _outputs(network: Network, found: Structure) -> tuple[IntegerOutput, ...]:
    """What the machine gives out: a norm as its fine value, a sum of linears in parts."""
    names = {output.name for output in network.outputs}
    outputs = []
    for o in network.outputs:
        first, *rest = found.sums.get(o.value, (o.value,))
        value = fine_name(first) if _is_norm(first, found.steps) else first
        outputs.append(IntegerOutput(o.name, value, o.shape, steps=o.steps))
        free = (f"{o.name}.part{n}" for n in count(1))
        for value in rest:
            name = next(name for name in free if name not in names)
            names.add(name)
            outputs.append(IntegerOutput(name, value, o.shape, part_of=o.name))
    return tuple(outputs)


def _is_norm(value: str, steps: tuple[Step, ...]) -> bool:
    return any(isinstance(step, NormStep | RowsStep) and _written(step) == value for step in steps)


def _title(step: Step) -> str:
    """The name of the operation that a step becomes."""
    match step:
        case Embed() | Attention() | Route():
            return step.name
        case NormStep():
            return step.norm.name if step.output == step.norm.output else step.output
        case ExpertsStep():
            return step.experts.name
        case FineStep():
            return fine_name(step.source)
        case RowsStep():
            return step.selection.name
        case PoolStep():
            return step.mean.name
        case ConstantStep() | OperandStep():
            return step.output
        case _:
            return step.linear.name


def _written(step: Step) -> str:
    """Name of the last float value that a step computes."""
    match step:
        case AttentionInputStep() | OutputStep() | UpStep() | WideStep():
            return step.linear.output
        case GeluStep():
            return step.gelu.output
        case FineStep():
            return step.source
        case RowsStep():
            return step.selection.output
        case ConstantStep():
            return step.constant.output
        case PoolStep():
            return step.mean.output
        case _:
            return step.output
