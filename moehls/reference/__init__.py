"""NumPy int64 executor of the integer network, written from `docs/numbers.md` alone: one short file an operation."""

from moehls.reference.execute import Execution, run
from moehls.reference.route import Routing

__all__ = ["Execution", "Routing", "run"]
