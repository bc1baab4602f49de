"""C simulation: the C++ of a project compiled to a shared library and called from Python.

In go a project folder (`include/`, `src/`, `csim/harness.cpp`), then the stream of weights and the bytes of an image;
out come the bytes of the results and, on request, every memory after every step. Two compilers serve: clang from the
`ziglang` package with our `_BitInt` classes (fast, the default), and g++ with the open `ap_types` of Xilinx as the
cross-check.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from moehls.errors import CheckFailed, MoehlsError
from moehls.integer.operations import IntArray
from moehls.resources import resource
from moehls.simulate.bounded import bounded_text
from moehls.simulate.verilator import compiler as compiler_command

Bytes = npt.NDArray[np.uint8]
Compiler = Literal["clang", "g++"]
StepHook = Callable[[int, bool, "Memories"], None]
"""Called with the step's index, whether it ran (or was drained), and the memories after it."""

_FLAGS: dict[Compiler, tuple[str, ...]] = {
    "clang": ("-std=c++20", "-O1", "-Wall", "-Wextra", "-fno-sanitize=undefined", "-fno-exceptions", "-fno-rtti"),
    # the vendor's headers initialise nothing by design; g++ says so at every use. Their std::complex of an ap_int, which
    # nobody uses, is left out: it is not for the C++ library of the ziglang package, which serves where there is no g++.
    "g++": (
        *("-std=c++17", "-O1", "-Wall", "-Wextra", "-D__AP_INT_SPECIAL_H__", "-D__AP_FIXED_SPECIAL_H__"),
        *("-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unknown-warning-option"),
    ),
}
_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int)
_RESIDUAL, _RAW, _QUEUE, _COUNT = 4, 5, 6, 7
_BEAT_BYTES = 16
_SHIM = ("ap_int.h", "hls_stream.h", "hls_fibers.h", "hls_memory.h")


def build(
    project: Path, compiler: Compiler = "clang", ap_types: Path | None = None, *, bounded: bool = False
) -> Library:
    """The library of `project`, compiled unless `build/csim` holds the one of the same sources.

    Args:
        project: a folder written by `moehls.emit`.
        compiler: `clang` of the ziglang package, or `g++` with `ap_types`.
        ap_types: folder of the vendor's `ap_int.h`, for g++; found by `find_ap_types` if not given.
        bounded: streams and memories hold no more than their depths, so that what is too shallow is seen.

    Raises:
        MoehlsError: a compiler, a header or a source is missing, or the C++ does not compile.
    """
    sources = sorted((project / "src").glob("*.cpp"))
    harness = project / "csim" / "harness.cpp"
    if not sources or not harness.is_file():
        raise MoehlsError(f"{project} holds no C++ to simulate; is it a folder written by 'moehls compile'?")
    shim = resource("templates") / "hls" / "shim"
    headers = sorted((project / "include").glob("*.hpp"))
    digest = hashlib.sha256(repr((compiler, _FLAGS[compiler], ap_types, bounded)).encode())
    for path in (*sources, *headers, harness, *(shim / name for name in _SHIM)):
        digest.update(path.name.encode() + path.read_bytes())
    folder = project / "build" / "csim" / digest.hexdigest()[:16]
    library = folder / "libcsim.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unity = folder / "unity.cpp"
        defines = ["#define MOEHLS_CSIM", *(["#define MOEHLS_BOUNDED"] if bounded else [])]
        read = [_bounded(path, folder) for path in sources] if bounded else sources
        if bounded:
            _bounded(project / "include" / "operations.hpp", folder)
        includes = [f'#include "{path.resolve()}"' for path in (*read, harness)]
        unity.write_text("\n".join([*defines, *includes, ""]))
        _compile(unity, library, project / "include", shim, compiler, ap_types)
    return Library(library)


def _bounded(source: Path, folder: Path) -> Path:
    target = folder / source.name
    target.write_text(bounded_text(source.read_text()))
    return target


def find_ap_types() -> Path | None:
    """The folder of the vendor's `ap_int.h`: of an installed Vitis HLS (`XILINX_HLS`), or of the hls4ml package."""
    if "XILINX_HLS" in os.environ:
        folder = Path(os.environ["XILINX_HLS"]) / "include"
        return folder if (folder / "ap_int.h").is_file() else None
    found = importlib.util.find_spec("hls4ml")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "templates" / "vivado" / "ap_types"
    return folder if (folder / "ap_int.h").is_file() else None


def _compile(unity: Path, library: Path, include: Path, shim: Path, compiler: Compiler, ap_types: Path | None) -> None:
    """One translation unit, as the headers dominate the time of the small files.

    clang's object is linked without a C++ library: it needs none, and the ziglang package would first compile its own.
    """
    partial = library.with_suffix(f".{os.getpid()}.so")
    flags = [*_FLAGS[compiler], "-fPIC", f"-I{include}"]
    log = unity.parent / "compile.log"
    if compiler == "clang":
        cache = str(unity.parent / "zig")
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        zig, object_file = [sys.executable, "-m", "ziglang"], str(partial.with_suffix(".o"))
        _call([*zig, "c++", *flags, f"-I{shim}", "-c", str(unity), "-o", object_file], environment, log)
        _call([*zig, "ld.lld", "-shared", object_file, "-o", str(partial)], environment, log)
        Path(object_file).unlink()
    else:
        ap_types = ap_types or find_ap_types()
        if ap_types is None:
            raise MoehlsError(
                "no ap_int.h for g++: set XILINX_HLS, or install the hls4ml package, which carries the open ap_types"
            )
        # the stream is ours, as the open one has no depth in its type
        streams = unity.parent / "include"
        streams.mkdir(exist_ok=True)
        for name in _SHIM[1:]:
            shutil.copyfile(shim / name, streams / name)
        headers = [f"-I{streams}", "-isystem", str(ap_types)]
        _call([*compiler_command(), *flags, *headers, "-shared", str(unity), "-o", str(partial)], dict(os.environ), log)
    partial.replace(library)


def _call(command: list[str], environment: dict[str, str], log: Path) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MoehlsError(
            f"the compiler {command[0]} is not installed; clang of the ziglang package would do"
        ) from error
    with log.open("a") as file:
        file.write(done.stdout + done.stderr)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise MoehlsError(f"the C++ of the project does not compile ({first}); see {log}")


@dataclass(frozen=True)
class Memories:
    """The memories of the machine at this moment, within a frame's hook or between frames; every method copies one."""

    library: ctypes.CDLL

    def activation(self, number: int) -> Bytes:
        """Memory M`number`: `[Tt, depth, B·AB/8 + 1]`, operands and, last, the exponent."""
        return self._read(number)

    def residual(self) -> Bytes:
        """`[Tt, depth, B·2]`."""
        return self._read(_RESIDUAL)

    def raw(self) -> Bytes:
        """`[depth, B·accumulator_bits/8]`."""
        rows: Bytes = self._read(_RAW)[0]
        return rows

    def queue(self) -> npt.NDArray[np.uint64]:
        """`[MAX_EXPERTS, MAX_TOKENS]`: lane (8 bits), group (16), gate (16) from bit 0."""
        return _integers(self._read(_QUEUE)[0]).reshape(len(self.count()), -1)

    def count(self) -> IntArray:
        """`[MAX_EXPERTS]`: tokens in each queue."""
        return _integers(self._read(_COUNT)[0]).astype(np.int64)

    def _read(self, memory: int) -> Bytes:
        size = [ctypes.c_uint32() for _ in range(3)]
        self.library.moehls_memory_size(memory, *(ctypes.byref(value) for value in size))
        out = np.empty([value.value for value in size], np.uint8)
        self.library.moehls_read_memory(memory, _pointer(out))
        return out


class Library:
    """A compiled accelerator. Its memories live as long as the process, as the hardware's do between frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.moehls_run.restype = ctypes.c_char_p
        self._ports = int(self._library.moehls_ports())
        self._weights: Bytes | None = None

    @property
    def memories(self) -> Memories:
        """What the last frame left in the memories, zeros before the first."""
        return Memories(self._library)

    def load(self, chunks: Bytes, first: int | None = None) -> None:
        """Give the kernel its stream, `[ports, beats, 16]` bytes, for all runs to come.

        Args:
            chunks: the stream.
            first: beats a port of its first section; all by default.

        Raises:
            MoehlsError: the stream has another number of ports.
        """
        if chunks.dtype != np.uint8 or chunks.ndim != 3 or chunks.shape[::2] != (self._ports, _BEAT_BYTES):
            raise MoehlsError(
                f"the stream has shape {list(chunks.shape)}; expected [{self._ports}, beats, {_BEAT_BYTES}]"
            )
        self._weights = np.ascontiguousarray(chunks)
        beats = chunks.shape[1]
        self._library.moehls_set_weights(_pointer(self._weights), beats, beats if first is None else first)

    def run(self, pixels: Bytes, output_beats: int, task: int = 0, on_step: StepHook | None = None) -> Bytes:
        """One frame: the input bytes `[beats · 16]` to the result bytes `[output_beats · 16]`.

        A program that reads a stream while it is empty, where the hardware would hang, aborts the process.

        Raises:
            CheckFailed: with bounded streams, the processes wait for each other for ever, or one leaves a memory.
            MoehlsError: no weights are loaded.
        """
        if self._weights is None:
            raise MoehlsError("no weights are loaded; call load first")
        pixels = np.ascontiguousarray(pixels, np.uint8)
        results = np.zeros(output_beats * _BEAT_BYTES, np.uint8)
        memories, raised, index = Memories(self._library), list[BaseException](), 0

        def hook(ran: int) -> None:
            nonlocal index
            if on_step is not None and not raised:
                try:
                    on_step(index, bool(ran), memories)
                except BaseException as error:  # a C frame lies between here and the caller
                    raised.append(error)
            index += 1

        callback = _HOOK(hook)
        beats = len(pixels) // _BEAT_BYTES
        hangs = self._library.moehls_run(_pointer(pixels), beats, _pointer(results), output_beats, task, callback)
        if raised:
            raise raised[0]
        if hangs is not None:
            what, *waiting = hangs.decode().split("; ")
            raise CheckFailed("; ".join([f"{what} in step {index}", *waiting]))
        return results


def _pointer(array: Bytes) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _integers(words: Bytes) -> npt.NDArray[np.uint64]:
    """Words of at most 8 bytes `[n, size]` as integers `[n]`."""
    wide = np.zeros((len(words), 8), np.uint8)
    wide[:, : words.shape[1]] = words
    return wide.view("<u8")[:, 0]
