"""The operations of `docs/numbers.md` on single Python integers, to check the NumPy reference against.

Written from the page, loop by loop, with unbounded integers; only the tables are shared.
"""

from __future__ import annotations

from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNorm,
    IntegerPool,
    IntegerRoute,
    Raw,
    Requantise,
    Widen,
)
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table, exp2_table, reciprocal_table, rsqrt_table, sigmoid_table
from moehls.network.operations import ActivationForm

Matrix = list[list[int]]


def rs(x: int, n: int) -> int:
    return (x + (1 << (n - 1))) >> n if n else x


def halved(x: int, times: int) -> int:
    for _ in range(times):
        x = (x + ((x >> 1) & 1)) >> 1
    return x


def clamp(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


def sat(x: int, bits: int) -> int:
    return clamp(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def usat(x: int, bits: int) -> int:
    return clamp(x, 0, (1 << bits) - 1)


def requantise(acc: int, b: int, m: int, s: int, p: Precision) -> int:
    return sat(rs((acc + b) * m, s), p.requantised_bits)


def dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def reciprocal(s: int) -> tuple[int, int]:
    length = s.bit_length()
    a = s << (18 - length) if length <= 18 else s >> (length - 18)
    r0 = int(reciprocal_table()[(a >> 10) - 128])
    d = rs(2 * 2**34 - a * r0, 17)
    return min(rs(r0 * d, 17), 2**17 - 1), length


def rsqrt(v: int) -> tuple[int, int]:
    length = v.bit_length()
    e = length + length % 2
    a = v << (32 - e) if e <= 32 else v >> (e - 32)
    r0 = int(rsqrt_table()[(a >> 24) - 64])
    q = rs(r0 * r0, 16)
    d = rs(3 * 2**34 - (a >> 14) * q, 17)
    return min(rs(r0 * d, 18), 2**17 - 1), e


def exponential(t: int, fraction: int, top: int) -> tuple[int, int]:
    """(table value, c)."""
    c = -((-t) >> fraction)
    return int(exp2_table(fraction, top)[c * 2**fraction - t]), c


def sigmoid(t: int, fraction: int) -> int:
    table, step = [int(x) for x in sigmoid_table()], fraction - 4
    i, w = min(abs(t) >> step, 272), abs(t) & (2**step - 1)
    tail = table[i] - rs((table[i] - table[i + 1]) * w, step) if i < 272 else 0
    return tail if t < 0 else 65535 - tail


def gelu(g: int, p: Precision, form: ActivationForm) -> int:
    table = [int(x) for x in delta_table(form, p.delta_fraction, p.delta_step)]
    step = p.gelu_fraction - p.delta_step
    u = abs(g)
    i, w = u >> step, u & (2**step - 1)
    delta = 0 if i >= len(table) - 1 else table[i] + rs((table[i + 1] - table[i]) * w, step)
    return (max(g, 0) << (p.delta_fraction - p.gelu_fraction)) - delta


def embed(op: IntegerEmbed, x: Matrix, p: Precision) -> Matrix:
    weight, b, m, s = op.weight.tolist(), op.scaling.bias, op.scaling.multiplier, op.scaling.shift
    rows: Matrix = op.initial.tolist()
    for n, row in enumerate(rows):
        for c in range(len(row)):
            patch = 0
            if n >= op.prefix:
                patch = requantise(dot(x[n - op.prefix], weight[c]), int(b[c]), int(m[c]), int(s[c]), p)
            row[c] = sat(row[c] + patch, p.residual_bits)
    return rows


def norm(op: IntegerNorm, residual: Matrix, p: Precision) -> tuple[Matrix, Matrix]:
    b, g, s = op.scaling.bias.tolist(), op.scaling.multiplier.tolist(), op.scaling.shift.tolist()
    fine: Matrix = []
    d = len(residual[0]) // op.heads
    parts = [row[h * d : (h + 1) * d] for row in residual[op.start : op.stop] for h in range(op.heads)]
    for x in parts:
        s1, s2 = sum(x) if op.centred else 0, sum(v * v for v in x)
        r, e = rsqrt(max(d * s2 - s1 * s1 + op.epsilon, 1))
        n = [sat(rs((d * v - s1) * r, e // 2 + 16 - p.norm_fraction), p.norm_bits) for v in x]
        n = list(x) if op.plain else n
        row = [sat(rs(n[c] * g[c] + b[c], s[c]), p.fine_bits) for c in range(d)]
        fine.append(row)
    fine = [[v for row in fine[n : n + op.heads] for v in row] for n in range(0, len(fine), op.heads)]
    return fine, [[sat(rs(v, p.fine_shift), p.activation_bits) for v in row] for row in fine]


def linear(op: IntegerLinear, x: Matrix, other: Matrix | None, p: Precision, form: ActivationForm) -> Matrix:
    weight = op.weight.tolist()
    b, m, s = op.scaling.bias.tolist(), op.scaling.multiplier.tolist(), op.scaling.shift.tolist()
    result = []
    for n, tokens in enumerate(x):
        row = []
        for o, w in enumerate(weight):
            acc = dot(tokens, w)
            match op.epilogue:
                case Raw():
                    row.append(acc + b[o])
                case Requantise():
                    row.append(sat(requantise(acc, b[o], m[o], s[o], p), p.activation_bits))
                case Widen():
                    row.append(sat(requantise(acc, b[o], m[o], s[o], p), p.residual_bits))
                case AddResidual():
                    assert other is not None
                    row.append(sat(other[n][o] + requantise(acc, b[o], m[o], s[o], p), p.residual_bits))
                case GeluRequantise(multiplier=m2, shift=s2, offset=offset):
                    g = sat(requantise(acc, b[o], m[o], s[o], p), p.gelu_bits)
                    row.append(usat(rs((gelu(g, p, form) + offset) * int(m2[o]), s2), p.activation_bits))
                case GatedRequantise(multiplier=m2, shift=s2):
                    assert other is not None
                    g = sat(requantise(acc, b[o], m[o], s[o], p), p.gelu_bits)
                    row.append(sat(rs(gelu(g, p, form) * other[n][o] * int(m2[o]), s2), p.activation_bits))
        result.append(row)
    return result


def attention(op: IntegerAttention, q: Matrix, k: Matrix, v: Matrix, p: Precision) -> Matrix:
    d = len(q[0]) // op.heads
    b, m, s = op.scaling.bias.tolist(), op.scaling.multiplier.tolist(), op.scaling.shift.tolist()
    result = [[0] * len(q[0]) for _ in q]
    for h in range(op.heads):
        channels = range(h * d, (h + 1) * d)
        m_h, s_h = int(op.score_multiplier[h]), int(op.score_shift[h])
        for i in range(len(q)):
            powers = []
            for j in range(len(k)):
                entry = 0 if op.bias is None else int(op.bias.entries[h, i, j])
                bias = 0 if op.bias is None else entry * 2 ** int(op.bias.shift[h])
                score = sat(requantise(sum(q[i][c] * k[j][c] for c in channels), bias, m_h, s_h, p), p.score_bits)
                if entry == -(2**15):
                    score = -(2 ** (p.score_bits - p.score_fraction) - 1) * 2**p.score_fraction
                powers.append(exponential(score, p.score_fraction, 2**p.activation_bits - 1))
            largest = max(c for _, c in powers)
            weights = [halved(value, largest - c) for value, c in powers]
            r, length = reciprocal(sum(weights))
            for c in channels:
                total = sum(weights[j] * v[j][c] for j in range(len(v)))
                z = sat(rs(total * r, length + 16 - p.context_fraction), p.requantised_bits)
                result[i][c] = sat(requantise(z, b[c], m[c], s[c], p), p.activation_bits)
    return result


def pool(op: IntegerPool, x: Matrix, p: Precision) -> Matrix:
    bits = p.activation_bits if op.of_fine else p.residual_bits
    row = []
    for c in range(len(x[0])):
        parameters = (int(op.scaling.bias[c]), int(op.scaling.multiplier[c]), int(op.scaling.shift[c]))
        row.append(sat(requantise(sum(x[n][c] for n in range(op.start, op.stop)), *parameters, p), bits))
    return [row]


def route(op: IntegerRoute, fine: Matrix, task: int, p: Precision) -> tuple[Matrix, Matrix, Matrix]:
    """(logits, chosen, gates)."""
    weight, bias = op.weight[task].tolist(), op.bias[task].tolist()
    m, s = int(op.multiplier[task]), int(op.shift[task])
    logits, chosen, gates = [], [], []
    known: list[dict[int, int]] = []
    for x in fine:
        row = [dot(x, w) + b for w, b in zip(weight, bias, strict=True)]
        eligible = list(range(len(row)))
        rank = row
        if op.selection is not None:
            added = op.selection[task].tolist()
            rank = [
                sigmoid(sat(rs(x * m, s), p.logit_bits), p.logit_fraction) + b for x, b in zip(row, added, strict=True)
            ]
        if op.group:
            ordered = [sorted(rank[g : g + op.group], reverse=True) for g in range(0, len(row), op.group)]
            best = [sum(group[: 2 if op.pairs else 1]) for group in ordered]
            groups = sorted(range(len(best)), key=lambda g: (-best[g], g))[: op.kept_groups]
            eligible = [e for e in eligible if e // op.group in groups]
        order = sorted(eligible, key=lambda e: (-rank[e], e))[: op.k]
        counted = range(len(row)) if op.normalisation == "all" else order
        t = {e: sat(rs(row[e] * m, s), p.logit_bits) for e in counted}
        if op.score == "sigmoid":
            values = {e: sigmoid(t[e], p.logit_fraction) for e in counted}
        else:
            powers = {e: exponential(t[e], p.logit_fraction, 65535) for e in counted}
            largest = max(c for _, c in powers.values())
            values = {e: value >> (largest - c) for e, (value, c) in powers.items()}
        total = 65535 if op.normalisation == "none" else max(sum(values.values()), 1)
        small = {e for e in order if op.threshold and values[e] * 2**15 <= op.threshold * total}
        if op.renormalise:
            total = max(sum(values[e] for e in order if e not in small), 1)
        r, length = reciprocal(total)
        logits.append(row)
        known.append(values)
        chosen.append([~e if e in small else e for e in order])
        gates.append([0 if e in small else min(rs(values[e] * r, length + 1), 2**15) for e in order])
    places = [(n, i) for n in range(len(fine)) for i in range(op.k)]
    taken = [0] * len(weight)
    for n, i in sorted(places, key=lambda place: place[1]) if op.priority == "choice" else places:
        e = chosen[n][i]
        if e < 0:
            continue
        if op.capacity and taken[e] == op.capacity:
            chosen[n][i], gates[n][i] = ~e, 0
        elif op.capacity:
            taken[e] += 1
    for n in range(len(fine)) if op.room else ():
        r, length = reciprocal(max(sum(known[n][e] for e in chosen[n] if e >= 0), 1))
        gates[n] = [0 if e < 0 else min(rs(known[n][e] * r, length + 1), 2**15) for e in chosen[n]]
    return logits, chosen, gates


def experts(
    op: IntegerExperts, x: Matrix, chosen: Matrix, gates: Matrix, residual: Matrix, p: Precision, form: ActivationForm
) -> Matrix:
    result = [list(row) for row in residual]
    first, second = op.first_weight.tolist(), op.second_weight.tolist()
    one, two = op.first_scaling, op.second_scaling
    for e in range(len(first)):
        for n in range(len(x)):
            if e not in chosen[n]:
                continue
            gate, own = gates[n][chosen[n].index(e)], x[n]
            if op.weigh_inputs:
                own, gate = (
                    [sat(rs(value * gate, p.gate_fraction), p.activation_bits) for value in own],
                    1 << p.gate_fraction,
                )
            h = []
            for o, w in enumerate(first[e]):
                parameters = (int(one.bias[e, o]), int(one.multiplier[e, o]), int(one.shift[e, o]))
                g = sat(requantise(dot(own, w), *parameters, p), p.gelu_bits)
                if op.up_weight is None or op.up_scaling is None:
                    y = (gelu(g, p, form) + op.gelu.offset) * int(op.gelu.multiplier[e, o])
                    h.append(usat(rs(y, op.gelu.shift), p.activation_bits))
                    continue
                up = op.up_scaling
                parameters = (int(up.bias[e, o]), int(up.multiplier[e, o]), int(up.shift[e, o]))
                u = sat(requantise(dot(own, op.up_weight[e, o].tolist()), *parameters, p), p.activation_bits)
                y = gelu(g, p, form) * u * int(op.gelu.multiplier[e, o])
                h.append(sat(rs(y, op.gelu.shift), p.activation_bits))
            for c, w in enumerate(second[e]):
                parameters = (int(two.bias[e, c]), int(two.multiplier[e, c]), int(two.shift[e, c]))
                z = requantise(dot(h, w), *parameters, p)
                result[n][c] = sat(result[n][c] + rs(z * gate, p.gate_fraction + p.expert_fraction), p.residual_bits)
    return result
