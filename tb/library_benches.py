"""cocotb tests of the hand-written modules: the movers on an AXI memory, the control registers, the DRAM model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiMaster, AxiRam, AxiResp


def pauses(chance: float, seed: int) -> Iterator[bool]:
    """An endless sequence of pauses with this chance a cycle."""
    generator = random.Random(seed)
    return (generator.random() < chance for _ in itertools.count())


async def start_clock(dut: Any, reset: str, active: int) -> None:
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    getattr(dut, reset).value = active
    await ClockCycles(dut.clk, 5)
    getattr(dut, reset).value = 1 - active
    await ClockCycles(dut.clk, 2)


class MoverBench:
    """The loop of burst_read, FIFO and burst_write on a memory."""

    SIZE = 1 << 16

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        for name in ("read_start", "write_start", "stall", "source", "target", "beats"):
            getattr(dut, name).value = 0
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=self.SIZE)

    def pause(self, chance: float) -> None:
        read, write = self.ram.read_if, self.ram.write_if
        channels = (read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel)
        for seed, channel in enumerate(channels):
            channel.set_pause_generator(pauses(chance, seed))

    async def stall_fifo(self, chance: float) -> None:
        generator = random.Random(17)
        while True:
            await FallingEdge(self.dut.clk)
            self.dut.stall.value = sum((generator.random() < chance) << bit for bit in range(2))

    async def copy(self, source: int, target: int, beats: int) -> None:
        dut = self.dut
        dut.source.value, dut.target.value, dut.beats.value = source, target, beats
        dut.read_start.value = dut.write_start.value = 1
        await RisingEdge(dut.clk)
        dut.read_start.value = dut.write_start.value = 0
        waiting = {"read", "write"}
        while waiting:
            await RisingEdge(dut.clk)
            waiting -= {name for name in waiting if getattr(dut, f"{name}_done").value}


@cocotb.test()
async def movers_copy_every_beat_once(dut: Any) -> None:
    bench = MoverBench(dut)
    await start_clock(dut, "rst", 1)
    cocotb.start_soon(bench.stall_fifo(0.2))
    generator = random.Random(3)
    for chance in (0.0, 0.3, 0.7):
        bench.pause(chance)
        for beats in (0, 1, 2, 15, 16, 17, generator.randrange(100, 300)):
            source, target = 16 * generator.randrange(1024), (1 << 15) + 16 * generator.randrange(1024)
            data = generator.randbytes(MoverBench.SIZE)
            bench.ram.write(0, data)
            await with_timeout(bench.copy(source, target, beats), 200, "us")
            expected = data[:target] + data[source : source + 16 * beats] + data[target + 16 * beats :]
            assert bench.ram.read(0, MoverBench.SIZE) == expected, (chance, beats, source, target)
            assert not dut.read_error.value
            assert not dut.write_error.value


@cocotb.test()
async def movers_sustain_a_beat_a_cycle(dut: Any) -> None:
    bench = MoverBench(dut)
    await start_clock(dut, "rst", 1)
    beats = 1024
    copying = cocotb.start_soon(bench.copy(0, 1 << 15, beats))
    cycles = 0
    while not copying.done():
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles < 1.25 * beats, cycles


@cocotb.test()
async def movers_report_an_error_response(dut: Any) -> None:
    bench = MoverBench(dut)
    await start_clock(dut, "rst", 1)
    # beyond the memory the RAM model answers with an error
    respond = bench.ram.read_if._read

    async def failing(address: int, length: int, **rest: Any) -> bytes:
        if address >= 256:
            raise ValueError("a read error of the test")
        found: bytes = await respond(address, length, **rest)
        return found

    bench.ram.read_if._read = failing
    await with_timeout(bench.copy(0, 1 << 15, 16), 20, "us")
    assert not dut.read_error.value
    await with_timeout(bench.copy(0, 1 << 15, 40), 20, "us")
    assert dut.read_error.value
    assert not dut.write_error.value
    await with_timeout(bench.copy(0, 1 << 15, 16), 20, "us")
    assert not dut.read_error.value, "the next start clears the error"


class DramBench:
    """Two masters on the DRAM model."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.set(latency=20, bandwidth_q8=512, refresh_interval=0, refresh_length=0, stall_q8=0, seed=1)
        self.set(error_first=1, error_last=0)
        self.ports = [AxiMaster(AxiBus.from_prefix(dut, f"p{p}"), dut.clk, dut.rst_n, False) for p in range(2)]
        for port in self.ports:  # the model answers in order, without IDs
            port.read_if.id_count = port.write_if.id_count = 1

    def set(self, **values: int) -> None:
        for name, value in values.items():
            getattr(self.dut, name).value = value

    async def cycles_of(self, *operations: Any) -> int:
        running = [cocotb.start_soon(operation) for operation in operations]
        cycles = 0
        while not all(task.done() for task in running):
            await RisingEdge(self.dut.clk)
            cycles += 1
        return cycles


@cocotb.test()
async def dram_keeps_what_was_written(dut: Any) -> None:
    bench = DramBench(dut)
    await start_clock(dut, "rst_n", 0)
    generator = random.Random(5)
    image = bytearray(1 << 14)
    await bench.ports[0].write(0, bytes(image))
    for stall in (0, 60, 180):
        bench.set(stall_q8=stall)
        for _ in range(12):
            port = generator.choice(bench.ports)
            start = 16 * generator.randrange(len(image) // 16)
            data = generator.randbytes(generator.randrange(1, min(700, len(image) - start) + 1))
            await with_timeout(port.write(start, data), 100, "us")
            image[start : start + len(data)] = data
            first = 16 * generator.randrange(len(image) // 16)
            length = generator.randrange(1, min(2000, len(image) - first) + 1)
            found = await with_timeout(generator.choice(bench.ports).read(first, length), 100, "us")
            assert found.data == bytes(image[first : first + length])
    assert dut.protocol_errors.value == 0


@cocotb.test()
async def dram_has_the_latency_and_bandwidth_asked_for(dut: Any) -> None:
    bench = DramBench(dut)
    await start_clock(dut, "rst_n", 0)
    beats = 2048
    short = {}
    for latency in (20, 150):
        bench.set(latency=latency)
        await ClockCycles(dut.clk, 50)
        short[latency] = await bench.cycles_of(bench.ports[0].read(0, 16))
    assert short[150] - short[20] == 130, short
    assert 20 <= short[20] <= 30, short

    bench.set(latency=20)
    for bandwidth_q8 in (128, 256, 384, 512):
        bench.set(bandwidth_q8=bandwidth_q8)
        before = dut.read_beats.value.to_unsigned()
        cycles = await bench.cycles_of(*(port.read(0, 16 * beats) for port in bench.ports))
        assert dut.read_beats.value.to_unsigned() - before == 2 * beats
        ideal = 2 * beats / (bandwidth_q8 / 256)
        assert ideal - 32 <= cycles <= 1.01 * ideal + short[20] + 16, (bandwidth_q8, cycles, ideal)


@cocotb.test()
async def dram_pauses_for_its_refresh(dut: Any) -> None:
    bench = DramBench(dut)
    await start_clock(dut, "rst_n", 0)
    bench.set(bandwidth_q8=2048)  # the bucket does not bound
    beats = 4096 // 2
    plain = await bench.cycles_of(bench.ports[0].read(0, 16 * beats))
    bench.set(refresh_interval=200, refresh_length=50)
    paused = await bench.cycles_of(bench.ports[0].read(0, 16 * beats))
    assert abs(paused / plain - 200 / 150) < 0.04, (plain, paused)


@cocotb.test()
async def dram_answers_errors_where_asked(dut: Any) -> None:
    bench = DramBench(dut)
    await start_clock(dut, "rst_n", 0)
    bench.set(error_first=0x200, error_last=0x20F)
    assert (await bench.ports[0].read(0x100, 256)).resp == AxiResp.OKAY
    assert (await bench.ports[0].read(0x180, 256)).resp == AxiResp.SLVERR
    assert (await bench.ports[1].read(0x210, 256)).resp == AxiResp.OKAY


@cocotb.test()
async def dram_counts_bursts_that_break_the_protocol(dut: Any) -> None:
    bench = DramBench(dut)
    await start_clock(dut, "rst_n", 0)
    await bench.ports[0].read(16 * 4096 - 32, 32)
    assert dut.protocol_errors.value == 0
    await bench.ports[0].read(16 * 4096, 32)  # behind the memory
    assert dut.protocol_errors.value == 1


class Registers:
    """The control registers through AXI-Lite, and the kernel behind them played by the test."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.ap_clk, dut.ap_rst)
        dut.ap_done.value = dut.ap_ready.value = 0
        dut.ap_idle.value = 1
        dut.status.value = 0x5

    async def start(self) -> None:
        cocotb.start_soon(Clock(self.dut.ap_clk, 2, "ns").start())
        self.dut.ap_rst.value = 1
        await ClockCycles(self.dut.ap_clk, 5)
        self.dut.ap_rst.value = 0
        await ClockCycles(self.dut.ap_clk, 2)

    async def finish(self) -> None:
        self.dut.ap_done.value = self.dut.ap_ready.value = 1
        await RisingEdge(self.dut.ap_clk)
        self.dut.ap_done.value = self.dut.ap_ready.value = 0
        await RisingEdge(self.dut.ap_clk)


@cocotb.test()
async def control_keeps_arguments_and_hides_reserved_words(dut: Any) -> None:
    registers = Registers(dut)
    await registers.start()
    for word in range(5):
        await registers.bus.write_dword(0x10 + 4 * word, 0x11111111 * (word + 1))
    expected = [0x11111111, 0x22222222, 0, 0x44444444, 0]
    assert [await registers.bus.read_dword(0x10 + 4 * word) for word in range(5)] == expected
    await registers.bus.write(0x11, b"\xab")
    assert await registers.bus.read_dword(0x10) == 0x1111AB11
    assert await registers.bus.read_dword(0x24) == 5, "the status lies behind the arguments"


@cocotb.test()
async def control_follows_the_handshake_of_vitis(dut: Any) -> None:
    registers = Registers(dut)
    await registers.start()
    start, done, idle, ready = 1, 2, 4, 8
    assert await registers.bus.read_dword(0) == idle
    await registers.bus.write_dword(0, 1)
    assert dut.ap_start.value == 1
    dut.ap_idle.value = 0
    assert await registers.bus.read_dword(0) == start
    await registers.finish()
    dut.ap_idle.value = 1
    assert dut.ap_start.value == 0
    assert await registers.bus.read_dword(0) == done | idle | ready
    assert await registers.bus.read_dword(0) == idle, "ap_done and ap_ready clear on read"
    assert dut.interrupt.value == 0


@cocotb.test()
async def control_raises_and_clears_the_interrupt(dut: Any) -> None:
    registers = Registers(dut)
    await registers.start()
    await registers.bus.write_dword(4, 1)
    await registers.finish()
    assert dut.interrupt.value == 0, "ap_done is masked"
    await registers.bus.write_dword(8, 1)
    await registers.finish()
    assert dut.interrupt.value == 1
    assert await registers.bus.read_dword(0xC) == 1
    await registers.bus.write_dword(0xC, 1)
    assert dut.interrupt.value == 0
    await registers.bus.write_dword(0, 0x81)
    await registers.finish()
    assert dut.ap_start.value == 1, "auto_restart starts again"
