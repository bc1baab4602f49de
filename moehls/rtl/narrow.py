"""Passes over a process's data flow: balance sums, narrow every value to the bits that are needed and can differ.

Each pass builds the graph anew; nothing is changed in place.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping

from moehls.rtl.cascade import dot, fits, sum_of_products
from moehls.rtl.graph import Graph, Node
from moehls.rtl.ir import Process

Rule = Callable[[Graph, Node, list[Node]], Node]


def rebuild(graph: Graph, node: Node, args: list[Node]) -> Node:
    """`node` over other arguments (of the same widths), folded anew."""
    op = node.op
    if op in ("const", "input", "reg", "read"):
        return graph.make(op, (), node.width, node.aux)
    if op == "concat":
        return graph.concat(args)
    if op == "slice":
        return graph.slice(args[0], node.low, node.width)
    if op == "sext":
        return graph.sext(args[0], node.width)
    if op in ("and", "or", "xor"):
        return graph.bitwise(op, *args)
    if op == "not":
        return graph.invert(args[0])
    if op == "mux":
        return graph.mux(*args)
    if op in ("add", "sub", "mul"):
        return graph.arithmetic(op, *args)  # type: ignore[arg-type]
    if op == "dot":
        return dot(graph, args, node.width)
    if op in ("shl", "lshr", "ashr"):
        return graph.slice(graph.shift(op, *args), 0, node.width)  # type: ignore[arg-type]
    if op in ("eq", "ult", "slt"):
        return graph.compare(op, *args)  # type: ignore[arg-type]
    return graph.make(op, args, node.width, node.aux)


def rewrite(process: Process, rule: Rule) -> None:
    """Replace the process's graph by the one `rule` gives, node by node from the leaves."""
    fresh = Graph()
    live = _live(process)
    mapped: dict[int, Node] = {}
    for node in process.graph.nodes:
        if node.id in live:
            fresh.place = process.graph.places[node.id]
            mapped[node.id] = rule(fresh, node, [mapped[a.id] for a in node.args])
            if node.id in process.graph.labels:
                fresh.label(mapped[node.id], process.graph.labels[node.id])
    process.replace(fresh, lambda n: mapped[n.id])


def _live(process: Process) -> set[int]:
    found: set[int] = set()
    todo = process.roots()
    while todo:
        node = todo.pop()
        if node.id not in found:
            found.add(node.id)
            todo.extend(node.args)
    return found


def balance(process: Process) -> None:
    """Chains of additions become trees: what is ready first is added first, what depends on the sum's own register last.

    Products in a sum, two or more, become one node with what is added to them (`cascade`).
    """
    users: dict[int, int] = defaultdict(int)
    live = _live(process)
    for node in process.graph.nodes:
        for a in node.args if node.id in live else ():
            users[a.id] += 1
    for root in process.roots():
        users[root.id] += 2
    recurrent = _recurrent(process)
    depth: dict[int, int] = {}
    need, _ = demands(process, {})
    inner: set[int] = set()

    def below(node: Node, a: Node) -> Node:
        """An operand without the wrap to fewer bits, if those are all that anybody wants."""
        if a.op == "sext" and a.args[0].op == "slice" and a.args[0].low == 0 and need[node.id] <= a.args[0].width:
            wrapped = a.args[0]
            if users[a.id] == users[wrapped.id] == 1 and wrapped.args[0].width == a.width:
                return wrapped.args[0]
        return a

    for node in process.graph.nodes:
        if node.op == "add" and node.id in live:
            operands = [below(node, a) for a in node.args]
            inner |= {a.id for a in operands if a.op == "add" and users[a.id] == 1}

    def leaves(node: Node) -> list[Node]:
        found: list[Node] = []
        for a in node.args:
            summand = below(node, a)
            found += leaves(summand) if summand.op == "add" and summand.id in inner else [a]
        return found

    def rule(graph: Graph, node: Node, args: list[Node]) -> Node:
        if node.id in inner:
            return graph.const(0, node.width)  # its tree stands at the root
        if node.op == "add":
            result = _tree(graph, summands(graph, node.width, leaves(node)), depth)
        else:
            result = rebuild(graph, node, args)
        mapped[node.id] = result
        return result

    def summands(graph: Graph, width: int, terms: list[Node]) -> list[tuple[int, Node]]:
        late = [(1 << 20, mapped[x.id]) for x in terms if x.id in recurrent]
        early = [x for x in terms if x.id not in recurrent]
        products = {x.id: pair for x in early if (pair := factors(graph, x))}
        others = [(_level(mapped[x.id], depth), mapped[x.id]) for x in early if x.id not in products]
        if len(products) > 1:
            addend = _tree(graph, others, depth) if others else None
            if made := sum_of_products(graph, list(products.values()), addend, width):
                return [*late, (_level(made, depth), made)]
        return late + [(_level(mapped[x.id], depth), mapped[x.id]) for x in early]

    def factors(graph: Graph, term: Node) -> tuple[Node, Node] | None:
        """Of a product that nothing else uses."""
        extended = term.op == "sext" or (term.op == "concat" and len(term.args) == 2 and _is_zero(term.args[1]))
        product = term.args[0] if extended else term
        if product.op != "mul" or users[term.id] > 1 or users[product.id] > 1:
            return None
        a, b = (mapped[x.id] for x in product.args)
        whole = graph.signed_bits(a) + graph.signed_bits(b) <= product.width and (term.op != "concat" or a is b)
        return (a, b) if (term is product or whole) and fits(graph, a, b) else None

    mapped: dict[int, Node] = {}
    rewrite(process, rule)


def _is_zero(node: Node) -> bool:
    return node.op == "const" and node.value == 0


def _level(node: Node, depth: dict[int, int]) -> int:
    """Operations on the longest path to a node; `depth` keeps what is known."""
    todo = [node]
    while todo:
        unknown = [a for a in todo[-1].args if a.id not in depth]
        if unknown:
            todo += unknown
        else:
            top = todo.pop()
            depth[top.id] = max((depth[a.id] for a in top.args), default=-1) + 1
    return depth[node.id]


def _tree(graph: Graph, leaves: list[tuple[int, Node]], depth: dict[int, int]) -> Node:
    """The sum of (depth, summand): what is there first is added first; a summand of one bit is the carry into another sum."""
    bits = sorted((i for i, (_, n) in enumerate(leaves) if _is_bit(graph, n)), key=lambda i: leaves[i][0])
    adders = len(leaves) - len(bits) - 1
    carries = bits[: max(adders, 0)]
    heap = [(d, i, n) for i, (d, n) in enumerate(leaves) if i not in carries]
    heapq.heapify(heap)
    count = len(leaves)
    while len(heap) > 1:
        (d0, _, a), (d1, _, b) = heapq.heappop(heap), heapq.heappop(heap)
        level = max(d0, d1)
        if carries and (leaves[carries[0]][0] <= level or len(heap) < len(carries)):
            d2, bit = leaves[carries.pop(0)]
            total, level = _with_carry(graph, a, b, bit), max(level, d2)
        else:
            total = graph.arithmetic("add", a, b)
        depth.setdefault(total.id, level + 1)
        heapq.heappush(heap, (level + 1, count, total))
        count += 1
    return heap[0][2]


def _is_bit(graph: Graph, node: Node) -> bool:
    return node.op != "const" and graph.unsigned_bits(node) == 1


def _with_carry(graph: Graph, a: Node, b: Node, bit: Node) -> Node:
    """a + b + bit with one chain of carries: one bit below them, where 1 and the bit are added."""
    below = graph.slice(bit, 0, 1)
    total = graph.arithmetic("add", graph.concat((graph.const(1, 1), a)), graph.concat((below, b)))
    return graph.slice(total, 1, a.width)


def _recurrent(process: Process) -> set[int]:
    """Nodes that depend on a register whose next value depends on them."""
    writes: dict[str, list[Node]] = defaultdict(list)
    for w in process.writes:
        writes[w.register].append(w.value)
    found: set[int] = set()
    reach: dict[str, set[int]] = {}
    for node in process.graph.nodes:
        if node.op == "reg":
            reach[str(node.aux)] = _above(writes[str(node.aux)])
    for node in process.graph.nodes:
        if node.op == "reg" and node.id in reach[str(node.aux)]:
            found |= _between(process, node, reach[str(node.aux)])
    return found


def _above(nodes: list[Node]) -> set[int]:
    found: set[int] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.id not in found:
            found.add(node.id)
            todo.extend(node.args)
    return found


def _between(process: Process, register: Node, above: set[int]) -> set[int]:
    found = {register.id}
    for node in process.graph.nodes[register.id :]:
        if node.id in above and any(a.id in found for a in node.args):
            found.add(node.id)
    return found


def demands(process: Process, widths: Mapping[str, int]) -> tuple[dict[int, int], dict[str, int]]:
    """How many low bits of each node, and of each register, port and input, anything uses.

    `widths` are the payload widths of written ports, where they are known.
    """
    need: dict[int, int] = defaultdict(int)
    named: dict[str, int] = defaultdict(int)
    values: dict[str, list[Node]] = defaultdict(list)
    for w in process.writes:
        values[w.register].append(w.value)
        need[w.predicate.id] = 1
    for a in process.accesses:
        need[a.predicate.id] = 1
        for n in (a.address, *a.arguments):
            if n is not None:
                need[n.id] = n.width
        if a.data is not None:
            need[a.data.id] = max(need[a.data.id], min(a.data.width, widths.get(a.port, a.data.width)))
    for step in process.steps:
        for p, _ in step.successors:
            need[p.id] = 1
    changed = True
    while changed:
        for node in reversed(process.graph.nodes):
            if need[node.id]:
                _spread(node, need)
                if node.op in ("reg", "read", "input"):
                    named[str(node.aux)] = max(named[str(node.aux)], need[node.id])
        changed = False
        for register, nodes in values.items():
            for value in nodes:
                if need[value.id] < named[register]:
                    need[value.id] = named[register]
                    changed = True
    return need, named


def _spread(node: Node, need: dict[int, int]) -> None:
    d = need[node.id]

    def ask(a: Node, bits: int) -> None:
        need[a.id] = max(need[a.id], min(bits, a.width))

    if node.op in ("add", "sub", "mul", "and", "or", "xor", "not", "sext"):
        for a in node.args:
            ask(a, d)
    elif node.op == "mux":
        ask(node.args[0], 1)
        ask(node.args[1], d)
        ask(node.args[2], d)
    elif node.op == "slice":
        ask(node.args[0], node.low + d)
    elif node.op == "concat":
        at = 0
        for a in node.args:
            if at < d:
                ask(a, d - at)
            at += a.width
    elif node.op == "shl":
        ask(node.args[0], d)
        ask(node.args[1], node.args[1].width)
    else:
        for a in node.args:
            ask(a, a.width)


def narrow(process: Process, widths: Mapping[str, int]) -> None:
    """Arithmetic in as many bits as its operands fill and its users read; registers likewise.

    Args:
        widths: payload bits of each written port (`Access.port`), where its readers are known.
    """
    need, named = demands(process, widths)
    named = {name: width for name, width in named.items() if width or name not in process.registers}

    def rule(graph: Graph, node: Node, args: list[Node]) -> Node:
        d = need[node.id]
        if d == 0:
            return graph.const(0, node.width)
        if node.op == "dot" and d < node.width:
            return graph.zext(dot(graph, args, d), node.width)
        if node.op in ("add", "sub", "mul"):
            return graph.low_bits(_arithmetic(graph, node.op, *(graph.slice(a, 0, d) for a in args)), node.width)
        if d < node.width and node.op in ("and", "or", "xor", "mux", "not"):
            cut = [a if node.op == "mux" and i == 0 else graph.slice(a, 0, d) for i, a in enumerate(args)]
            if node.op == "mux":
                made = graph.mux(*cut)
            else:
                made = graph.invert(cut[0]) if node.op == "not" else graph.bitwise(node.op, *cut)
            return graph.zext(made, node.width)
        if node.op in ("lshr", "ashr") and d < args[0].width:
            low = graph.slice(graph.shift(node.op, *args), 0, d)  # type: ignore[arg-type]
            if low.op == "slice" and low.args[0].op == node.op:
                low = graph.make(node.op, low.args[0].args, d)
            return graph.zext(low, node.width)
        if node.op == "rom" and d < node.width:
            return graph.zext(graph.make("rom", args, d, node.aux), node.width)
        if node.op in ("reg", "read"):
            return graph.zext(graph.leaf(node.op, str(node.aux), d), node.width)
        return rebuild(graph, node, args)

    rewrite(process, rule)
    for write in process.writes:
        if write.register in named:
            write.value = process.graph.slice(write.value, 0, named[write.register])
    process.writes = [w for w in process.writes if w.register in named]
    process.registers = {r: named[r] for r in process.registers if r in named}
    for access in process.accesses:
        if access.data is not None and access.port in widths:
            access.data = process.graph.low_bits(access.data, widths[access.port])
        if access.kind == "swrite" and access.data is not None:
            process.streams[access.port] = ("out", access.data.width)
        if access.kind == "sread":
            process.streams[access.port] = ("in", max(1, named.get(access.port, 1)))


def _arithmetic(graph: Graph, op: str, a: Node, b: Node) -> Node:
    """op in the fewest bits that give the same result, extended again."""
    width = a.width
    ua, ub = graph.unsigned_bits(a), graph.unsigned_bits(b)
    sa, sb = graph.signed_bits(a), graph.signed_bits(b)
    unsigned = ua + ub if op == "mul" else max(ua, ub) + 1
    signed = sa + sb if op == "mul" else max(sa, sb) + 1
    if op != "sub" and 0 < unsigned < width:
        return graph.zext(graph.arithmetic(op, graph.slice(a, 0, unsigned), graph.slice(b, 0, unsigned)), width)  # type: ignore[arg-type]
    if signed < width:
        return graph.sext(graph.arithmetic(op, graph.slice(a, 0, signed), graph.slice(b, 0, signed)), width)  # type: ignore[arg-type]
    if op == "mul":  # of which fewer bits are read than it has: its factors need no more than they fill
        a, b = (graph.sext(graph.slice(x, 0, bits), width) for x, bits in ((a, sa), (b, sb)))
    return graph.arithmetic(op, a, b)  # type: ignore[arg-type]
