"""How close integers are to the float model: in go pairs of arrays, out come SQNR, cosine, agreement and accuracy.

Figures over many samples are sums over all of them, not means of ratios.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Error:
    """Running sums of a signal and its error."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0

    def add(self, exact: Array, found: Array) -> None:
        """One more pair of arrays of a shape: the float model's and ours."""
        x, y = exact.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        self.signal += float(x @ x)
        self.other += float(y @ y)
        self.product += float(x @ y)
        self.noise += float((x - y) @ (x - y))

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise in dB; `None` where there is no signal or no noise."""
        if self.signal == 0 or self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise)

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two."""
        if self.signal == 0 or self.other == 0:
            return None
        return self.product / math.sqrt(self.signal * self.other)


@dataclass
class Share:
    """A running share: `hits` of `total`."""

    hits: int = 0
    total: int = 0

    def add(self, hits: int, total: int) -> None:
        self.hits += hits
        self.total += total

    @property
    def value(self) -> float | None:
        return self.hits / self.total if self.total else None


def agreement(ours: Array, theirs: Array) -> tuple[int, int]:
    """Kept (token, expert) choices and all of them, from two `[tokens, k]` arrays of expert indices."""
    kept = (ours[:, :, None] == theirs[:, None, :]).any(axis=2)
    return int(kept.sum()), kept.size


def correct(output: Array, labels: Array) -> tuple[int, int]:
    """Right classes and labelled rows: the largest of the last axis is the class where the output does not hold it, a label
    below 0 is none."""
    holds = np.issubdtype(output.dtype, np.integer)
    classes = output.reshape(-1) if holds else output.reshape(-1, output.shape[-1]).argmax(axis=1)
    wanted = np.asarray(labels).reshape(-1)
    return int(((classes == wanted) & (wanted >= 0)).sum()), int((wanted >= 0).sum())


def first_difference(expected: Array, found: Array) -> tuple[int, ...] | None:
    """Index of the first element that differs, `None` where the arrays are equal in shape and every element."""
    if expected.shape != found.shape:
        return ()
    different = np.flatnonzero((expected != found).ravel())
    return tuple(int(i) for i in np.unravel_index(different[0], expected.shape)) if different.size else None
