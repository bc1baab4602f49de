"""Joins networks that are one model for several tasks: the backbone once, a gate a task in every router, each task's own heads.

Comes in: networks, one a task (or one with several), that share all but their routers' weights and what lies between the
backbone and the outputs. Goes out: one network. What is shared is found by content: an operation is the same where it reads
the same values and has the same arrays, whatever it is called.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moehls.errors import MoehlsError
from moehls.network.interpreter import reads
from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    FloatArray,
    Lattice,
    LayerNorm,
    Linear,
    MeanTokens,
    Network,
    NetworkOutput,
    Operation,
    Route,
    SelectTokens,
)

_NAMES = {"name", "input", "output", "left", "right", "query", "key", "value", "routing"}
_HEAD = (Linear, Activation, LayerNorm, SelectTokens, MeanTokens)
"""what may lie between the backbone and an output of one task"""
_GATE = {"weight", "bias", "selection"}
_REMEDY = "export tasks of one model, which differ in the weights of their gates and in their heads only"


class DifferentBackbones(MoehlsError):
    """Two networks are not tasks of one model; `weight` is the array that only the second has, where there is one."""

    def __init__(self, text: str, weight: FloatArray | None) -> None:
        super().__init__(text)
        self.weight = weight


@dataclass
class _Joint:
    """The network joined so far."""

    operations: list[Operation]
    known: dict[tuple[Any, ...], Operation]
    gates: dict[str, list[tuple[FloatArray, FloatArray, FloatArray | None]]]
    """weight `[tasks, experts, channels]`, bias and selection bias of every network, by the name of the Route"""
    names: Counter[str]
    lattices: dict[str, Lattice]


def join(networks: Sequence[Network], labels: Sequence[str]) -> Network:
    """One network for the tasks of all; the tasks are numbered in the order of the networks.

    Args:
        networks: at least two.
        labels: what a network is called in messages and, where outputs of one name differ, before their names.

    Raises:
        DifferentBackbones: the networks differ in more than gates and heads.
    """
    first = networks[0]
    joint = _Joint([], {}, {}, Counter(), {})
    outputs: list[list[NetworkOutput]] = []
    for network, label in zip(networks, labels, strict=True):
        if network.input.shape != first.input.shape:
            raise DifferentBackbones(
                f"{labels[0]} takes images of {list(first.input.shape)}, {label} of {list(network.input.shape)}; {_REMEDY}",
                None,
            )
        if not _same_samples(network, first):
            raise DifferentBackbones(
                f"{labels[0]} and {label} take images in another layout or type, or normalise them otherwise; {_REMEDY}",
                None,
            )
        values = _add(joint, network, first.input.name, labels[0], label)
        outputs.append([replace(output, value=values[output.value]) for output in network.outputs])
        _add_lattices(joint, network, values, f"{labels[0]} and {label} are not tasks of one model")
    routed = bool(joint.gates)
    tasks = sum(network.tasks for network in networks) if routed else 1
    given = next((network.task_input for network in networks if network.task_input is not None), None)
    given = given or ("task" if first.input.name != "task" else "task_number")
    return Network(
        name="+".join(dict.fromkeys(network.name for network in networks)),
        input=first.input,
        operations=tuple(_with_gates(operation, joint) for operation in joint.operations),
        outputs=tuple(_named(outputs, labels)),
        tasks=tasks,
        task_input=given if tasks > 1 else None,
        lattices=joint.lattices,
    )


def _same_samples(one: Network, other: Network) -> bool:
    """Whether both take samples in one layout and type and make the same images of them."""
    a, b = one.input, other.input
    same = (a.given, a.type, a.channels_last) == (b.given, b.type, b.channels_last)
    return same and [step.json() for step in a.steps] == [step.json() for step in b.steps]


def _add_lattices(joint: _Joint, network: Network, values: dict[str, str], begin: str) -> None:
    """The scales that a network's graph gives, by joint names; what several share must have one."""
    for name, lattice in network.lattices.items():
        of, dot, role = (name, "", "") if name in values else name.rpartition(".")
        own = values[of] + dot + role
        known = joint.lattices.setdefault(own, lattice)
        same = (known.bits, known.signed) == (lattice.bits, lattice.signed)
        if not (same and np.array_equal(known.scale, lattice.scale) and np.array_equal(known.zero, lattice.zero)):
            raise DifferentBackbones(
                f"{begin}: their graphs quantise {name} with other scales; quantise all files with the same calibration",
                None,
            )


def unrolled_tasks(network: Network) -> Network:
    """The network with a task input, where its outputs are tasks unrolled side by side: each with routers of its own.

    Raises:
        DifferentBackbones: outputs have routers of their own, but are not tasks of one model.
    """
    groups: dict[frozenset[str], list[NetworkOutput]] = {}
    for output in network.outputs:
        slice_ = reaching(network, [output])
        routers = frozenset(operation.output for operation in slice_ if isinstance(operation, Route))
        groups.setdefault(routers, []).append(output)
    if network.tasks > 1 or len(groups) < 2 or len({len(routers) for routers in groups}) > 1:
        return network
    parts = [
        replace(network, operations=reaching(network, outputs), outputs=tuple(outputs)) for outputs in groups.values()
    ]
    return join(parts, [f"output {outputs[0].name!r}" for outputs in groups.values()])


def reaching(network: Network, outputs: Sequence[NetworkOutput]) -> tuple[Operation, ...]:
    """The operations that some of `outputs` depend on, in order."""
    wanted = {output.value for output in outputs}
    kept: list[Operation] = []
    for operation in reversed(network.operations):
        if operation.output in wanted:
            kept.append(operation)
            wanted |= set(reads(operation))
    return tuple(reversed(kept))


def _add(joint: _Joint, network: Network, image: str, first: str, label: str) -> dict[str, str]:
    """Add one network's operations; returns the joint name of each of its values."""
    values = {network.input.name: image}
    roots: dict[str, Operation] = {}
    """by joint name of a value that this network alone has: where it began to differ"""
    known, seen = dict(joint.known), Counter[tuple[Any, ...]]()
    for operation in network.operations:
        inputs = tuple(values[name] for name in reads(operation))
        key = (*_content(operation), *(sorted(inputs) if isinstance(operation, Add) else inputs))
        seen[key] += 1
        same = known.get((*key, seen[key]))
        if same is None:
            root = next((roots[name] for name in inputs if name in roots), operation)
            if known and not isinstance(operation, _HEAD):
                raise _difference(root, joint, values, network, first, label)
            same = _fresh(operation, inputs, joint)
            joint.operations.append(same)
            joint.known[(*key, seen[key])] = same
            if known:
                roots[same.output] = root
        values[operation.output] = same.output
        if isinstance(operation, Route):
            shape = (network.tasks, *operation.weight.shape[1:])
            weight, bias = np.broadcast_to(operation.weight, shape), np.broadcast_to(operation.bias, shape[:2])
            selection = None if operation.selection is None else np.broadcast_to(operation.selection, shape[:2])
            joint.gates.setdefault(same.output, []).append((weight, bias, selection))
    return values


def _content(operation: Operation) -> tuple[Any, ...]:
    """What an operation is, apart from names and, of a router, its gates."""
    found: list[Any] = [type(operation).__name__]
    for field in fields(operation):
        value = getattr(operation, field.name)
        if field.name in _NAMES:
            continue
        if isinstance(operation, Route) and field.name in _GATE:
            found.append(None if value is None else value.shape[1:])
        elif isinstance(value, np.ndarray):
            found.append((value.shape, hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()))
        else:
            found.append(value)
    return tuple(found)


def _fresh(operation: Operation, inputs: tuple[str, ...], joint: _Joint) -> Operation:
    """The operation with joint names; its own name gives the role."""
    role = operation.name.rstrip("0123456789")
    name = f"{role}{joint.names[role]}"
    joint.names[role] += 1
    old = iter(inputs)
    places: dict[str, Any] = {f.name: next(old) for f in fields(operation) if f.name in _NAMES - {"name", "output"}}
    return replace(operation, name=name, output=name, **places)


def _with_gates(operation: Operation, joint: _Joint) -> Operation:
    if not isinstance(operation, Route):
        return operation
    weights, biases, selections = zip(*joint.gates[operation.output], strict=True)
    selection = None if operation.selection is None else np.concatenate(selections)
    return replace(operation, weight=np.concatenate(weights), bias=np.concatenate(biases), selection=selection)


def _named(outputs: list[list[NetworkOutput]], labels: Sequence[str]) -> Iterator[NetworkOutput]:
    """Every output once; where one name stands for several values, the label comes before it."""
    meanings: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for own in outputs:
        for output in own:
            meanings.setdefault(output.name, set()).add((output.value, output.shape))
    shown: set[str] = set()
    for label, own in zip(labels, outputs, strict=True):
        for output in own:
            name = output.name if len(meanings[output.name]) == 1 else f"{label}.{output.name}"
            if name not in shown:
                shown.add(name)
                yield replace(output, name=name)


def _difference(
    root: Operation, joint: _Joint, values: dict[str, str], network: Network, first: str, label: str
) -> DifferentBackbones:
    """What `network` has at `root` in another way than the joint network, in words."""
    inputs = tuple(values[name] for name in reads(root))
    block = sum(isinstance(o, Attention) for o in network.operations[: network.operations.index(root)])
    place = f"{type(root).__name__} {root.name!r} ({block} attentions before it)"
    begin = f"{first} and {label} are not tasks of one model: "
    rivals = [o for o in joint.operations if type(o) is type(root) and reads(o) == inputs]
    used = set(values.values())
    for rival in sorted(rivals, key=lambda o: o.output in used):
        for field in fields(root):
            left, right = getattr(rival, field.name), getattr(root, field.name)
            if field.name in _NAMES or (
                isinstance(root, Route) and field.name in _GATE and np.shape(left) == np.shape(right)
            ):
                continue
            if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
                if left.shape != right.shape:
                    text = f"the {field.name} of {place} is {list(left.shape)} in the first, {list(right.shape)} in the other"
                    return DifferentBackbones(f"{begin}{text}; {_REMEDY}", right)
                if not np.array_equal(left, right):
                    apart = np.abs(np.where(left == right, 0, left - right))
                    worst = np.unravel_index(int(apart.argmax()), left.shape)
                    text = (
                        f"the {field.name} {list(right.shape)} of {place} is the first to differ, most at "
                        f"{[int(i) for i in worst]}: {left[worst]:.6g} and {right[worst]:.6g}"
                    )
                    return DifferentBackbones(f"{begin}{text}; {_REMEDY}", right)
            elif isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
                text = f"only one of the two has a {field.name} at {place}"
                return DifferentBackbones(f"{begin}{text}; {_REMEDY}", right)
            elif left != right:
                return DifferentBackbones(f"{begin}{field.name} of {place} is {left!r} and {right!r}; {_REMEDY}", None)
    return DifferentBackbones(f"{begin}only the second has {place}; {_REMEDY}", None)
