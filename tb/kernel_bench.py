"""cocotb tests of a whole kernel at its AXI ports: registers, interrupt, memory, stalls, several frames, reset, errors.

`settings()` gives: `data`, an .npz with the stream (`weights` [ports, chunks, 16]) and for every frame n `input<n>` and
`expected<n>` (bytes, from the NumPy reference); `tasks`, one a frame; `registers` and `bundles`, of the project's
manifest; `limit`, cycles after which a frame hangs; `status`, the offset of the status register, or null.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from moehls.simulate.rtl_bench import settings

START, DONE, IDLE = 1, 2, 4
GIE, IER, ISR = 4, 8, 12
"""offsets of the interrupt's global enable, enables and status"""
BEAT = 16
PAGE = 4096


def pauses(chance: float, seed: int, burst: int = 1) -> Iterator[bool]:
    """An endless sequence of pauses, `burst` cycles each, which take the share `chance` of the cycles."""
    generator = random.Random(seed)
    return (paused for _ in itertools.count() for paused in [generator.random() < chance] * generator.randint(1, burst))


class WithoutLocks:
    """The ports of a kernel but for `*LOCK`: two bits wide in Vitis, as in AXI3, where the bus models take one."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._dut) if not name.endswith("LOCK")]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dut, name)


class KernelBench:
    """Clock, reset, the control registers and one memory behind all masters."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.settings = dut, settings()
        self.registers = {register["name"]: register for register in self.settings["registers"]}
        with np.load(self.settings["data"]) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.ports, chunks, _ = self.arrays["weights"].shape
        sizes = [chunks * BEAT] * self.ports + [self.arrays["input0"].size, self.arrays["expected0"].size]
        ends = np.cumsum([-(-size // PAGE) * PAGE for size in sizes])
        self.addresses = [int(end) for end in (0, *ends[:-1])]
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, dut.ap_rst_n, False)
        self.rams: list[AxiRam] = []
        for bundle in self.settings["bundles"]:
            bus = AxiBus.from_prefix(WithoutLocks(dut), f"m_axi_{bundle}")
            memory = self.rams[0].mem if self.rams else None
            self.rams.append(AxiRam(bus, dut.ap_clk, dut.ap_rst_n, False, size=int(ends[-1]), mem=memory))
        for port in range(self.ports):
            self.rams[0].write(self.addresses[port], self.arrays["weights"][port].tobytes())

    async def start(self) -> None:
        cocotb.start_soon(Clock(self.dut.ap_clk, 2, "ns").start())
        await self.reset()

    async def reset(self) -> None:
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 8)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 4)

    def stall(self, chance: float, burst: int = 1) -> None:
        """Pauses on every channel of every bus."""
        channels = []
        for ram in self.rams:
            channels += [ram.read_if.ar_channel, ram.read_if.r_channel]
            channels += [ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel]
        read, write = self.control.read_if, self.control.write_if
        channels += [read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel]
        for seed, channel in enumerate(channels):
            channel.set_pause_generator(pauses(chance, seed, burst))

    async def write(self, name: str, value: int) -> None:
        register = self.registers[name]
        for word in range(register["bits"] // 32):
            await self.control.write_dword(register["offset"] + 4 * word, value >> 32 * word & 0xFFFFFFFF)

    async def arguments(self, frame: int) -> None:
        for port in range(self.ports):
            await self.write(f"weights{port}", self.addresses[port])
        await self.write("input", self.addresses[-2])
        await self.write("output", self.addresses[-1])
        await self.write("weight_beats", int(self.arrays["first_beats"]))
        await self.write("input_beats", self.arrays[f"input{frame}"].size // BEAT)
        await self.write("output_beats", self.arrays[f"expected{frame}"].size // BEAT)
        await self.write("task", self.settings["tasks"][frame])

    def prepare(self, frame: int) -> None:
        """Input and a result area without results into the memory."""
        self.rams[0].write(self.addresses[-2], self.arrays[f"input{frame}"].tobytes())
        self.rams[0].write(self.addresses[-1], b"\xa5" * self.arrays[f"expected{frame}"].size)

    async def begin(self, frame: int) -> None:
        self.prepare(frame)
        await self.arguments(frame)
        await self.control.write_dword(0, START)

    async def interrupted(self) -> None:
        """Until the interrupt comes."""
        for _ in range(self.settings["limit"]):
            if self.dut.interrupt.value == 1:
                return
            await RisingEdge(self.dut.ap_clk)
        raise AssertionError("the kernel hangs")

    async def enable_interrupt(self) -> None:
        await self.control.write_dword(GIE, 1)
        await self.control.write_dword(IER, 1)

    async def frame(self, frame: int) -> None:
        """A whole frame, with its result compared."""
        await self.begin(frame)
        await self.interrupted()
        await self.control.write_dword(ISR, 1)
        assert await self.control.read_dword(0) & (DONE | IDLE) == DONE | IDLE
        self.compare(frame)

    def compare(self, frame: int) -> None:
        expected = self.arrays[f"expected{frame}"]
        found = np.frombuffer(self.rams[0].read(self.addresses[-1], expected.size), np.uint8)
        wrong = np.flatnonzero(found != expected)
        where = int(wrong[0]) if wrong.size else None
        assert where is None, f"frame {frame}: {wrong.size} result bytes differ, the first at {where}"


@cocotb.test()
async def registers_keep_what_is_written(dut: Any) -> None:
    bench = KernelBench(dut)
    await bench.start()
    assert await bench.control.read_dword(0) & (START | DONE | IDLE) == IDLE
    for n, register in enumerate(bench.settings["registers"][1:]):
        await bench.write(register["name"], 0x1234567890ABCDEF * (n + 3) & ((1 << register["bits"]) - 1))
    for n, register in enumerate(bench.settings["registers"][1:]):
        for word in range(register["bits"] // 32):
            value = await bench.control.read_dword(register["offset"] + 4 * word)
            expected = (0x1234567890ABCDEF * (n + 3) & ((1 << register["bits"]) - 1)) >> 32 * word & 0xFFFFFFFF
            mask = 0xFFFF if register["name"] == "task" else 0xFFFFFFFF  # the register holds what the C++ type has
            assert value & mask == expected & mask, register["name"]


@cocotb.test()
async def frames_follow_each_other(dut: Any) -> None:
    """Every frame of the data, back to back; the task changes between them, where the model has several."""
    bench = KernelBench(dut)
    await bench.start()
    await bench.enable_interrupt()
    for frame in range(len(bench.settings["tasks"])):
        await bench.frame(frame)


@cocotb.test()
async def done_is_seen_by_polling(dut: Any) -> None:
    """Without the global enable there is no interrupt; the frame's end waits in the interrupt status until it is enabled."""
    bench = KernelBench(dut)
    await bench.start()
    await bench.control.write_dword(IER, 3)
    await bench.begin(0)
    for _ in range(bench.settings["limit"]):
        state = await bench.control.read_dword(0)
        if state & DONE:
            break
        assert not state & IDLE, "busy until it is done"
    assert dut.interrupt.value == 0, "no interrupt is enabled"
    assert not await bench.control.read_dword(0) & DONE, "reading clears ap_done"
    bench.compare(0)
    assert await bench.control.read_dword(ISR) == 3, "ap_done and ap_ready came"
    await bench.control.write_dword(GIE, 1)
    await ClockCycles(dut.ap_clk, 2)
    assert dut.interrupt.value == 1, "what waits is delivered"
    await bench.control.write_dword(ISR, 1)
    assert await bench.control.read_dword(ISR) == 2, "each bit is taken back on its own"
    assert dut.interrupt.value == 1
    await bench.control.write_dword(ISR, 2)
    await ClockCycles(dut.ap_clk, 2)
    assert dut.interrupt.value == 0


async def stalled_frame(dut: Any, chance: float, burst: int) -> None:
    bench = KernelBench(dut)
    bench.stall(chance, burst)
    await bench.start()
    await bench.enable_interrupt()
    await bench.frame(0)


@cocotb.test()
async def stalls_change_nothing(dut: Any) -> None:
    """Random pauses of a cycle on every channel."""
    await stalled_frame(dut, 0.3, 1)


@cocotb.test()
async def long_stalls_change_nothing(dut: Any) -> None:
    """Pauses in bursts, as a slow memory has."""
    await stalled_frame(dut, 0.5, 24)


@cocotb.test()
async def reset_ends_a_frame(dut: Any) -> None:
    """After a reset at a random time the next frame is as the first one."""
    bench = KernelBench(dut)
    await bench.start()
    await bench.enable_interrupt()
    await bench.frame(1)
    generator = random.Random(11)
    for _ in range(3):
        await bench.begin(0)
        await ClockCycles(dut.ap_clk, generator.randrange(50, bench.settings["typical"]))
        await bench.reset()
        assert await bench.control.read_dword(0) == IDLE
        await bench.enable_interrupt()
        await bench.frame(1)


@cocotb.test(skip=settings().get("status") is None)
async def a_read_error_is_reported(dut: Any) -> None:
    """The frame ends, the status register names the port, and the next frame is good again."""
    bench = KernelBench(dut)
    await bench.start()
    await bench.enable_interrupt()
    status = bench.settings["status"]
    reader = bench.rams[-1].read_if
    respond = reader._read

    async def failing(address: int, length: int, **rest: Any) -> bytes:
        raise ValueError("a read error of the test")

    reader._read = failing
    await bench.begin(0)
    await bench.interrupted()
    await bench.control.write_dword(ISR, 1)
    assert await bench.control.read_dword(status) == 1 << bench.ports, "the bit of the port that reads the input"
    reader._read = respond
    await bench.frame(0)
    assert await bench.control.read_dword(status) == 0
