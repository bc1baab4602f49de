"""The program `moehls` (also `python -m moehls`): sets up the process, then runs the command line."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line with one BLAS thread, unless the user chose a number.

    The matrices are small: on a busy machine a second thread spends more time waiting than it saves, and the processor time
    of a compilation grows several times.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from moehls.cli import main as command_line  # NumPy reads the variable when it is imported

    command_line()


if __name__ == "__main__":
    main()
