"""Space in the activation memories and the residual: first fit, words a lane, each value from its step to its last reader."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Allocator:
    """Addresses of the live values of each memory, and the largest depth that was ever used."""

    live: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    depth: int = 1

    def take(self, memory: str, value: str, size: int, multiple: int = 1) -> int:
        """The lowest base, a multiple of `multiple`, with `size` free words in `memory`, now taken by `value`."""
        taken = self.live.setdefault(memory, [])
        base = 0
        for start, end, _ in taken:
            if base + size <= start:
                break
            base = -(-end // multiple) * multiple
        taken.append((base, base + size, value))
        taken.sort()
        self.depth = max(self.depth, base + size)
        return base

    def rename(self, before: str, after: str) -> None:
        """What `before` takes is `after` now."""
        for memory, taken in self.live.items():
            self.live[memory] = [(start, end, after if name == before else name) for start, end, name in taken]

    def release(self, value: str) -> None:
        """Give back what `value` takes, in every memory."""
        for memory, taken in self.live.items():
            self.live[memory] = [place for place in taken if place[2] != value]
