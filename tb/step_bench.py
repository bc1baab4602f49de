"""cocotb tests of one unit of the step machine: its streams and memories are played by the test, with random stalls.

`settings()` gives: `data`, an .npz; `steps`, a list of objects with `name` and `scalar` (hexadecimal), the value of the unit's
parameter named `scalar`; `inputs` and `outputs`, names of the streams the unit reads and writes; `memories`, by formal
parameter of the unit: `banks` and `latency` (cycles from address to data). For step n the archive holds `<n>.S` [values, bytes]
for each stream S, and for each formal F `<n>.before.F` and `<n>.after.F` [banks, depth, word bytes]: the memory before the step
and, by the NumPy reference, after it.

The unit's ports have the names of moehls or those of Vitis HLS (`ap_start`, `_dout`, `_address0`, …).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from moehls.simulate.rtl_bench import settings

LIMIT = 60_000


def words_of(image: np.ndarray) -> list[int]:
    """`[n, bytes]` to integers, the low byte first."""
    return [int.from_bytes(word.tobytes(), "little") for word in image]


class Ports:
    """The unit's signals by the first of several names that exists."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.names = dut, set(dir(dut))

    def find(self, *names: str) -> Any:
        """The signal, or None."""
        return next((getattr(self.dut, name) for name in names if name in self.names), None)


class Source:
    """A FIFO that the unit reads."""

    def __init__(self, ports: Ports, name: str, values: list[int], chance: float, generator: random.Random) -> None:
        self.data = ports.find(f"{name}_data", f"{name}_dout")
        self.valid = ports.find(f"{name}_valid", f"{name}_empty_n")
        self.ready = ports.find(f"{name}_ready", f"{name}_read")
        self.values, self.chance, self.random = list(values), chance, generator
        self.offered = False
        if self.data is not None:
            self.mask = (1 << len(self.data)) - 1
            self.valid.value = 0

    def sample(self) -> None:
        """Before the clock's edge: what the unit takes."""
        if self.data is not None and self.offered and self.ready.value == 1:
            self.values.pop(0)
            self.offered = False

    def drive(self) -> None:
        """After the edge: what is offered next."""
        if self.data is None:
            return
        if not self.offered and self.values and self.random.random() >= self.chance:
            self.offered = True
            self.data.value = self.values[0] & self.mask
        self.valid.value = int(self.offered)


class Sink:
    """A FIFO that the unit writes."""

    def __init__(self, ports: Ports, name: str, chance: float, generator: random.Random) -> None:
        self.data = ports.find(f"{name}_data", f"{name}_din")
        self.valid = ports.find(f"{name}_valid", f"{name}_write")
        self.ready = ports.find(f"{name}_ready", f"{name}_full_n")
        self.values: list[int] = []
        self.chance, self.random, self.open = chance, generator, False
        if self.data is not None:
            self.mask = (1 << len(self.data)) - 1
            self.ready.value = 0

    def sample(self) -> None:
        if self.data is not None and self.open and self.valid.value == 1:
            self.values.append(self.data.value.to_unsigned())

    def drive(self) -> None:
        if self.data is not None:
            self.open = self.random.random() >= self.chance
            self.ready.value = int(self.open)


class Bank:
    """One bank of a memory: a read port and a write port, whichever the unit has."""

    def __init__(self, ports: Ports, name: str, words: list[int], latency: int) -> None:
        self.words, self.latency = words, latency
        self.enable = ports.find(f"{name}_read_enable", f"{name}_ce0")
        self.advance = ports.find(f"{name}_read_advance", f"{name}_ce0")
        self.address = ports.find(f"{name}_read_address", f"{name}_address0")
        self.data = ports.find(f"{name}_read_data", f"{name}_q0")
        self.write_enable = ports.find(f"{name}_write_enable", f"{name}_we0", f"{name}_we1")
        self.write_address = ports.find(f"{name}_write_address", *(f"{name}_address{k}" for k in (1, 0)))
        self.write_data = ports.find(f"{name}_write_data", f"{name}_d0", f"{name}_d1")
        self.fetched = self.shown = 0

    def sample(self) -> None:
        moved = self.fetched
        if self.data is not None and self.enable.value == 1:
            self.fetched = self.words[self.address.value.to_unsigned()]
        if self.latency == 1:
            self.shown = self.fetched
        elif self.advance is not None and self.advance.value == 1:
            self.shown = moved
        if self.write_enable is not None and self.write_enable.value == 1:
            self.words[self.write_address.value.to_unsigned()] = self.write_data.value.to_unsigned()

    def drive(self) -> None:
        if self.data is not None:
            self.data.value = self.shown & ((1 << len(self.data)) - 1)

    @property
    def mask(self) -> int:
        """The bits of a word that the unit writes."""
        return (1 << len(self.write_data)) - 1 if self.write_data is not None else -1


class UnitBench:
    """Clock, reset and one step at a time."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.ports, self.settings = dut, Ports(dut), settings()
        self.clock = self.ports.find("clock", "ap_clk")
        self.reset = self.ports.find("reset", "ap_rst")
        self.start = self.ports.find("start", "ap_start")
        self.done = self.ports.find("done", "ap_done")
        with np.load(self.settings["data"]) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    async def begin(self) -> None:
        cocotb.start_soon(Clock(self.clock, 2, "ns").start())
        self.start.value, self.reset.value = 0, 1
        for _ in range(4):
            await RisingEdge(self.clock)
        self.reset.value = 0
        await RisingEdge(self.clock)

    def banks(self, step: int) -> Iterator[tuple[str, int, Bank]]:
        for formal, memory in self.settings["memories"].items():
            image = self.arrays[f"{step}.before.{formal}"]
            for bank in range(memory["banks"]):
                name = f"{formal}_{bank}" if memory["banks"] > 1 else formal
                yield formal, bank, Bank(self.ports, name, words_of(image[bank]), memory["latency"])

    async def step(self, number: int, chance: float) -> int:
        """Run a step, compare streams and memories; returns its cycles."""
        generator = random.Random(number)
        banks = list(self.banks(number))
        sources = {
            name: Source(self.ports, name, words_of(self.arrays[f"{number}.{name}"]), chance, generator)
            for name in self.settings["inputs"]
        }
        sinks = {name: Sink(self.ports, name, chance, generator) for name in self.settings["outputs"]}
        parts = [*sources.values(), *sinks.values(), *(bank for _, _, bank in banks)]
        scalar = self.settings["scalar"]
        argument = self.ports.find(scalar, f"{scalar}_coerce", f"{scalar}_coerce0")
        argument.value = int(self.settings["steps"][number]["scalar"], 16)
        self.start.value = 1
        cycles, ended = 0, False
        while not ended:
            await RisingEdge(self.clock)
            ended = self.done.value == 1
            for part in parts:
                part.sample()
            for part in parts:
                part.drive()
            self.start.value = 0
            cycles += 1
            assert cycles < LIMIT, "the unit hangs"
        self.compare(number, banks, sources, sinks)
        return cycles

    def compare(
        self,
        number: int,
        banks: list[tuple[str, int, Bank]],
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
    ) -> None:
        name = self.settings["steps"][number]["name"]
        for stream, source in sources.items():
            assert not source.values, f"{name}: {len(source.values)} values of {stream} are left"
        for stream, sink in sinks.items():
            expected = words_of(self.arrays[f"{number}.{stream}"])
            found = len(sink.values)
            assert found == len(expected), f"{name}: {stream}: expected {len(expected)} values, found {found}"
            for index, (value, wanted) in enumerate(zip(sink.values, expected, strict=True)):
                same = (value ^ wanted) & sink.mask == 0
                assert same, f"{name}: {stream}[{index}]: expected {wanted:x}, found {value:x}"
        for formal, bank, memory in banks:
            after = words_of(self.arrays[f"{number}.after.{formal}"][bank])
            for address, (found, wanted) in enumerate(zip(memory.words, after, strict=True)):
                same = (found ^ wanted) & memory.mask == 0
                assert same, f"{name}: {formal}[{bank}][{address}]: expected {wanted:x}, found {found:x}"


@cocotb.test()
async def steps_equal_the_reference(dut: Any) -> None:
    """All steps one after another, without stalls."""
    bench = UnitBench(dut)
    await bench.begin()
    for number in range(len(bench.settings["steps"])):
        await bench.step(number, 0.0)


@cocotb.test()
async def stalls_change_nothing(dut: Any) -> None:
    """All steps with random stalls of every stream."""
    bench = UnitBench(dut)
    await bench.begin()
    for number in range(len(bench.settings["steps"])):
        await bench.step(number, 0.5)
