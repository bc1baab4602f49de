"""The machine of M3ViT-tiny: its SystemVerilog made, checked by the delay model and by `verilator --lint-only -Wall`.

In go nothing, out come the seconds each part takes and what there is to say; status 1 where that is anything. Too long for the
tests: `make lint-m3vit`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from moehls.emit.hls import emit_hls
from moehls.integer.precision import W8A8
from moehls.plan.shape import Shape
from moehls.rtl.generate import LIBRARY, generate
from moehls.simulate.verilator import lint

M3VIT_TINY = Shape(
    W8A8, 12, 16, 4, 4, 528, 132, 129, 48, 12, 4, 129, 16, 49152, lut_columns=6,
    scaled_bits=25, shift_low=9, shift_high=27, second_bits=25, second_shift_low=13, second_shift_high=25,
    channel_bias_bits=21, activated_bias_bits=18, channel_shift_bits=5,
)  # fmt: skip
"""of `make bench-m3vit`"""


def main() -> int:
    """The exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_hls(M3VIT_TINY, ("exact",), folder)
        begin = time.process_time()
        report = generate(folder)
        generated = time.process_time() - begin
        begin = time.time()
        warnings = lint([LIBRARY / "waivers.vlt", *sorted((folder / "rtl").glob("*.sv"))], report.top)
        linted = time.time() - begin
    for line in (*warnings, *report.missed(), *report.slow()):
        print(line)
    longest = max(process.longest_path for process in report.processes)
    print(f"M3ViT-tiny's machine: generated in {generated:.0f} s of CPU, lint in {linted:.0f} s")
    print(
        f"{len(warnings)} warnings, {len(report.missed())} loops that miss their interval, {len(report.slow())} paths "
        f"that are too long (longest {longest:.2f} ns)"
    )
    return 1 if warnings or report.missed() or report.slow() else 0


if __name__ == "__main__":
    sys.exit(main())
