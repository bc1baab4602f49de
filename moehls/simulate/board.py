"""A board in software: stands for the `pynq` module, so that a project's host driver runs without hardware.

In: a project. Out: `Board`, with the `Overlay` and `allocate` that the driver takes. The kernel behind the registers is the C
simulation. DRAM and the processor's caches are apart, as on the board: data that was not flushed is not seen by the
kernel, results that were not invalidated are not seen by the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.project import Project
from moehls.simulate import csim

_START, _DONE, _IDLE = 1, 2, 4
_FIRST_ADDRESS, _ALIGNMENT = 0x1_0000_0000, 4096


class Buffer(np.ndarray[Any, np.dtype[np.uint8]]):
    """What `pynq.allocate` gives: an array of the processor and, behind `flush` and `invalidate`, its DRAM."""

    device_address: int
    dram: npt.NDArray[np.uint8]

    def flush(self) -> None:
        """Processor to DRAM."""
        self.dram[:] = np.asarray(self).view(np.uint8).reshape(-1)

    def invalidate(self) -> None:
        """DRAM to processor."""
        np.asarray(self).view(np.uint8).reshape(-1)[:] = self.dram


class Board:
    """The `pynq` of one project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.library = csim.build(project.path)
        self.buffers: dict[int, Buffer] = {}

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        """A buffer with random contents, as DRAM has."""
        array = np.zeros(shape, dtype).view(Buffer)
        address = max(self.buffers, default=_FIRST_ADDRESS)
        array.device_address = address + (self.buffers[address].nbytes if self.buffers else 0)
        array.device_address += -array.device_address % _ALIGNMENT
        array.dram = np.random.default_rng(array.device_address).integers(0, 256, array.nbytes, np.uint8)
        self.buffers[array.device_address] = array
        return array

    @property
    def Overlay(self) -> Callable[[str], Overlay]:  # noqa: N802 (the name pynq gives it)
        """`Overlay(bitstream)`; any bitstream is this project's."""
        return lambda bitstream: Overlay(self)


class Overlay:
    """A loaded overlay: the kernel under its name, and the register map of the hardware handoff."""

    def __init__(self, board: Board) -> None:
        interfaces, registers = board.project.manifest["interfaces"], board.project.manifest["registers"]
        # As Vitis HLS names them: a low word ends in _1, a word of Verilog in _r before that.
        verilog = {"input": "input_r", "output": "output_r"}
        names = {verilog.get(r["name"], r["name"]) + ("_1" if r["bits"] == 64 else ""): r["offset"] for r in registers}
        entries = {name: {"address_offset": offset} for name, offset in names.items()}
        self.ip_dict = {interfaces["instance"]: {"registers": entries}}
        setattr(self, interfaces["instance"], Kernel(board))


class Kernel:
    """The kernel's control registers; writing start computes a frame."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.registers = {register["name"]: register for register in board.project.manifest["registers"]}
        self.words: dict[int, int] = {0: _IDLE}

    def write(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""
        self.words[offset] = value
        if offset == 0:
            self.words[0] = _IDLE
            if value & _START:
                self._frame()
                self.words[0] = _IDLE | _DONE

    def read(self, offset: int) -> int:
        """Read a 32-bit register; done clears on read."""
        value = self.words.get(offset, 0)
        if offset == 0:
            self.words[0] = value & ~_DONE
        return value

    def _frame(self) -> None:
        weights = self.board.project.manifest["weights"]
        beats = weights["chunks_per_port"]
        ports = [self._memory(f"weights{port}", beats) for port in range(weights["ports"])]
        chunks = np.stack(ports).reshape(len(ports), beats, -1)
        self.board.library.load(chunks, self._value("weight_beats"))
        pixels = self._memory("input", self._value("input_beats"))
        results = self.board.library.run(pixels, self._value("output_beats"), self._value("task"))
        self._memory("output", self._value("output_beats"))[:] = results

    def _memory(self, register: str, beats: int) -> npt.NDArray[np.uint8]:
        """The DRAM behind a pointer register, `beats` beats of it."""
        address, size = self._value(register), beats * self.board.project.manifest["interfaces"]["beat_bytes"]
        buffer = self.board.buffers.get(address)
        if buffer is None or buffer.nbytes < size:
            raise MoehlsError(f"register {register} points to {address:#x}, where no buffer of {size} bytes lies")
        return buffer.dram[:size]

    def _value(self, register: str) -> int:
        entry = self.registers[register]
        words = [self.words.get(entry["offset"] + 4 * word, 0) for word in range(entry["bits"] // 32)]
        return sum(word << 32 * index for index, word in enumerate(words))
