"""Host driver of the accelerator in this project, for PYNQ (3.0 and later) on the board.

    from driver import Accelerator

    accelerator = Accelerator("design.bit")              # loads the overlay, writes the weights once
    outputs = accelerator.run(images, task=0)            # images [samples, channels, height, width] → {name: array}

`images` are what the ONNX model takes, in its layout and type ([samples, height, width, channels] where that is its own); the
outputs are what it gives, under their names, the first axis the samples. A task is chosen by a register: it moves no
weight. While the machine computes an image the processor prepares the next one and reads the last one's results. Needs numpy,
pynq and the file processing.py beside this one; all it knows of the model stands in `moehls.json`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))
from processing import evaluate, rounded, steps_of

CHUNK = 16  # bytes of an AXI beat
START, DONE = 1, 2  # bits of the control register (ap_start, ap_done)


class Accelerator:
    """The kernel behind its registers, with the weights in DRAM and two buffers each for images and results.

    bitstream: path of the .bit file (its .hwh lies beside it). project: the folder with moehls.json, by default the one
    above this file. pynq: a module or object with `Overlay` and `allocate`, for runs without a board.
    """

    def __init__(self, bitstream, project=None, pynq=None):
        if pynq is None:
            import pynq
        self.project = Path(project) if project is not None else Path(__file__).resolve().parent.parent
        self.manifest = json.loads((self.project / "moehls.json").read_text())
        self.overlay = pynq.Overlay(str(bitstream))
        self.kernel = getattr(self.overlay, self.manifest["interfaces"]["instance"])
        self.registers = {register["name"]: register for register in self.manifest["registers"]}
        self._check_registers()
        self.weights = self._load_weights(pynq.allocate)
        source, results = self.manifest["input"], self.manifest["results"]
        self.pixels = [pynq.allocate((source["beats"] * CHUNK,), np.uint8) for _ in range(2)]
        self.results = [pynq.allocate((results["beats"] * CHUNK,), np.uint8) for _ in range(2)]
        for port, buffer in enumerate(self.weights):
            self._set(f"weights{port}", buffer.device_address)
        self._set("weight_beats", self.manifest["weights"]["first_chunks"])
        self._set("input_beats", source["beats"])
        self._set("output_beats", results["beats"])

    def run(self, images, task=0, raw=False, timeout=10.0):
        """Outputs of `images`, by default [samples, channels, height, width], for `task`; integers of the machine where `raw`."""
        images = np.asarray(images)
        shape = tuple(self.manifest["input"]["sample"])
        if images.ndim == 3 and len(shape) == 3 and shape[0] == 1:  # tokens, or grey images without their channel
            images = images[:, None]
        if images.shape[1:] != shape or not len(images):
            raise ValueError(f"images have shape {images.shape}; wanted is (samples, {', '.join(map(str, shape))})")
        if not 0 <= task < self.manifest["tasks"]:
            raise ValueError(f"task {task}: the model has the tasks 0 to {self.manifest['tasks'] - 1}")
        self._set("task", task)
        samples = []
        self._prepare(images[0], 0)
        for index in range(len(images)):
            self._start(index % 2)
            if index + 1 < len(images):
                self._prepare(images[index + 1], (index + 1) % 2)
            if index:
                samples.append(self._read((index - 1) % 2, raw))
            self._wait(timeout)
        samples.append(self._read((len(images) - 1) % 2, raw))
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _load_weights(self, allocate):
        """Chunk j of weights.bin to port j mod ports, address j div ports."""
        layout = self.manifest["weights"]
        stream = np.fromfile(self.project / layout["file"], np.uint8)
        ports, chunks = layout["ports"], layout["chunks_per_port"]
        if stream.size != ports * chunks * CHUNK:
            raise ValueError(f"{layout['file']} has {stream.size} bytes, the manifest says {ports * chunks * CHUNK}")
        striped = stream.reshape(chunks, ports, CHUNK)
        buffers = []
        for port in range(ports):
            buffer = allocate((chunks * CHUNK,), np.uint8)
            buffer[:] = striped[:, port].reshape(-1)
            buffer.flush()
            buffers.append(buffer)
        return buffers

    def _prepare(self, image, slot):
        buffer = self.pixels[slot]
        buffer[:] = pack_pixels(image, self.manifest["input"])
        buffer.flush()

    def _start(self, slot):
        self._set("input", self.pixels[slot].device_address)
        self._set("output", self.results[slot].device_address)
        self.kernel.write(self.registers["control"]["offset"], START)

    def _wait(self, timeout):
        limit = time.monotonic() + timeout
        while not self.kernel.read(self.registers["control"]["offset"]) & DONE:
            if time.monotonic() > limit:
                raise TimeoutError(f"the accelerator did not end within {timeout} s")

    def _read(self, slot, raw):
        buffer = self.results[slot]
        buffer.invalidate()
        return unpack_results(np.asarray(buffer), self.manifest["outputs"], raw)

    def _set(self, name, value):
        register = self.registers[name]
        for word in range(register["bits"] // 32):
            self.kernel.write(register["offset"] + 4 * word, (int(value) >> (32 * word)) & 0xFFFFFFFF)

    def _check_registers(self):
        """The hardware handoff knows the register map as well: another one means another bitstream.

        There the low word of an address ends in `_1`, and what is a word of Verilog (input, output) in `_r` before that.
        """
        known = self.overlay.ip_dict[self.manifest["interfaces"]["instance"]].get("registers", {})
        for name, register in self.registers.items():
            for alias in (name, f"{name}_1", f"{name}_r_1"):
                if alias in known and known[alias]["address_offset"] != register["offset"]:
                    raise ValueError(
                        f"register {name} lies at {known[alias]['address_offset']:#x} in the bitstream, at "
                        f"{register['offset']:#x} in moehls.json: they are not of one project"
                    )


def pack_pixels(image, source):
    """A sample to the bytes of the input port: an image [channels, height, width], its patches, blocks of pixels, whole beats."""
    if source["preprocess"]:
        image = evaluate(steps_of(source["preprocess"]), image).astype(np.float32)
    scale, offset = (np.asarray(source[key], np.float64)[:, None, None] for key in ("scale", "offset"))
    levels = np.floor(np.asarray(image, np.float64) / scale + offset + 0.5)
    pixels = np.clip(levels, 0, 2 ** source["bits"] - 1).astype(np.uint16 if source["bits"] > 8 else np.uint8)
    channels, height, width = source["shape"]
    rows, columns = source["patch"]
    grid = pixels.reshape(channels, height // rows, rows, width // columns, columns).transpose(1, 3, 0, 2, 4)
    patches = grid.reshape(-1, channels * rows * columns)
    block, blocks = source["block"], source["blocks"]
    padded = np.zeros((len(patches), blocks * block), pixels.dtype)
    padded[:, : patches.shape[1]] = patches
    words = padded.reshape(-1, block).view(np.uint8)
    beats = np.zeros((len(words), source["word_beats"] * CHUNK), np.uint8)
    beats[:, : words.shape[1]] = words
    return beats.reshape(-1)


def unpack_results(data, outputs, raw=False):
    """Bytes of the output port to {name: array}: real numbers in the shape of the graph, or with `raw` the integers."""
    found = {}
    for output in outputs:
        first = output["first_beat"] * CHUNK
        size = output["rows"] * output["blocks"] * output["block"] * output["bits"] // 8
        lanes = data[first : first + size].view(np.dtype(f"<i{output['bits'] // 8}"))
        integers = lanes.reshape(output["rows"], -1)[:, : output["channels"]].astype(np.int64)
        if raw:
            found[output["name"]] = integers
            continue
        whole = output.get("part_of", output["name"])  # of a sum, which has further parts
        found[whole] = found.get(whole, 0) + (integers - np.asarray(output["offset"])) * np.asarray(output["scale"])
    return found if raw else {o["name"]: finished(found[o["name"]], o) for o in outputs if "part_of" not in o}


def finished(real, output):
    """Real numbers [rows, channels] to the graph's output, in its shape."""
    result = rounded(evaluate(steps_of(output["postprocess"]), real))
    return result.reshape(output["shape"][1:] if output["shape"][:1] == [1] else output["shape"])


def main():
    parser = argparse.ArgumentParser(description="Run images on the accelerator.")
    parser.add_argument("images", help=".npy of samples as the ONNX model takes them")
    parser.add_argument("-o", "--output", required=True, help=".npz of the outputs")
    parser.add_argument(
        "--bitstream", default=str(Path(__file__).resolve().parent.parent / "build/bitstream/design.bit")
    )
    parser.add_argument("--task", type=int, default=0)
    arguments = parser.parse_args()
    accelerator = Accelerator(arguments.bitstream)
    images = np.load(arguments.images)
    begin = time.perf_counter()
    outputs = accelerator.run(images, arguments.task)
    seconds = time.perf_counter() - begin
    np.savez(arguments.output, **outputs)
    print(f"{len(images)} images, {1e3 * seconds / len(images):.2f} ms each, processor's part included")


if __name__ == "__main__":
    main()
