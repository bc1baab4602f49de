"""AXI masters: their channels, the movers that use them, and how a master reaches a mover through regions and programs.

A pointer argument of the kernel with an m_axi pragma is a master. `burst_read`, `burst_read_segments` and `burst_write` are not
compiled: movers of the library stand for them, one an AXI master, wherever in the hierarchy they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moehls.rtl.ports import Port

ADDRESS_BITS = 64
BEAT_BITS = 128
_SEGMENT_BITS = 64

# (name, width, driven by the kernel, what it is where nobody drives it)
READ = (
    ("ARVALID", 0, True, "1'b0"), ("ARREADY", 0, False, ""), ("ARADDR", 64, True, "64'd0"), ("ARLEN", 8, True, "8'd0"),
    ("RVALID", 0, False, ""), ("RREADY", 0, True, "1'b1"), ("RDATA", 128, False, ""), ("RRESP", 2, False, ""),
    ("RLAST", 0, False, ""),
)  # fmt: skip
WRITE = (
    ("AWVALID", 0, True, "1'b0"), ("AWREADY", 0, False, ""), ("AWADDR", 64, True, "64'd0"), ("AWLEN", 8, True, "8'd0"),
    ("WVALID", 0, True, "1'b0"), ("WREADY", 0, False, ""), ("WDATA", 128, True, "128'd0"), ("WSTRB", 16, True, "16'd0"),
    ("WLAST", 0, True, "1'b0"), ("BVALID", 0, False, ""), ("BREADY", 0, True, "1'b1"), ("BRESP", 2, False, ""),
)  # fmt: skip
FIXED = (
    ("WID", 1, "1'd0"), ("WUSER", 1, "1'd0"),
    *((f"{channel}{name}", width, value)
    for channel in ("AR", "AW")
    for name, width, value in (
        ("ID", 1, "1'd0"), ("SIZE", 3, "3'd4"), ("BURST", 2, "2'd1"), ("LOCK", 2, "2'd0"), ("CACHE", 4, "4'd3"),
        ("PROT", 3, "3'd0"), ("QOS", 4, "4'd0"), ("REGION", 4, "4'd0"), ("USER", 1, "1'd0"),
    )),
)  # fmt: skip
IGNORED = (("RID", 1), ("RUSER", 1), ("BID", 1), ("BUSER", 1))


@dataclass(frozen=True)
class Mover:
    """A function that a module of the library stands for.

    Attributes:
        way: "read" or "write".
        streams: parameter -> (direction, bits) of its streams.
        count: the module's port for its one scalar.
    """

    way: str
    streams: Mapping[str, tuple[str, int]]
    count: str

    @property
    def channels(self) -> tuple[tuple[str, int, bool, str], ...]:
        return READ if self.way == "read" else WRITE


MOVERS: Mapping[str, Mover] = {
    "burst_read": Mover("read", {"out": ("out", BEAT_BITS)}, "beats"),
    "burst_read_segments": Mover("read", {"requests": ("in", _SEGMENT_BITS), "out": ("out", BEAT_BITS)}, "segments"),
    "burst_write": Mover("write", {"in": ("in", BEAT_BITS)}, "beats"),
}


def channel_ports(prefix: str, channels: tuple[tuple[str, int, bool, str], ...]) -> list[Port]:
    """The ports `prefix_…` of some channels, as their user below the kernel has them."""
    return [Port("output" if out else "input", f"{prefix}_{name}", width) for name, width, out, _ in channels]


def master_ports(name: str, role: str) -> list[Port]:
    """A master that a unit below the kernel passes on to a mover: its address, its error and its channels."""
    ports = [Port("input", name, ADDRESS_BITS), Port("output", f"{name}_error")]
    return ports + channel_ports(f"m_axi_{name}", MOVERS[role].channels)


def master_pairs(role: str, mover: str, formal: str, actual: str) -> list[tuple[str, str]]:
    """The connections of master `formal` of a callee, the mover itself or a unit above it, to the caller's master `actual`."""
    outer = [port.name for port in master_ports(actual, mover)]
    if role not in MOVERS:
        return list(zip([port.name for port in master_ports(formal, mover)], outer, strict=True))
    own = [port.name for port in channel_ports("m_axi", MOVERS[mover].channels)]
    return list(zip(["memory", "error", *own], outer, strict=True))
