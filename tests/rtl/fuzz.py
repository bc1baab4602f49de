"""Many random programs: `python -m tests.rtl.fuzz FIRST_SEED COUNT`. Exits 1 at the first batch with a difference."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.rtl.bench import compare
from tests.rtl.programs import Generator

BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    end = arguments.first + arguments.count
    for start in range(arguments.first, end, BATCH):
        designs = [Generator(seed).design() for seed in range(start, min(start + BATCH, end))]
        with tempfile.TemporaryDirectory() as folder:
            problems = compare(designs, Path(folder))
        print(f"seeds {start} to {start + len(designs) - 1}: {problems or 'equal'}", flush=True)
        if problems:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
