"""Float operations to the steps of the accelerator, before any number is chosen.

In goes a float network, out comes a tuple of steps, each of which becomes one integer operation: an activation joined
to the linear before it, a residual add to the linear or experts before it, a token selection to the norm beside it. What
cannot be represented is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from moehls.errors import MoehlsError
from moehls.network.interpreter import reads
from moehls.network.operations import (
    Activation,
    ActivationForm,
    Add,
    Attention,
    Constant,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    MeanTokens,
    Multiply,
    Network,
    Operation,
    Route,
    SelectTokens,
)
from moehls.quantize.steps import (
    SUPPORTED,
    AttentionInputStep,
    ConstantStep,
    ExpertsStep,
    FineStep,
    GatedStep,
    GeluStep,
    LinearStep,
    NormStep,
    OperandStep,
    OutputStep,
    PoolStep,
    ResidualStep,
    Role,
    RowsStep,
    Step,
    StreamStep,
    Structure,
    UpStep,
    WideStep,
)

_OTHER_NORMS = "a norm of what is added to it, as Swin V2 has, or of another norm is not supported"


def structure(network: Network) -> Structure:
    """The steps of `network`.

    Raises:
        MoehlsError: an operation stands where the accelerator has no place for it.
    """
    return _Resolver(network).resolve()


def unmapped(network: Network) -> tuple[str, ...]:
    """Everything of `network` that `structure` refuses, one message each."""
    resolver = _Resolver(network)
    found: list[str] = []
    for operation in network.operations:
        try:
            resolver.steps_of(operation)
        except MoehlsError as error:
            if str(error).split(" cannot be")[0] not in {text.split(" cannot be")[0] for text in found}:
                found.append(str(error))
            resolver.allow(operation.output)
    try:
        resolver.check_outputs()
    except MoehlsError as error:
        found.append(str(error))
    return tuple(found)


def _roles(attention: Attention) -> tuple[tuple[Role, str], ...]:
    return ("query", attention.query), ("key", attention.key), ("value", attention.value)


class _Resolver:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.makers = {operation.output: operation for operation in network.operations}
        self.shown = {output.value for output in network.outputs}
        readers: dict[str, list[Operation]] = {name: [] for name in (network.input.name, *self.makers)}
        for operation in network.operations:
            for name in dict.fromkeys(reads(operation)):
                if isinstance(operation, Constant):  # reads no rows
                    continue
                if name not in readers:
                    raise MoehlsError(f"{operation.name}: reads {name!r}, which no operation before it writes")
                readers[name].append(operation)
        self.readers = {name: tuple(found) for name, found in readers.items()}
        self.residuals: set[str] = set()
        self.operands: set[str] = set()
        self.selections: set[str] = set()
        self.pooled: set[str] = set()
        """residual values of one row"""
        self.sides: set[str] = set()
        """residual values beside the stream: constants, and what experts add to them"""
        self.sources: dict[str, str] = {}
        self.tied: set[str] = set()
        self.wide: set[str] = set()
        """outputs of linears that norms read"""
        self.ups: set[str] = set()
        """linears that an activation is multiplied with"""
        self.sums: dict[str, tuple[str, ...]] = {}
        """of linears that are outputs: averaged heads"""

    def resolve(self) -> Structure:
        steps: list[Step] = []
        for operation in self.network.operations:
            steps.extend(self.steps_of(operation))
        self.check_outputs()
        residuals = frozenset(self.residuals)
        return Structure(
            tuple(steps),
            residuals,
            self.readers,
            self.activation_forms(),
            self._shown_sums(),
            self.sources,
            frozenset(self.tied),
        )

    def allow(self, name: str) -> None:
        """Take a value for whatever reads it, as its own refusal is known."""
        for known in (self.residuals, self.operands, self.ups):
            known.add(name)

    def check_outputs(self) -> None:
        if not self.residuals:
            raise MoehlsError(f"{self.network.name}: no patch embedding; supported: models whose tokens come from one")
        for output in self.network.outputs:
            maker = self.makers.get(output.value)
            norm = output.value in self.operands and isinstance(maker, LayerNorm | SelectTokens)
            if not (norm or output.value in self.residuals or isinstance(maker, Linear) or output.value in self.sums):
                what = type(maker).__name__ if maker else "no operation"
                raise MoehlsError(
                    f"output {output.name!r} shows the result of {what} ({output.value!r}); supported: the residual "
                    "stream, a LayerNorm and a linear; end the exported model there"
                )

    def steps_of(self, operation: Operation) -> list[Step]:
        match operation:
            case Embed():
                if self.residuals:
                    raise MoehlsError(f"{operation.name}: a second patch embedding; supported: one")
                self.residuals.add(operation.output)
                return [operation, *self._fine(operation.output)]
            case Constant():
                return self._constant(operation)
            case LayerNorm():
                return self._norms(operation)
            case Linear():
                step = self._linear(operation)
                fine = self._fine(operation.output) if isinstance(step, StreamStep) else []
                return [] if step is None else [step, *fine]
            case Attention():
                self.operands.add(operation.output)
                return [*self._attention_operands(operation), self._renamed(operation)]
            case Route():
                maker = self._maker(operation.input, self.operands)
                if not isinstance(maker, LayerNorm) and operation.input not in self.residuals | self.sides:
                    raise self._refusal(
                        operation,
                        "its input is neither the output of a LayerNorm over all tokens nor the residual stream",
                    )
                self._only(operation.output, operation, lambda reader: isinstance(reader, Experts))
                return [operation]
            case Experts():
                return [self._experts(operation)]
            case Add():
                return self._add(operation)
            case Activation():
                if not isinstance(self.makers.get(operation.input), Linear):
                    raise self._refusal(operation, "its input is not the output of a linear")
                if any(isinstance(reader, Multiply) for reader in self.readers[operation.output]):
                    self._only(operation.output, operation, lambda reader: isinstance(reader, Multiply))
                else:
                    self.operands.add(operation.output)
                return []
            case MeanTokens():
                return [self._pool(operation)]
            case Multiply():
                return [self._gated(operation)]
            case SelectTokens():
                return self._select(operation)

    def _select(self, select: SelectTokens) -> list[Step]:
        """No step for rows of a norm, or before one: they are part of the norm's."""
        if select.output in self.operands:
            return []
        if select.input not in self.residuals | self.selections:
            raise self._refusal(select, "its input is neither the residual stream nor a LayerNorm")
        readers = self.readers[select.output]
        if (
            select.input in self.residuals
            and readers
            and all(isinstance(reader, Linear | Experts) for reader in readers)
        ):
            self.operands.add(select.output)
            return [RowsStep(select)]
        self.selections.add(select.output)
        self._only(select.output, select, lambda reader: isinstance(reader, LayerNorm | SelectTokens))
        return []

    def _constant(self, constant: Constant) -> list[Step]:
        """Constants that attentions read become operands there."""
        readers = self.readers[constant.output]
        if all(isinstance(reader, Attention) for reader in readers):
            return []
        if len(readers) == 1 and isinstance(readers[0], Add) and self._begins(constant, readers[0]):
            self.residuals.add(constant.output)
            return [ConstantStep(constant, constant.output, stream=True)]
        self.sides.add(constant.output)
        if all(isinstance(reader, Route) for reader in readers):
            return [ConstantStep(constant, constant.output), FineStep(constant.output)]
        sums, name = [], constant.output
        while len(readers := self.readers[name]) == 1 and isinstance(add := readers[0], Add):
            name = add.output
            sums.append(name)
        if not sums:
            raise self._refusal(constant, "it is read by something else than attentions, routers or one residual add")
        return [ConstantStep(constant, constant.output, tuple(sums))]

    def _begins(self, constant: Constant, add: Add) -> bool:
        """Whether the sum of constant rows and a linear behind a norm of the stream is the stream from there on."""
        linear = self.makers.get(add.right if add.left == constant.output else add.left)
        return isinstance(linear, Linear) and isinstance(self.makers.get(linear.input), LayerNorm)

    def _renamed(self, attention: Attention) -> Attention:
        """The attention as it reads operands of its own in the place of what is not the output of a linear."""
        query, key, value = (
            name if isinstance(self.makers.get(name), Linear) else f"{attention.name}.{role}"
            for role, name in _roles(attention)
        )
        return replace(attention, query=query, key=key, value=value)

    def _attention_operands(self, attention: Attention) -> list[Step]:
        """The steps that make queries, keys and values of other values than outputs of linears."""
        found: list[Step] = []
        renamed = self._renamed(attention)
        for (role, source), (_, output) in zip(_roles(attention), _roles(renamed), strict=True):
            maker = self.makers.get(source)
            if isinstance(maker, Linear) or output in self.sources:
                continue
            self.sources[output] = source
            if isinstance(maker, LayerNorm) and maker.input in self.wide:
                found.append(self._normalised(attention, role, maker))
                continue
            if attention.heads > 1:
                raise self._refusal(
                    attention, f"its {role} is not the output of a linear, and it has {attention.heads} heads"
                )
            if isinstance(maker, LayerNorm):
                rows, start, stop = self._rows(maker)
                if (start, stop) != (0, None):
                    raise self._refusal(attention, f"its {role} is a norm of some tokens only")
                found.append(OperandStep(renamed, output, rows, maker))
            elif isinstance(maker, Constant):
                found.append(ConstantStep(maker, f"{output}.rows", (), renamed, output))
                found.append(OperandStep(renamed, output, f"{output}.rows", constant=True))
            elif source in self.sides and role == "value":
                found.append(OperandStep(renamed, output, source))
            else:
                what = type(maker).__name__ if maker else "the image"
                raise self._refusal(attention, f"its {role} is the result of {what}")
        return found

    def _normalised(self, attention: Attention, role: Role, norm: LayerNorm) -> OperandStep:
        """Queries, keys or values that are a norm of the output of a linear."""
        output = f"{attention.name}.{role}"
        if norm.heads not in (1, attention.heads) or (norm.heads > 1 and role == "value"):
            raise self._refusal(attention, f"its {role} is a norm of {norm.heads} heads, it has {attention.heads}")
        if norm.heads > 1:
            self.tied.add(output)
        self.sources[output] = norm.output
        return OperandStep(self._renamed(attention), output, norm.input, norm)

    def _of_linear(self, norm: LayerNorm) -> list[Step]:
        """The operand at once, so that the linear's rows are free again, where all that its attention reads is of linears."""
        self._only(norm.output, norm, lambda reader: isinstance(reader, Attention))
        readers = [reader for reader in self.readers[norm.output] if isinstance(reader, Attention)]
        attention, made = readers[0], []
        for _, source in _roles(attention):
            maker = self.makers.get(source)
            made.append(self.makers.get(maker.input) if isinstance(maker, LayerNorm) else maker)
        own = [role for role, source in _roles(attention) if source == norm.output]
        if len(readers) > 1 or len(own) > 1 or not all(isinstance(maker, Linear) for maker in made):
            return []
        return [self._normalised(attention, own[0], norm)]

    def _pool(self, mean: MeanTokens) -> PoolStep:
        of_norm = mean.input in self.operands and self._is_norm(mean.input)
        if of_norm:
            self.operands.add(mean.output)
        elif mean.input in self.residuals:
            self.pooled.add(mean.output)
            self._only(mean.output, mean, lambda reader: isinstance(reader, LayerNorm))
        else:
            raise self._refusal(mean, "its input is neither the residual stream nor the output of a LayerNorm")
        return PoolStep(mean, of_norm)

    def _is_norm(self, name: str) -> bool:
        """Whether a value is a LayerNorm's, or rows of one."""
        while isinstance(maker := self.makers.get(name), SelectTokens):
            name = maker.input
        return isinstance(maker, LayerNorm)

    def _norms(self, norm: LayerNorm) -> list[Step]:
        """One step for the whole output where anything reads it, one for each selection of rows from it."""
        if norm.input in self.wide:
            return self._of_linear(norm)
        if norm.heads > 1:
            raise self._refusal(norm, f"it normalises {norm.heads} parts of the channels by themselves")
        source, start, stop = self._rows(norm)
        found: list[Step] = []
        selections = [r for r in self.readers[norm.output] if isinstance(r, SelectTokens)]
        others = [r for r in self.readers[norm.output] if not isinstance(r, SelectTokens | Attention)]
        if others or not self.readers[norm.output] or norm.output in self.shown:
            found.append(NormStep(norm, source, start, stop, norm.output))
            self.operands.add(norm.output)
        for selection in selections:
            first, last = start + selection.start, start + selection.stop
            found.append(NormStep(norm, source, first, last, selection.output))
            self.operands.add(selection.output)
        return found

    def _rows(self, norm: LayerNorm) -> tuple[str, int, int | None]:
        """The residual value a norm reads, through selections, and its rows."""
        name, start, stop = norm.input, 0, None
        while isinstance(maker := self.makers.get(name), SelectTokens):
            stop = maker.stop if stop is None else maker.start + stop
            name, start = maker.input, start + maker.start
        if name not in self.residuals | self.pooled:
            raise self._refusal(norm, f"its input is not the residual stream ({_OTHER_NORMS})")
        return name, start, stop

    def _gated(self, product: Multiply) -> GatedStep:
        for gate, up in ((product.left, product.right), (product.right, product.left)):
            activation = self.makers.get(gate)
            if not isinstance(activation, Activation) or up not in self.ups:
                continue
            linear = self.makers.get(activation.input)
            if isinstance(linear, Linear) and len(self.readers[gate]) == 1:
                self.operands.add(product.output)
                return GatedStep(linear, activation, up, product.output)
        raise self._refusal(product, "its operands are not an activation and a linear that comes before the gate's")

    def _linear(self, linear: Linear) -> LinearStep | None:
        """The step of a linear; None for the gate of a gated MLP, whose step stands where the product does."""
        self._maker(linear.input, self.operands, linear)
        readers = self.readers[linear.output]
        if isinstance(self.makers.get(linear.input), LayerNorm) and any(
            isinstance(reader, Add) and self._continues(reader, linear) for reader in readers
        ):
            self.residuals.add(linear.output)
            return StreamStep(linear, linear.output)
        if readers and all(isinstance(reader, LayerNorm) for reader in readers) and linear.output not in self.shown:
            self.wide.add(linear.output)
            return WideStep(linear)
        summed = bool(readers) and all(isinstance(reader, Add) and self._is_sum(reader) for reader in readers)
        if linear.output in self.shown or summed:
            if readers and not summed:
                raise self._refusal(linear, "it is an output of the network and is read again")
            return OutputStep(linear)
        if len(readers) != 1:
            raise self._refusal(linear, f"{len(readers)} operations read its output; supported: one")
        match readers[0]:
            case Attention() as attention:
                if reads(attention).count(linear.output) > 1:
                    raise self._refusal(linear, "it gives the attention more than one of query, key and value")
                return AttentionInputStep(linear, self._renamed(attention))
            case Activation() as gelu:
                if any(isinstance(reader, Multiply) for reader in self.readers[gelu.output]):
                    return None
                return GeluStep(linear, gelu)
            case Multiply():
                self.ups.add(linear.output)
                return UpStep(linear)
            case Add() as add:
                residual = self._residual(add, linear.output)
                if isinstance(maker := self.makers.get(residual), Constant) and self._begins(maker, add):
                    return StreamStep(linear, add.output, residual)
                return ResidualStep(linear, residual, add.output)
            case other:
                raise self._refusal(linear, f"its output goes to {other.name} ({type(other).__name__})")

    def _continues(self, add: Add, linear: Linear) -> bool:
        """Whether what a linear behind a norm gives is the stream to which an add adds a branch."""
        other = add.right if add.left == linear.output else add.left
        return other not in self.residuals | self.sides and not self._is_sum(add)

    def _experts(self, experts: Experts) -> ExpertsStep:
        self._maker(experts.input, self.operands, experts)
        route = self.makers.get(experts.routing)
        assert isinstance(route, Route)
        self._only(experts.output, experts, lambda reader: isinstance(reader, Add))
        add = self.readers[experts.output][0]
        assert isinstance(add, Add)
        return ExpertsStep(experts, self._residual(add, experts.output), add.output)

    def _is_sum(self, add: Add) -> bool:
        """Whether an addition, perhaps with others behind it, is an output that adds linears: averaged heads."""
        readers = self.readers[add.output]
        before = [self.makers.get(side) for side in (add.left, add.right)]
        if not all(isinstance(side, Linear) or (isinstance(side, Add) and self._adds_linears(side)) for side in before):
            return False
        if add.output in self.shown:
            return not readers
        return len(readers) == 1 and isinstance(readers[0], Add) and self._is_sum(readers[0])

    def _adds_linears(self, add: Add) -> bool:
        before = [self.makers.get(side) for side in (add.left, add.right)]
        return all(isinstance(side, Linear) or (isinstance(side, Add) and self._adds_linears(side)) for side in before)

    def _shown_sums(self) -> dict[str, tuple[str, ...]]:
        return {name: parts for name, parts in self.sums.items() if name in self.shown}

    def _add(self, add: Add) -> list[Step]:
        if self._is_sum(add):
            self.sums[add.output] = (*self.sums.get(add.left, (add.left,)), *self.sums.get(add.right, (add.right,)))
            return []
        branches = [side for side in (add.left, add.right) if side not in self.residuals | self.sides]
        if len(branches) != 1 or not isinstance(self.makers.get(branches[0]), Linear | Experts):
            raise self._refusal(add, "it is not the residual stream plus the output of a linear or of experts")
        if {add.left, add.right} & self.sides:
            self.sides.add(add.output)
            return []
        self.residuals.add(add.output)
        return self._fine(add.output)

    def _fine(self, residual: str) -> list[Step]:
        """The fine value of a residual that routers read; taken at once, as the residual may be updated before they come."""
        return [FineStep(residual)] if any(isinstance(reader, Route) for reader in self.readers[residual]) else []

    def _residual(self, add: Add, branch: str) -> str:
        other = add.right if add.left == branch else add.left
        if other not in self.residuals | self.sides:
            normed = f" ({_OTHER_NORMS})" if isinstance(self.makers.get(other), LayerNorm) else ""
            raise self._refusal(add, f"{other!r} is not the residual stream{normed}")
        return other

    def _maker(self, name: str, allowed: set[str], reader: Operation | None = None) -> Operation | None:
        if reader is not None and name not in allowed:
            maker = self.makers.get(name)
            what = type(maker).__name__ if maker else "the image"
            raise self._refusal(reader, f"it reads {name!r}, the result of {what}")
        return self.makers.get(name)

    def _only(self, name: str, operation: Operation, allowed: Callable[[Operation], bool]) -> None:
        readers = self.readers[name]
        if not readers or not all(allowed(reader) for reader in readers) or name in self.shown:
            found = ", ".join(f"{r.name} ({type(r).__name__})" for r in readers) or "nothing"
            raise self._refusal(operation, f"its output is read by {found}")

    def activation_forms(self) -> tuple[ActivationForm, ...]:
        """Those the network has, in the order of their definition."""
        found = {o.form for o in self.network.operations if isinstance(o, Activation | Experts)}
        return tuple(form for form in get_args(ActivationForm) if form in found) or ("exact",)

    def _refusal(self, operation: Operation, why: str) -> MoehlsError:
        kind = type(operation).__name__
        return MoehlsError(
            f"{operation.name} ({kind}) cannot be mapped: {why}; supported: {SUPPORTED[kind]}; change the model there"
        )
