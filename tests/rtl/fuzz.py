"""Many random programs: `python -m tests.rtl.fuzz FIRST_SEED COUNT`. Prints every difference; exits 1 if there was one."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from moehls.simulate.verilator import OBJECTS
from tests.rtl.bench import compare
from tests.rtl.programs import Generator

BATCH = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    end = arguments.first + arguments.count
    failures = 0
    with tempfile.TemporaryDirectory() as objects:
        os.environ.setdefault(OBJECTS, objects)  # Verilator's runtime library is compiled once
        for start in range(arguments.first, end, BATCH):
            seeds = range(start, min(start + BATCH, end))
            try:
                with tempfile.TemporaryDirectory() as folder:
                    problems = compare([Generator(seed).design() for seed in seeds], Path(folder))
            except Exception as error:  # a program that one of the compilers refuses is a find as well
                problems = [f"{type(error).__name__}: {str(error)[:2000]}"]
            failures += bool(problems)
            print(f"seeds {start} to {seeds[-1]}: {problems or 'equal'}", flush=True)
    print(f"{arguments.count} programs from seed {arguments.first}: {failures} batches of {BATCH} with a difference")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
