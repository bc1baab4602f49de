"""The kernel's module: the top region behind AXI, with the ports and registers Vitis HLS gives the same C++.

`burst_read` and `burst_write` are not compiled: movers of the library stand for them, one an AXI master.
"""

from __future__ import annotations

from dataclasses import dataclass

from moehls.errors import MoehlsError
from moehls.rtl.elaborate import MOVERS, Elaborator, Instance, Unit
from moehls.rtl.ports import Body, Port
from moehls.rtl.structure import connect, declare_fifos, instance_pairs, plain, stream_end

ADDRESS_BITS = 64

# (name, width, driven by the kernel, what it is where nobody drives it)
_READ = (
    ("ARVALID", 0, True, "1'b0"), ("ARREADY", 0, False, ""), ("ARADDR", 64, True, "64'd0"), ("ARLEN", 8, True, "8'd0"),
    ("RVALID", 0, False, ""), ("RREADY", 0, True, "1'b1"), ("RDATA", 128, False, ""), ("RRESP", 2, False, ""),
    ("RLAST", 0, False, ""),
)  # fmt: skip
_WRITE = (
    ("AWVALID", 0, True, "1'b0"), ("AWREADY", 0, False, ""), ("AWADDR", 64, True, "64'd0"), ("AWLEN", 8, True, "8'd0"),
    ("WVALID", 0, True, "1'b0"), ("WREADY", 0, False, ""), ("WDATA", 128, True, "128'd0"), ("WSTRB", 16, True, "16'd0"),
    ("WLAST", 0, True, "1'b0"), ("BVALID", 0, False, ""), ("BREADY", 0, True, "1'b1"), ("BRESP", 2, False, ""),
)  # fmt: skip
_FIXED = (
    ("WID", 1, "1'd0"), ("WUSER", 1, "1'd0"),
    *((f"{channel}{name}", width, value)
    for channel in ("AR", "AW")
    for name, width, value in (
        ("ID", 1, "1'd0"), ("SIZE", 3, "3'd4"), ("BURST", 2, "2'd1"), ("LOCK", 2, "2'd0"), ("CACHE", 4, "4'd3"),
        ("PROT", 3, "3'd0"), ("QOS", 4, "4'd0"), ("REGION", 4, "4'd0"), ("USER", 1, "1'd0"),
    )),
)  # fmt: skip
_IGNORED = (("RID", 1), ("RUSER", 1), ("BID", 1), ("BUSER", 1))


@dataclass(frozen=True)
class Argument:
    """An argument of the kernel: its first register is word `word`, counted from offset 0x10."""

    name: str
    formal: str
    width: int
    pointer: bool
    word: int


def arguments(e: Elaborator, unit: Unit) -> list[Argument]:
    """The kernel's arguments with their places in the register map (UG1399): each is followed by a reserved word."""
    found, word = [], 0
    for type_, formal in e.module.functions[unit.function].parameters:
        width = ADDRESS_BITS if type_ == "ptr" else e.module.types.bits(type_)
        found.append(Argument(plain(formal), formal, width, type_ == "ptr", word))
        word += 3 if width > 32 else 2
    return found


def emit_kernel(e: Elaborator, unit: Unit) -> str:
    """The text of the kernel's module.

    Raises:
        MoehlsError: a pointer argument has no m_axi pragma, or does not go to a mover.
    """
    body = Body()
    known = arguments(e, unit)
    bundles = _bundles(e, known)
    _ports(body, list(dict.fromkeys(bundles.values())), known)
    _control(body, known)
    declare_fifos(e, unit, body)
    driven: set[tuple[str, str]] = set()
    errors = []
    names = [i.name for i in unit.instances]
    body.declarations += [f"wire [{len(names) - 1}:0] ends;", f"logic [{len(names) - 1}:0] finished;"]
    for k, instance in enumerate(unit.instances):
        if instance.unit.role in MOVERS:
            bundle = bundles[_pointer(instance, known).name]
            _mover(e, unit, body, instance, k, bundle, known)
            driven.add((bundle, instance.unit.role))
            errors.append(f"{instance.name}_error")
        else:
            body.lines += [f"{instance.unit.name} {instance.name} (", *connect(instance_pairs(e, unit, instance, k))]
    for bundle in dict.fromkeys(bundles.values()):
        _silence(body, bundle, driven)
    body.lines.append(f"assign status = {{{32 - len(errors)}'d0, {', '.join(reversed(errors))}}};")
    return body.text(unit.name)


def _bundles(e: Elaborator, known: list[Argument]) -> dict[str, str]:
    found = {}
    for a in known:
        if a.pointer:
            name = a.formal.strip("%")
            if name not in e.design.masters:
                raise MoehlsError(f"the kernel's argument {name} has no INTERFACE(m_axi port = {name} …)")
            found[a.name] = e.design.masters[name]["bundle"]
    return found


def _pointer(instance: Instance, known: list[Argument]) -> Argument:
    for actual, _ in instance.pointers.values():
        for a in known:
            if a.formal == actual:
                return a
    raise MoehlsError(
        f"{instance.name} is a burst mover, but moves to or from no argument of the kernel ({instance.place})"
    )


def _ports(body: Body, bundles: list[str], known: list[Argument]) -> None:
    bits = control_address_bits(known)
    ports = body.ports
    ports += [Port("input", "ap_clk"), Port("input", "ap_rst_n"), Port("output", "interrupt")]
    for name, width, out in (
        ("AWVALID", 0, False), ("AWREADY", 0, True), ("AWADDR", bits, False), ("WVALID", 0, False), ("WREADY", 0, True),
        ("WDATA", 32, False), ("WSTRB", 4, False), ("BVALID", 0, True), ("BREADY", 0, False), ("BRESP", 2, True),
        ("ARVALID", 0, False), ("ARREADY", 0, True), ("ARADDR", bits, False), ("RVALID", 0, True), ("RREADY", 0, False),
        ("RDATA", 32, True), ("RRESP", 2, True),
    ):  # fmt: skip
        ports.append(Port("output" if out else "input", f"s_axi_control_{name}", width))
    for bundle in bundles:
        for name, width, out, _ in (*_READ, *_WRITE):
            ports.append(Port("output" if out else "input", f"m_axi_{bundle}_{name}", width))
        for name, width, value in _FIXED:
            ports.append(Port("output", f"m_axi_{bundle}_{name}", width))
            body.lines.append(f"assign m_axi_{bundle}_{name} = {value};")
        ports += [Port("input", f"m_axi_{bundle}_{name}", width) for name, width in _IGNORED]
        body.lines.append("")


def control_address_bits(known: list[Argument]) -> int:
    """Address bits of the control registers, the status register behind the arguments among them."""
    return (0x10 + 4 * words(known) + 3).bit_length()


def words(known: list[Argument]) -> int:
    """Registers of arguments, reserved ones among them."""
    return known[-1].word + (3 if known[-1].width > 32 else 2)


def _control(body: Body, known: list[Argument]) -> None:
    count = words(known)
    present = 0
    for a in known:
        present |= (3 if a.width > 32 else 1) << a.word
        body.declarations.append(f"wire [{a.width - 1}:0] {a.name};")
        low = f"arguments[{a.word}]" + (f"[{a.width - 1}:0]" if a.width < 32 else "")
        body.lines.append(f"assign {a.name} = {f'{{arguments[{a.word + 1}], {low}}}' if a.width > 32 else low};")
    body.declarations += [
        "logic reset, running;", "wire start, done, ap_start;", f"wire [{count - 1}:0][31:0] arguments;", "wire [31:0] status;",
        "wire clock = ap_clk;",
    ]  # fmt: skip
    signals = (
        "AWVALID AWREADY AWADDR WVALID WREADY WDATA WSTRB BVALID BREADY BRESP ARVALID ARREADY ARADDR RVALID RREADY RDATA RRESP"
    ).split()
    pairs = [("ap_clk", "clock"), ("ap_rst", "reset"), *((f"s_axi_{s}", f"s_axi_control_{s}") for s in signals)]
    pairs += [("interrupt", "interrupt"), ("ap_start", "ap_start"), ("ap_done", "done"), ("ap_idle", "~running")]
    pairs += [("ap_ready", "done"), ("arguments", "arguments"), ("status", "status")]
    body.lines += [
        "",
        "always_ff @(posedge clock) reset <= ~ap_rst_n;",
        "assign start = ap_start & ~running & ~reset;",
        "assign done = running & &(finished | ends);",
        "always_ff @(posedge clock) begin",
        "    running <= ~reset & (start | (running & ~done));",
        "    finished <= reset | start | done ? '0 : finished | ends;",
        "end",
        f"control #(.ADDRESS_BITS({control_address_bits(known)}), .WORDS({count}), .PRESENT({count}'h{present:x})) registers (",
        *connect(pairs),
    ]


def _mover(
    e: Elaborator, unit: Unit, body: Body, instance: Instance, index: int, bundle: str, known: list[Argument]
) -> None:
    name, role = instance.name, instance.unit.role
    reads = role == "burst_read"
    stream, lane = next(v for v in instance.pointers.values() if v[0] in unit.declared)
    beats = next(iter(instance.scalars.values()))
    options = e.design.masters[_pointer(instance, known).formal.strip("%")]
    way = "read" if reads else "write"
    burst = options.get(f"max_{way}_burst_length", "64")
    outstanding = options.get(f"num_{way}_outstanding", "4")
    body.declarations.append(f"wire {name}_error;")
    end = stream_end(unit, stream, lane, "in" if reads else "out")
    pairs = [("clock", "clock"), ("reset", "reset"), ("start", "start"), ("done", f"ends[{index}]")]
    pairs += [("memory", _pointer(instance, known).name)]
    pairs += [("beats", f"32'd{beats}" if isinstance(beats, int) else plain(beats)), ("error", f"{name}_error")]
    port = "out" if reads else "in"
    pairs += [(f"{port}_{x}", f"{end}_{x}") for x in ("data", "valid", "ready")]
    pairs += [(f"m_axi_{n}", f"m_axi_{bundle}_{n}") for n, *_ in (_READ if reads else _WRITE)]
    body.lines += [f"{role} #(.BURST({burst}), .OUTSTANDING({outstanding})) {name} (", *connect(pairs)]


def _silence(body: Body, bundle: str, driven: set[tuple[str, str]]) -> None:
    """Channels of a bundle that nobody uses."""
    for role, channel in (("burst_read", _READ), ("burst_write", _WRITE)):
        if (bundle, role) not in driven:
            body.lines += [f"assign m_axi_{bundle}_{n} = {value};" for n, _, out, value in channel if out]
