"""Shapes and a network for tests: the parallelism asked for, with the memories the program needs."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache

from moehls.integer.operations import IntegerNetwork
from moehls.integer.precision import W8A8, Precision
from moehls.plan.packing import channel_widths
from moehls.plan.program import build_program
from moehls.plan.shape import Shape
from moehls.plan.steps import Program
from tests.support.random_networks import random_integer_network


def bare_shape(precision: Precision, token_parallel: int, block: int, lanes: int = 1, ports: int = 1) -> Shape:
    """A shape whose memories have no depth: enough to build a program."""
    return Shape(precision, token_parallel, block, lanes, ports, 0, 0, 0, 0, 0, 0, 0, 0, 64)


def program_and_shape(
    network: IntegerNetwork, token_parallel: int, block: int, token_blocks: int = 1, head_groups: int = 1
) -> tuple[Program, Shape]:
    """The program of `network` and the smallest shape that runs it."""
    bare = replace(
        bare_shape(network.precision, token_parallel, block),
        token_blocks=token_blocks,
        head_groups=head_groups,
        **channel_widths(network),
    )
    program = build_program(network, bare)
    return program, replace(bare, **asdict(program.requirements))


@cache
def small_network(precision: Precision = W8A8) -> IntegerNetwork:
    """A network with every operation: attention, MLP, two tasks' routers, experts, a raw head."""
    return random_integer_network(5, precision)
