"""The graph folds wiring, and the passes keep values while they narrow and balance."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.rtl.graph import Graph, Node
from moehls.rtl.ir import Access, Process, RegisterWrite, Step
from moehls.rtl.narrow import balance, narrow


def evaluate(node: Node, leaves: dict[str, int]) -> int:
    """What a node is worth, from its definition alone."""
    a = [evaluate(x, leaves) for x in node.args]
    mask = (1 << node.width) - 1

    def signed(i: int) -> int:
        width = node.args[i].width
        return a[i] - (a[i] >> (width - 1) << width)

    rules: dict[str, Callable[[], int]] = {
        "const": lambda: node.value,
        "input": lambda: leaves[str(node.aux)] & mask,
        "reg": lambda: leaves[str(node.aux)] & mask,
        "slice": lambda: a[0] >> node.low,
        "sext": lambda: signed(0),
        "not": lambda: ~a[0],
        "and": lambda: a[0] & a[1],
        "or": lambda: a[0] | a[1],
        "xor": lambda: a[0] ^ a[1],
        "add": lambda: a[0] + a[1],
        "sub": lambda: a[0] - a[1],
        "mul": lambda: a[0] * a[1],
        "mux": lambda: a[1] if a[0] else a[2],
        "eq": lambda: int(a[0] == a[1]),
        "ult": lambda: int(a[0] < a[1]),
        "slt": lambda: int(signed(0) < signed(1)),
        "shl": lambda: a[0] << a[1],
        "lshr": lambda: a[0] >> a[1],
        "ashr": lambda: signed(0) >> a[1],
    }
    if node.op == "dot":
        n = len(a) // 2
        return (sum(signed(2 * i) * signed(2 * i + 1) for i in range(n)) + signed(2 * n)) & mask
    if node.op == "concat":
        total, at = 0, 0
        for part, value in zip(node.args, a, strict=True):
            total |= value << at
            at += part.width
        return total
    return rules[node.op]() & mask


def grow(rng: random.Random, g: Graph, size: int) -> tuple[list[Node], list[Callable[[dict[str, int]], int]]]:
    """Random nodes, each with the value it should have by plain integer arithmetic."""
    nodes: list[Node] = []
    values: list[Callable[[dict[str, int]], int]] = []

    def put(node: Node, value: Callable[[dict[str, int]], int]) -> None:
        nodes.append(node)
        values.append(value)

    for k in range(4):
        width = rng.choice((1, 4, 9, 16))
        put(g.leaf("input", f"x{k}", width), lambda v, k=k, w=width: v[f"x{k}"] & ((1 << w) - 1))  # type: ignore[misc]
    for _ in range(size):
        i, j, c = (rng.randrange(len(nodes)) for _ in range(3))
        a, fa = nodes[i], values[i]
        width = a.width
        mask = (1 << width) - 1
        if rng.random() < 0.3:
            constant = rng.choice((0, mask, rng.getrandbits(width), 0xF0 & mask))
            b, fb = g.const(constant, width), lambda v, n=constant: n
        else:
            b, fb = g.low_bits(nodes[j], width), lambda v, f=values[j], m=mask: f(v) & m
        bit, fc = g.slice(nodes[c], 0, 1), values[c]
        match rng.randrange(11):
            case 0:
                put(g.bitwise("and", a, b), lambda v, f=fa, h=fb: f(v) & h(v))  # type: ignore[misc]
            case 1:
                put(g.bitwise("or", a, b), lambda v, f=fa, h=fb: f(v) | h(v))  # type: ignore[misc]
            case 2:
                put(g.bitwise("xor", a, b), lambda v, f=fa, h=fb: f(v) ^ h(v))  # type: ignore[misc]
            case 3:
                put(g.arithmetic("add", a, b), lambda v, f=fa, h=fb, m=mask: (f(v) + h(v)) & m)  # type: ignore[misc]
            case 4:
                put(g.arithmetic("mul", a, b), lambda v, f=fa, h=fb, m=mask: (f(v) * h(v)) & m)  # type: ignore[misc]
            case 5:
                put(g.mux(bit, a, b), lambda v, f=fa, h=fb, s=fc: f(v) if s(v) & 1 else h(v))  # type: ignore[misc]
            case 6:
                n = rng.randrange(width + 1)
                put(g.shift("shl", a, g.const(n, width)), lambda v, f=fa, n=n, m=mask: (f(v) << n) & m)  # type: ignore[misc]
            case 7:
                top = width + rng.randrange(12)
                sign = lambda v, f=fa, w=width, t=top: (f(v) - (f(v) >> (w - 1) << w)) & ((1 << t) - 1)  # noqa: E731
                put(g.sext(a, top), sign)  # type: ignore[arg-type]
            case 8 if width >= 4:
                op = rng.choice(("lshr", "ashr"))
                part = g.slice(nodes[j], 0, min(nodes[j].width, 2))
                at, low = rng.randrange(2), rng.randrange(1, width + 1)  # bits of the amount from `at` on
                amount = g.low_bits(g.concat((g.const(0, 1), part) if at else (part,)), width)
                shifted = g.low_bits(g.slice(g.shift(op, a, amount), 0, low), width)  # type: ignore[arg-type]
                put(shifted, lambda v, f=fa, h=values[j], w=width, o=op, p=part.width, at=at, low=low: (  # type: ignore[misc]
                    (f(v) - (f(v) >> (w - 1) << w if o == "ashr" else 0)) >> ((h(v) & ((1 << p) - 1)) << at)
                ) & ((1 << low) - 1))  # fmt: skip
            case 9:
                n = rng.getrandbits(width)
                other = g.const(n, width)
                chosen = g.mux(bit, g.const(~n & mask & 5, width), other)
                put(chosen, lambda v, n=n, m=mask, s=fc: ~n & m & 5 if s(v) & 1 else n)  # type: ignore[misc]
            case _:
                put(g.compare("slt", a, b), lambda v, f=fa, h=fb, w=width: int(  # type: ignore[misc]
                    f(v) - (f(v) >> (w - 1) << w) < h(v) - (h(v) >> (w - 1) << w)
                ))  # fmt: skip
    return nodes, values


def wrap(g: Graph, outputs: list[Node]) -> Process:
    """A process that writes the nodes to a stream each."""
    always = g.const(1, 1)
    accesses = [Access(f"out{k}", "swrite", 0, always, data=n) for k, n in enumerate(outputs)]
    return Process("p", "@p", g, [Step(0, "entry", "", [(always, -1)])], accesses, [], {}, {}, {}, {}, set(), {})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_folding_and_narrowing_keep_every_value(seed: int) -> None:
    rng = random.Random(seed)
    g = Graph()
    nodes, values = grow(rng, g, 25)
    process = wrap(g, nodes[-6:])
    balance(process)
    narrow(process, {})
    for _ in range(12):
        leaves = {f"x{k}": rng.choice((0, 0xFFFF, rng.getrandbits(16))) for k in range(4)}
        for node, value in ((n, evaluate(n, leaves)) for n in nodes):
            low = value & ((1 << g.signed_bits(node)) - 1)
            sign = low >> (g.signed_bits(node) - 1) << g.signed_bits(node)
            assert (low - sign) & ((1 << node.width) - 1) == value, "bits above the sign"
            assert value >> g.unsigned_bits(node) == 0
        expected = [f(leaves) for f in values[-6:]]
        assert [evaluate(n, leaves) for n in nodes[-6:]] == expected, "folded while built"
        found = [evaluate(a.data, leaves) for a in process.accesses if a.data is not None]
        assert found == expected, "balanced and narrowed"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_sum_of_products_is_one_node_of_the_same_value(seed: int) -> None:
    rng = random.Random(seed)
    g = Graph()
    width = rng.choice((20, 33, 44, 64))
    leaves = {f"x{k}": rng.choice((rng.getrandbits(16), 1 << 15, 0)) for k in range(8)}
    words = [g.leaf("input", f"x{k}", 16) for k in range(8)]
    widened = [(g.sext if rng.random() < 0.7 else g.zext)(x, width) for x in words]
    terms = [g.arithmetic("mul", *rng.sample(widened, 2)) for _ in range(rng.randrange(2, 7))]
    terms += [g.arithmetic("mul", widened[0], widened[0]), *rng.sample(widened, rng.randrange(3))]
    rng.shuffle(terms)
    total = terms[0]
    for k, term in enumerate(terms[1:]):
        if k == 2:  # as C++ wraps a sum of fewer bits
            total = g.sext(g.slice(total, 0, width - 3), width)
        total = g.arithmetic("add", total, term)
    wanted = g.slice(total, 0, width - rng.choice((0, 3)))
    process = wrap(g, [wanted])
    balance(process)
    narrow(process, {})
    (access,) = process.accesses
    assert access.data is not None
    assert evaluate(access.data, leaves) == evaluate(wanted, leaves)


def test_products_summed_in_fewer_bits_than_c_has_are_one_node() -> None:
    g = Graph()
    words = [g.sext(g.leaf("input", f"x{k}", 16), 64) for k in range(8)]
    total = g.sext(g.leaf("input", "offset", 20), 64)
    for a, b in zip(words[::2], words[1::2], strict=True):
        total = g.sext(g.slice(g.arithmetic("add", total, g.arithmetic("mul", a, b)), 0, 40), 64)
    process = wrap(g, [g.slice(total, 0, 30), g.slice(total, 30, 10)])
    balance(process)
    narrow(process, {})
    made = [n for n in process.graph.nodes if n.op in ("dot", "add", "mul")]
    assert [n.op for n in made] == ["dot"]
    assert len(made[0].args) == 9, "four products and an addend"


def test_a_saturated_value_has_no_more_bits_than_it_fills() -> None:
    g = Graph()
    x = g.leaf("input", "x0", 32)
    negative = g.slice(x, 31, 1)
    fits = g.leaf("input", "x1", 1)
    limit = g.mux(negative, g.const(0xFFF80000, 32), g.const(0x0007FFFF, 32))
    value = g.mux(fits, g.sext(g.slice(x, 0, 20), 32), limit)
    assert g.signed_bits(limit) == g.signed_bits(value) == 20
    assert g.signed_bits(g.bitwise("xor", g.sext(g.slice(x, 0, 5), 32), g.sext(g.slice(x, 8, 7), 32))) == 7
    assert g.signed_bits(g.invert(g.sext(g.slice(x, 0, 5), 32))) == 5


def test_a_bit_is_the_carry_into_a_sum() -> None:
    g = Graph()
    a, b = (g.sext(g.leaf("input", name, 9), 32) for name in ("x0", "x1"))
    bit = g.zext(g.leaf("input", "x2", 1), 32)
    wanted = g.arithmetic("add", g.arithmetic("add", a, bit), b)
    process = wrap(g, [wanted])
    balance(process)
    narrow(process, {})
    (access,) = process.accesses
    assert access.data is not None
    assert [(n.op, n.width) for n in process.graph.nodes if n.op == "add"] == [("add", 11)]
    for x0, x1, x2 in ((0, 0, 1), (255, 255, 1), (256, 256, 0), (511, 1, 1)):
        leaves = {"x0": x0, "x1": x1, "x2": x2}
        assert evaluate(access.data, leaves) == evaluate(wanted, leaves)


def test_inserting_a_slice_is_wiring() -> None:
    g = Graph()
    word, piece = g.leaf("input", "word", 32), g.leaf("input", "piece", 8)
    cleared = g.bitwise("and", word, g.const(0xFFFF00FF, 32))
    moved = g.shift("shl", g.zext(piece, 32), g.const(8, 32))
    joined = g.bitwise("or", cleared, moved)
    assert [(p.op, p.width) for p in joined.parts] == [("slice", 8), ("input", 8), ("slice", 16)]


def test_what_is_wiring_or_one_multiplexer_takes_no_more() -> None:
    g = Graph()
    bit, word = g.leaf("input", "bit", 1), g.leaf("input", "word", 32)
    by = g.mux(bit, g.const(16, 32), g.const(0, 32))
    assert [p.op for p in by.parts] == ["const", "input", "const"], "of two constants"
    assert g.shift("lshr", word, by).op in ("mux", "concat"), "by one bit's weight"


def test_a_shift_is_as_wide_as_its_users_need() -> None:
    g = Graph()
    word, amount = g.leaf("input", "word", 64), g.leaf("input", "amount", 64)
    process = wrap(g, [g.slice(g.shift("ashr", word, amount), 0, 8)])
    narrow(process, {})
    narrow(process, {})
    (data,) = [a.data for a in process.accesses]
    assert data is not None
    assert [(p.op, p.width) for p in data.parts] == [("ashr", 8)]


def test_a_chain_of_additions_becomes_a_tree() -> None:
    g = Graph()
    total = g.const(0, 32)
    for k in range(16):
        total = g.arithmetic("add", total, g.sext(g.leaf("input", f"x{k}", 8), 32))
    process = wrap(g, [total])
    balance(process)
    narrow(process, {})

    def depth(node: Node) -> int:
        return max((depth(a) for a in node.args), default=0) + (node.op == "add")

    (root,) = [a.data for a in process.accesses]
    assert root is not None
    assert depth(root) == 4
    assert max(n.width for n in process.graph.nodes if n.op == "add") == 12, "16 sums of 8 bits fill 12"


def test_a_sum_adds_its_own_register_last() -> None:
    g = Graph()
    register = g.leaf("reg", "sum", 20)
    total = register
    for k in range(8):
        total = g.arithmetic("add", total, g.zext(g.leaf("input", f"x{k}", 8), 20))
    process = wrap(g, [register])
    process.registers = {"sum": 20}
    process.writes = [RegisterWrite("sum", 0, g.const(1, 1), total)]
    balance(process)
    assert any(a.op == "reg" for a in process.writes[0].value.args)


def test_a_stream_is_as_wide_as_its_reader_needs() -> None:
    g = Graph()
    a, b = g.leaf("input", "a", 24), g.leaf("input", "b", 24)
    process = wrap(g, [g.arithmetic("mul", a, b)])
    narrow(process, {"out0": 6})
    (access,) = process.accesses
    assert access.data is not None
    assert access.data.width == 6
    assert all(n.width <= 6 for n in process.graph.nodes if n.op == "mul")


@pytest.mark.parametrize("outer", [True, False])
def test_a_join_of_branches_has_the_predicate_of_their_split(outer: bool) -> None:
    g = Graph()
    p, c = g.leaf("input", "p", 1), g.leaf("input", "c", 1)
    condition = p if outer else g.const(1, 1)
    taken, not_taken = g.bitwise("and", condition, c), g.bitwise("and", condition, g.invert(c))
    assert g.bitwise("or", taken, not_taken) is condition
