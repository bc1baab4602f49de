"""`python -m benchmarks NAME [ARGUMENTS]`: print the figures of a benchmark; without a name, of all that need no argument."""

from __future__ import annotations

import sys

from benchmarks import attention, cycles, fidelity, fits, m3vit, prefetch, resources, scale, shapes, speed
from moehls.errors import MoehlsError

ALONE = {"scale": scale.main, "fidelity": fidelity.main}
"""need no argument"""
BENCHMARKS = {
    **ALONE,
    "cycles": cycles.main,
    "fits": fits.main,
    "m3vit": m3vit.main,
    "attention": attention.main,
    "resources": resources.main,
    "prefetch": prefetch.main,
    "shapes": shapes.main,
    "speed": speed.main,
}


def main() -> None:
    """Run the benchmark named on the command line."""
    names = sys.argv[1:2] or list(ALONE)
    if names[0] not in BENCHMARKS:
        sys.exit(f"unknown benchmark {names[0]!r}; known are {', '.join(BENCHMARKS)}")
    for name in names:
        try:
            BENCHMARKS[name](sys.argv[2:])
        except MoehlsError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
