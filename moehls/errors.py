"""The one error a user sees: a clear message, no traceback, exit code 2."""

from __future__ import annotations


class MoehlsError(Exception):
    """Bad input or usage. The message says what was found, what is supported and what to do."""


class DoesNotFit(MoehlsError):
    """The memories of a model are too large for a board."""


class CheckFailed(Exception):
    """A verification found a difference (exit code 1). The message names where."""
