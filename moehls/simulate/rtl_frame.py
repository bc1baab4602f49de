"""The frame bench: a kernel's RTL behind a DRAM model, run frame by frame.

In go the kernel's SystemVerilog and where things lie in its registers; out comes `FrameBench`, a running simulator that
takes memory contents and register values and gives the cycles of a frame and of every step. The bench is
`tb/frame/frame.sv.j2` (kernel and DRAM) with `tb/frame/main.cpp` (its commands).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import jinja2
import numpy as np

from moehls.errors import MoehlsError
from moehls.plan.payload import Bytes
from moehls.resources import resource
from moehls.simulate.gated import gated
from moehls.simulate.looped import looped
from moehls.simulate.verilator import Build, build

BEAT_BYTES = 16


@dataclass(frozen=True)
class Dram:
    """Settings of the DRAM model. The defaults are 75 % of 19.2 GB/s at 300 MHz.

    Attributes:
        latency: cycles from an address to its first beat.
        beats: data beats of 16 bytes a cycle, over all ports.
        refresh_interval: cycles from one refresh to the next; 0: none.
        refresh_length: cycles of a refresh, without data.
        stall: probability of a stall a channel and cycle.
        seed: of the stalls.
    """

    latency: int = 150
    beats: float = 3.0
    refresh_interval: int = 0
    refresh_length: int = 0
    stall: float = 0.0
    seed: int = 1

    def settings(self) -> dict[str, int]:
        """As the model's inputs."""
        return {
            "latency": self.latency,
            "bandwidth_q8": round(256 * self.beats),
            "refresh_interval": self.refresh_interval,
            "refresh_length": self.refresh_length,
            "stall_q8": round(256 * self.stall),
            "seed": (self.seed * 2654435761 + 1) & 0xFFFFFFFF,
        }


@dataclass(frozen=True)
class Hooks:
    """Where the bench looks into the RTL that moehls generates; RTL of other origin has none.

    Attributes:
        step_taken: expression in `frame` that is 1 in the cycle in which the step machine turns to a step.
        memories: scopes of the banks of each memory (arrays named `words`), lane 0 first.
    """

    step_taken: str = "1'b0"
    memories: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Kernel:
    """RTL of a kernel.

    Attributes:
        top: the top module.
        sources: its files, and waivers.
        bundles: names of its AXI masters, in the order of the ports.
        control_address_bits: width of the control registers' addresses.
        data: files that the RTL reads when it starts, by name in the current folder.
    """

    top: str
    sources: tuple[Path, ...]
    bundles: tuple[str, ...]
    control_address_bits: int
    hooks: Hooks = field(default_factory=Hooks)
    data: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FrameRun:
    """What one frame took.

    Attributes:
        done: whether the kernel finished in time.
        cycles: from start to the interrupt.
        steps: cycle in which each step's header was taken.
        read_beats: data beats read by all ports.
        step_beats: of these, before each step's header was taken.
        write_beats: data beats written.
        protocol_errors: bursts since reset that AXI does not allow.
    """

    done: bool
    cycles: int
    steps: tuple[int, ...]
    step_beats: tuple[int, ...]
    read_beats: int
    write_beats: int
    protocol_errors: int


def build_frame(
    kernel: Kernel, folder: Path, dram_bytes: int, *, waves: bool = False, threads: int = 1, fast: bool = True
) -> Path:
    """The bench's executable for `kernel` in the build folder, with a DRAM of at least `dram_bytes`.

    Without `fast` it builds in a fraction of the time and runs several times slower.

    Raises:
        MoehlsError: the RTL or the bench does not build.
    """
    tb = resource("tb")
    folder.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(tb / "frame"), undefined=jinja2.StrictUndefined, autoescape=False
    )
    text = environment.get_template("frame.sv.j2").render(
        dram_beats=1 << max(10, (-(-dram_bytes // BEAT_BYTES) - 1).bit_length()),
        bundles=kernel.bundles,
        kernel=kernel.top,
        control_address_bits=kernel.control_address_bits,
        step_taken=kernel.hooks.step_taken,
    )
    wrapper, visible = folder / "frame.sv", folder / "frame.vlt"
    _write(wrapper, text)
    _write(
        visible, '`verilator_config\npublic_flat_rd -module "memory" -var "words"\n' if kernel.hooks.memories else ""
    )
    # waves show every wire; other RTL than ours keeps its text
    own = kernel.hooks.memories and not waves
    modules = _written(kernel.sources, folder / ("looped" if fast else "gated"), fast) if own else kernel.sources
    sources = (visible, *modules, tb / "sv" / "dram.sv", wrapper)
    programs = (tb / "frame" / "main.cpp",)
    return build(Build("frame", "Vframe", sources, programs, waves=waves, threads=threads, fast=fast), folder)


def _written(sources: Sequence[Path], folder: Path, fast: bool) -> tuple[Path, ...]:
    """The same RTL for a simulator: lanes as loops where their C++ is optimised, else wires in the writes that read them."""
    folder.mkdir(exist_ok=True)
    way = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    for path in sources:
        text, target, digest = path.read_text(), folder / path.name, way.copy()
        digest.update(text.encode())
        mark = f"// {digest.hexdigest()}\n"
        if not target.exists() or not target.read_text().startswith(mark):
            target.write_text(mark + (looped(text) if fast else gated(text)))
    return tuple(folder / path.name for path in sources)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class FrameBench:
    """A running bench. Use it as a context manager, or call `close`."""

    def __init__(self, program: Path, kernel: Kernel, dram: Dram) -> None:
        """Start the executable that `build_frame` made of `kernel`."""
        self._folder = tempfile.TemporaryDirectory(prefix="moehls-frame-")
        self.folder = Path(self._folder.name)
        for path in kernel.data:
            shutil.copyfile(path, self.folder / path.name)
        self._process = subprocess.Popen(
            [str(program.absolute())],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, scopes in kernel.hooks.memories:
            for scope in scopes:
                self.command("memory", name, scope)
        for setting, value in dram.settings().items():
            self.command("dram", setting, value)

    def __enter__(self) -> FrameBench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the simulator and remove its files."""
        if self._process.poll() is None:
            cast(IO[str], self._process.stdin).close()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def command(self, *words: str | int | Path) -> str:
        """Send a command of `main.cpp`; returns its answer.

        Raises:
            MoehlsError: the bench refuses it, or has died.
        """
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        try:
            stdin.write(" ".join(map(str, words)) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass
        while (answer := stdout.readline()).startswith("dram:"):  # a message of the model
            pass
        if not answer:
            message = cast(IO[str], self._process.stderr).read().strip()
            raise MoehlsError(f"the RTL simulation ended: {message or f'exit code {self._process.wait()}'}")
        return answer.strip()

    def load(self, address: int, data: Bytes) -> None:
        """Bytes into the DRAM at `address`, a multiple of 16."""
        path = self.folder / "load.bin"
        data.tofile(path)
        self.command("load", address, path)

    def dump(self, address: int, size: int) -> Bytes:
        """`size` bytes of the DRAM."""
        path = self.folder / "dump.bin"
        self.command("dump", address, size, path)
        return np.fromfile(path, np.uint8)

    def write(self, offset: int, value: int, bits: int = 32) -> None:
        """Write a control register."""
        for word in range(bits // 32):
            self.command("set", offset + 4 * word, value >> 32 * word & 0xFFFFFFFF)

    def read(self, offset: int) -> int:
        """Read a 32-bit control register."""
        return int(self.command("get", offset))

    def start(self, limit: int) -> FrameRun:
        """Start the kernel and wait for its interrupt, at most `limit` cycles."""
        found: dict[str, Any] = json.loads(self.command("start", limit))
        return FrameRun(**(found | {name: tuple(found[name]) for name in ("steps", "step_beats")}))


def memory_words(data: Bytes, banks: int, depth: int, word_bytes: int) -> Bytes:
    """A peeked file to the words of the C++, `[banks, depth, word_bytes]`.

    The RTL keeps a word in 1, 2, 4, 8 or a greater multiple of 4 bytes, without the bits that nobody reads.
    """
    kept = data.reshape(banks, depth, -1)
    out = np.zeros((banks, depth, word_bytes), np.uint8)
    size = min(word_bytes, kept.shape[2])
    out[:, :, :size] = kept[:, :, :size]
    return out
