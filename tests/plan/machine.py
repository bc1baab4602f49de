"""A slow functional model of the machine, written from `docs/accelerator.md`, driven by the bytes of the stream.

It knows nothing of the integer network or of the plan: memories, a stream of words, the beats of the input. Memories
start with random bits, so that a program which reads what it never wrote shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from moehls.integer.arithmetic import exp2, exp2_at, gelu, halved, reciprocal, requantise, rs, rsqrt, sat, sigmoid, usat
from moehls.integer.operations import IntArray
from moehls.network.operations import ActivationForm
from moehls.plan.instruction import (
    ANY_TASK,
    FIELDS,
    HEADER_BITS,
    NO_EXPERT,
    Flag,
    Gating,
    Instruction,
    Kind,
    Mode,
    Source,
)
from moehls.plan.shape import Shape

BINDINGS = ((0, 3, 1), (0, 3, 2), (1, 2, 3), (3, 1, 0), (0, 1, 3), (2, 1, 3), (1, 3, 2), (3, 1, 2))
Trace = Callable[[int, "Machine"], None]


class Machine:
    """Memories and the step machine. `run` executes one frame and returns the result bytes."""

    def __init__(self, shape: Shape, forms: tuple[ActivationForm, ...], seed: int = 0) -> None:
        self.shape, self.forms, self.p = shape, forms, shape.precision
        rng = np.random.default_rng(seed)
        tt, b, ab = shape.token_parallel, shape.block, self.p.activation_bits
        self.data = [rng.integers(0, 1 << ab, (tt, shape.activation_depth, b)) for _ in range(4)]
        self.exponent = [np.zeros((tt, shape.activation_depth), np.int64) for _ in range(4)]
        self.residual = rng.integers(-(1 << 15), 1 << 15, (tt, shape.residual_depth, b))
        self.raw = rng.integers(-(1 << 31), 1 << 31, (shape.raw_depth, b))
        self.queue = np.zeros((shape.max_experts, shape.max_tokens, 3), np.int64)
        self.count = np.full(shape.max_experts, 3, np.int64)

    def run(self, stream: npt.NDArray[np.uint8], pixels: bytes, task: int, trace: Trace | None = None) -> bytes:
        """`stream` `[words, word_bytes]`, `pixels` the input bytes; `trace` sees the machine after every step."""
        words = iter(stream)
        self.pixels, self.results = np.frombuffer(pixels, np.uint8), bytearray()
        self.read_bytes = 0
        index = 0
        while True:
            at = index % (self.shape.word_bits // HEADER_BITS)
            if at == 0:
                headers = next(words)
            h = decode(headers[at * HEADER_BITS // 8 :])
            if h.kind == Kind.END:
                assert next(words, None) is None, "words after the end"
                assert self.read_bytes == len(self.pixels), "input left over"
                return bytes(self.results)
            payload = [next(words) for _ in range(h.payload_words)]
            own_task = h.task in (ANY_TASK, task)
            if own_task and (h.expert == NO_EXPERT or self.count[h.expert]):
                getattr(self, h.kind.name.lower())(h, payload)
            if trace is not None:
                trace(index, self)
            index += 1

    def input(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        b, size = self.shape.block, self.p.activation_bits // 8
        beat = max(b * size, 16)
        for row in range(h.rows):
            for block in range(h.n2):
                word = np.zeros(b, np.int64)
                if row >= h.n0:
                    part = self.pixels[self.read_bytes : self.read_bytes + b * size]
                    word = unsigned(part, size)
                    self.read_bytes += beat
                lane, group = row % self.shape.token_parallel, row // self.shape.token_parallel
                self.write(3, lane, h.y_base + group * h.n2 + block, word)

    def load(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        values = signed(np.concatenate(payload), 2).reshape(-1, self.shape.block)
        for row in range(h.rows):
            for block in range(h.n2):
                lane, group = row % self.shape.token_parallel, row // self.shape.token_parallel
                self.residual[lane, h.y_base + group * h.n2 + block] = values[row * h.n2 + block]

    def norm(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        assert h.n2 <= self.shape.norm_depth, "blocks of channels"
        p, tt, planes = self.p, self.shape.token_parallel, 16 // self.p.activation_bits
        bias, gain, shift, _ = (x.ravel() for x in self.parameters(payload, h.n2))
        gain = np.where(gain >= 1 << 15, gain - (1 << 16), gain)
        for row in range(h.rows):
            lane, group = (h.w_base + row) % tt, h.w_s0 + (h.w_base + row) // tt
            x = self.residual[lane, group * h.n2 : (group + 1) * h.n2].ravel()
            s1, s2 = 0 if h.flags & Flag.RMS else x.sum(), (x * x).sum()
            r, e = rsqrt(np.maximum(h.channels * s2 - s1 * s1 + h.epsilon, 1))
            n = sat(rs((h.channels * x - s1) * r, e // 2 + 16 - p.norm_fraction), p.norm_bits)
            n = x if h.flags & Flag.PLAIN else n
            fine = sat(rs(n * gain + bias, shift), p.fine_bits)
            operand = sat(rs(fine, p.fine_shift), p.activation_bits)
            lane, group = row % tt, row // tt
            for block, part in enumerate(operand.reshape(h.n2, -1)):
                self.write(h.mode, lane, h.y_base + group * h.n2 + block, part)
            if h.flags & Flag.PLANES:
                for plane in range(planes):
                    shown = fine >> (p.activation_bits * (planes - 1 - plane))
                    for block, part in enumerate(shown.reshape(h.n2, -1)):
                        self.write(2, lane, h.x_base + group * planes * h.n2 + plane * h.n2 + block, part)

    def linear(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        x, w, y = BINDINGS[h.binding]
        if h.mode == Mode.SOFTMAX:
            self.softmax(h, x, w, y, payload)
        elif h.mode == Mode.CONTEXT:
            self.context(h, x, w, y, payload)
        else:
            self.stream_linear(h, x, w, y, payload)

    def stream_linear(self, h: Instruction, x: int, w: int, y: int, payload: list[npt.NDArray[np.uint8]]) -> None:
        b, tt = self.shape.block, self.shape.token_parallel
        rows = self.count[h.expert] if h.expert != NO_EXPERT else h.rows
        groups = -(-rows // tt) if h.expert != NO_EXPERT else h.n1
        assert min(h.n2, h.split) <= self.shape.kept_depth, "words of kept weights"
        words = iter(payload)
        blocks = self.channels(words, h.mode)
        for i0 in range(h.n0):
            parameters = next(blocks)
            kept = [signed(next(words), self.p.weight_bits // 8).reshape(b, b) for _ in range(min(h.n2, h.split))]
            for i1 in range(groups):
                acc = np.zeros((tt, b), np.int64)
                for i2 in range(h.n2):
                    if i2 == h.split:
                        acc = acc << 8
                    address = h.x_base + i1 * h.x_s1 + i2 * h.x_s2
                    is_unsigned = bool(h.flags & Flag.X_UNSIGNED) or i2 >= h.split
                    acc = acc + self.operands(x, address, is_unsigned) @ kept[i2 % len(kept)].T
                factor = self.operands(w, h.w_base + i0 * h.w_s0 + i1 * h.w_s1, False) if h.mode == Mode.GATED else None
                tile = self.epilogue(h, acc, factor, *parameters)
                self.write_tile(h, y, i0, i1, tile, int(rows))
        assert next(words, None) is None, "payload left over"

    def epilogue(self, h: Instruction, acc: IntArray, factor: IntArray | None, *parameters: IntArray) -> IntArray:
        p = self.p
        bias, m, s, m2 = parameters
        if h.mode == Mode.RAW:
            return acc + bias
        z = requantise(acc, bias, m, s, p)
        if h.mode == Mode.REQUANTISE:
            return sat(z, p.activation_bits)
        if h.mode == Mode.GELU:
            activated = gelu(sat(z, p.gelu_bits), p, self.forms[h.multiplier]) + h.offset
            return usat(rs(activated * m2, h.shift), p.activation_bits)
        if factor is not None:
            activated = gelu(sat(z, p.gelu_bits), p, self.forms[h.multiplier])
            return sat(rs(activated * (factor * m2), h.shift), p.activation_bits)
        return z

    def write_tile(self, h: Instruction, y: int, i0: int, i1: int, tile: IntArray, rows: int) -> None:
        p, tt, address = self.p, self.shape.token_parallel, h.y_base + i0 * h.y_s0 + i1 * h.y_s1
        for lane in range(tt):
            row = i1 * tt + lane
            if h.mode in (Mode.REQUANTISE, Mode.GELU, Mode.GATED):
                self.write(y, lane, address, tile[lane])
            elif h.mode == Mode.RESIDUAL:
                self.residual[lane, address] = sat(self.residual[lane, address] + tile[lane], p.residual_bits)
            elif h.mode == Mode.WIDE:
                self.residual[lane, address] = sat(tile[lane], p.residual_bits)
            elif h.mode == Mode.RAW and row < rows:
                self.raw[h.y_base + row * h.y_s1 + i0 * h.y_s0] = tile[lane]
            elif h.mode == Mode.SCATTER and row < rows:
                to, group, gate = self.queue[h.expert, row]
                gate = 1 << p.gate_fraction if h.flags & Flag.PLAIN else gate
                scaled = rs(tile[lane] * gate, p.gate_fraction + p.expert_fraction)
                where = h.y_base + group * h.n0 + i0
                self.residual[to, where] = sat(self.residual[to, where] + scaled, p.residual_bits)

    def softmax(self, h: Instruction, x: int, w: int, y: int, payload: list[npt.NDArray[np.uint8]]) -> None:
        p, tt, b = self.p, self.shape.token_parallel, self.shape.block
        assert h.rows <= self.shape.max_tokens, "keys"
        words = iter(payload)
        lowest = -((1 << (p.score_bits - p.score_fraction)) - 1) << p.score_fraction
        for i0 in range(h.n0):
            running = np.zeros((tt, 1), np.int64)
            for i1 in range(h.n1):
                acc = np.zeros((tt, b), np.int64)
                for i2 in range(h.n2):
                    keys = np.zeros((b, b), np.int64)
                    keys[:tt] = self.operands(w, h.w_base + i0 * h.w_s0 + i1 * h.w_s1 + i2 * h.w_s2, False)
                    address = h.x_base + i0 * h.x_s0 + i1 * h.x_s1 + i2 * h.x_s2
                    acc = acc + self.operands(x, address, False) @ keys.T
                entries, one = np.zeros((tt, b), np.int64), np.ones(1, np.int64)
                if h.flags & Flag.PARAMETERS:
                    data = np.concatenate([next(words) for _ in range(-(-tt * tt * 16 // self.shape.word_bits))])
                    entries[:, :tt] = signed(data[: tt * tt * 2], 2).reshape(tt, tt)
                t = sat(requantise(acc, entries << h.offset, one * h.multiplier, one * h.shift, p), p.score_bits)
                t = np.where(entries == -(1 << 15), lowest, t)
                value, c = exp2(t, p.score_fraction, (1 << p.activation_bits) - 1)
                lane = np.arange(b)
                valid = (lane < tt) & (i1 * tt + lane < h.rows)
                highest = np.where(valid, c, np.iinfo(np.int32).min).max(axis=1, keepdims=True)
                before, running = running, highest if i1 == 0 else np.maximum(running, highest)
                rise = np.zeros_like(running) if i1 == 0 else np.minimum(running - before, 31)
                probability = np.where(valid, halved(value, running - np.where(valid, c, running)), 0)
                for q in range(tt):
                    self.write(y, q, h.y_base + i0 * h.y_s0 + i1 * h.y_s1, probability[q], int(rise[q, 0]))
        assert next(words, None) is None, "payload left over"

    def context(self, h: Instruction, x: int, w: int, y: int, payload: list[npt.NDArray[np.uint8]]) -> None:
        p, tt, b = self.p, self.shape.token_parallel, self.shape.block
        assert h.n1 <= self.shape.parameter_depth, "blocks of parameters"
        words = iter(payload)
        blocks = list(islice(self.channels(words, h.mode), h.n1))
        assert next(words, None) is None, "payload left over"
        bias, multiplier, shift, _ = (np.stack(field) for field in zip(*blocks, strict=True))
        for i0 in range(h.n0):
            sums = np.zeros((tt, 1), np.int64)
            for i1 in range(h.n1):
                acc, down = np.zeros((tt, b), np.int64), np.zeros((tt, 1), np.int64)
                for i2 in range(h.n2):
                    address = h.x_base + i0 * h.x_s0 + i1 * h.x_s1 + i2 * h.x_s2
                    probability = halved(self.operands(x, address, True), down)
                    down = np.minimum(down + self.exponent[x][:, address, None], 31)
                    if i1 == 0:
                        sums = sums + probability.sum(axis=1, keepdims=True)
                    values = np.zeros((b, b), np.int64)
                    values[:tt] = self.operands(w, h.w_base + i0 * h.w_s0 + i1 * h.w_s1 + i2 * h.w_s2, False)
                    acc = acc + probability @ values
                r, length = reciprocal(sums)
                z = sat(rs(acc * r, length + 16 - p.context_fraction), p.requantised_bits)
                tile = sat(requantise(z, bias[i1], multiplier[i1], shift[i1], p), p.activation_bits)
                for lane in range(tt):
                    self.write(y, lane, h.y_base + i0 * h.y_s0 + i1 * h.y_s1, tile[lane])

    def route(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        p = self.p
        assert h.n0 <= self.shape.max_experts, "experts"
        self.count[:] = 0
        places = []
        for choice in range(h.n1) if h.mode & Gating.BY_CHOICE else [None]:
            for row in range(h.rows):
                logits = self.raw[row * h.n2 : (row + 1) * h.n2].ravel()[: h.n0]
                t = sat(rs(logits * h.multiplier, np.array(h.shift)), p.logit_bits)
                rank = logits
                if h.mode & Gating.SELECTION:
                    rank = sigmoid(t, p.logit_fraction) + self.parameters(payload, h.n2)[0].ravel()[: h.n0]
                grouped = np.sort(rank.reshape(-1, self.shape.expert_group), axis=1) if h.x_base else rank[:0, None]
                best = grouped[:, -2:].sum(axis=1) if h.mode & Gating.PAIRS else grouped[:, -1:].sum(axis=1)
                groups = np.argsort(-best, kind="stable")[: h.x_base]
                order = [
                    e
                    for e in np.argsort(-rank, kind="stable")
                    if not h.x_base or e // self.shape.expert_group in groups
                ]
                chosen = np.array(order[: h.n1])
                over = chosen if h.flags & Flag.CHOSEN else np.arange(h.n0)
                value, c = exp2(t, p.logit_fraction, 65535)
                value = exp2_at(value, c, np.maximum(c[over].max(), c))
                if h.mode & Gating.SIGMOID:
                    value = sigmoid(t, p.logit_fraction)
                total = 65535 if h.mode & Gating.UNDIVIDED else max(value[over].sum(), 1)
                kept = [e for e in chosen if not h.offset or value[e] << p.gate_fraction > h.offset * total]
                if h.mode & Gating.RENORMALISE:
                    total = max(value[kept].sum(), 1)
                r, length = reciprocal(np.array([total]))
                gates = np.minimum(rs(value * r, length + 1), 1 << p.gate_fraction)
                for expert in sorted(kept):
                    in_turn = choice is None or chosen[choice] == expert
                    if in_turn and self.count[expert] < h.split:
                        lane, group = row % self.shape.token_parallel, row // self.shape.token_parallel
                        self.queue[expert, self.count[expert]] = lane, group, gates[expert]
                        places.append((row, expert, self.count[expert], value[expert]))
                        self.count[expert] += 1
        for row, expert, place, own in places if h.mode & Gating.ROOM else ():
            total = sum(value for token, _, _, value in places if token == row)
            r, length = reciprocal(np.array([max(total, 1)]))
            lane, group, _ = self.queue[expert, place]
            self.queue[expert, place] = lane, group, np.minimum(rs(own * r, length + 1), 1 << p.gate_fraction)[0]

    def pool(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        assert h.n2 <= self.shape.norm_depth, "blocks of channels"
        p, tt, planes = self.p, self.shape.token_parallel, 16 // self.p.activation_bits
        bias, multiplier, shift, _ = self.parameters(payload, h.n2)
        for block in range(h.n2):
            total = np.zeros(self.shape.block, np.int64)
            for row in range(h.rows):
                lane, group = (h.w_base + row) % tt, h.w_s0 + (h.w_base + row) // tt
                if h.mode == Source.RESIDUAL:
                    total += self.residual[lane, group * h.n2 + block]
                    continue
                fine = np.zeros(self.shape.block, np.int64)
                for plane in range(planes):
                    at = h.x_base + (group * planes + plane) * h.n2 + block
                    fine = (fine << p.activation_bits) | self.data[2][lane, at]
                total += (fine ^ (1 << 15)) - (1 << 15)
            y = requantise(total, bias[block], multiplier[block], shift[block], p)
            if h.mode == Source.RESIDUAL:
                self.residual[0, h.y_base + block] = sat(y, p.residual_bits)
            else:
                self.write(0, 0, h.y_base + block, sat(y, p.activation_bits))

    def gather(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        tt = self.shape.token_parallel
        for i in range(self.count[h.expert]):
            lane, group, gate = self.queue[h.expert, i]
            for block in range(h.n2):
                word = self.operands(0, h.x_base + group * h.n2 + block, False)[lane]
                if h.mode:
                    word = sat(rs(word * gate, self.p.gate_fraction), self.p.activation_bits)
                self.write(1, i % tt, h.y_base + i // tt * h.n2 + block, word)

    def store(self, h: Instruction, payload: list[npt.NDArray[np.uint8]]) -> None:
        tt, planes = self.shape.token_parallel, 16 // self.p.activation_bits
        for row in range(h.rows):
            lane, group = (h.w_base + row) % tt, h.w_s0 + (h.w_base + row) // tt
            for block in range(h.n2):
                if h.mode == Source.RAW:
                    size = "<i8" if self.p.accumulator_bits > 32 else "<i4"
                    self.results += self.raw[h.y_base + row * h.n2 + block].astype(size).tobytes()
                elif h.mode == Source.RESIDUAL:
                    self.results += self.residual[lane, group * h.n2 + block].astype("<i2").tobytes()
                else:
                    at = h.x_base + group * planes * h.n2 + block
                    fine = np.zeros(self.shape.block, np.int64)
                    for plane in range(planes):
                        part = self.data[2][lane, at + plane * h.n2]
                        fine = (fine << self.p.activation_bits) | part
                    self.results += fine.astype("<u2").tobytes()

    def write(self, memory: int, lane: int, address: int, operands: IntArray, exponent: int = 0) -> None:
        self.data[memory][lane, address] = operands & ((1 << self.p.activation_bits) - 1)
        self.exponent[memory][lane, address] = exponent

    def operands(self, memory: int, address: int, is_unsigned: bool) -> IntArray:
        """`[Tt, B]`."""
        bits, half = self.data[memory][:, address], 1 << (self.p.activation_bits - 1)
        return bits if is_unsigned else (bits ^ half) - half

    def channels(self, words: Iterator[npt.NDArray[np.uint8]], mode: int) -> Iterator[tuple[IntArray, ...]]:
        """bias, multiplier, shift, second multiplier, each `[B]`, of block after block; a word is read where one ends in it."""
        activates = mode in (Mode.GELU, Mode.GATED)
        packing = self.shape.packing("activated" if activates else "channel")
        channel, shift_bits = packing.block_bits // self.shape.block, self.shape.channel_shift_bits
        while True:
            pool, held = 0, 0
            for _ in range(packing.blocks):
                if held < packing.block_bits:
                    pool |= int.from_bytes(next(words).tobytes(), "little") << held
                    held += self.shape.word_bits
                fields = []
                for c in range(self.shape.block):
                    value = pool >> c * channel & ((1 << channel) - 1)
                    multiplier, rest, width = value & 0xFFFF, value >> 16, channel - 16
                    shift, rest, width = rest & ((1 << shift_bits) - 1), rest >> shift_bits, width - shift_bits
                    second, rest, width = (rest & 0xFF, rest >> 8, width - 8) if activates else (0, rest, width)
                    if mode == Mode.RAW:
                        width = min(channel, self.p.accumulator_bits)
                        rest = value & ((1 << width) - 1)
                    fields.append((rest - (rest >> (width - 1) << width), multiplier, shift, second))
                pool, held = pool >> packing.block_bits, held - packing.block_bits
                yield tuple(np.array(field, np.int64) for field in zip(*fields, strict=True))

    def parameters(self, payload: list[npt.NDArray[np.uint8]], blocks: int) -> tuple[IntArray, ...]:
        """bias, multiplier, shift, second multiplier of a norm, pool or router, each `[blocks, B]`."""
        shape, wide = self.shape, self.p.accumulator_bits // 8
        used = shape.packing("row").blocks * shape.block * shape.parameter_bits // 8
        fields = np.stack([word[:used] for word in payload]).reshape(-1, shape.block, shape.parameter_bits // 8)
        bias = signed(fields[..., :wide].ravel(), wide).reshape(-1, shape.block)
        multiplier = unsigned(fields[..., wide : wide + 2].ravel(), 2).reshape(-1, shape.block)
        shift, second = (fields[..., wide + i].astype(np.int64) for i in (2, 3))
        return tuple(field[:blocks] for field in (bias, multiplier, shift, second))

    def image(self, memory: int) -> npt.NDArray[np.uint8]:
        """Activation memory as traced: `[Tt, depth, B·AB/8 + 1]`."""
        data = self.data[memory].astype(f"<u{self.p.activation_bits // 8}")
        bits = data.view(np.uint8).reshape(*data.shape[:2], -1)
        return np.concatenate([bits, self.exponent[memory][..., None].astype(np.uint8)], axis=2)


def decode(word: npt.NDArray[np.uint8]) -> Instruction:
    """The header word."""
    bits = int.from_bytes(word[:64].tobytes(), "little")
    values = {}
    for field in FIELDS:
        value = bits >> field.offset & ((1 << field.bits) - 1)
        values[field.name] = value - (1 << field.bits) if field.signed and value >> (field.bits - 1) else value
    kind = Kind(values.pop("kind"))
    return Instruction(kind, **values)


def signed(data: npt.NDArray[np.uint8], size: int) -> IntArray:
    return np.array(list(_values(data, size, True)), np.int64)


def unsigned(data: npt.NDArray[np.uint8], size: int) -> IntArray:
    return np.array(list(_values(data, size, False)), np.int64)


def _values(data: npt.NDArray[np.uint8], size: int, is_signed: bool) -> Iterator[int]:
    raw = data.tobytes()
    for start in range(0, len(raw), size):
        yield int.from_bytes(raw[start : start + size], "little", signed=is_signed)
