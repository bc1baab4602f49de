"""The kernel's module: the top region behind AXI, with the ports and registers Vitis HLS gives the same C++."""

from __future__ import annotations

from dataclasses import dataclass

from moehls.errors import MoehlsError
from moehls.rtl.elaborate import Elaborator, Unit
from moehls.rtl.interface import connect, interface, plain
from moehls.rtl.masters import ADDRESS_BITS, FIXED, IGNORED, MOVERS, READ, WRITE, channel_ports
from moehls.rtl.ports import Body, Port
from moehls.rtl.structure import declare_fifos, instance_pairs, mover_parameters


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
    names = [i.name for i in unit.instances]
    body.declarations += [f"wire [{len(names) - 1}:0] ends;", f"logic [{len(names) - 1}:0] finished;"]
    channels = {
        port.name: port.name.replace(f"m_axi_{name}_", f"m_axi_{bundle}_", 1)
        for name, bundle in bundles.items()
        for port in channel_ports(f"m_axi_{name}", (*READ, *WRITE))
    }
    for k, instance in enumerate(unit.instances):
        pairs = [(port, channels.get(name, name)) for port, name in instance_pairs(e, unit, instance, k)]
        module = instance.unit.name + mover_parameters(e, unit, instance)
        body.lines += [f"{module} {instance.name} (", *connect(pairs)]
        for formal, (_, mover) in interface(e, instance.unit).masters.items():
            driven.add((bundles[plain(instance.pointers[formal][0])], MOVERS[mover].way))
    for bundle in dict.fromkeys(bundles.values()):
        _silence(body, bundle, driven)
    _status(body, list(bundles))
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
        for name, width, out, _ in (*READ, *WRITE):
            ports.append(Port("output" if out else "input", f"m_axi_{bundle}_{name}", width))
        for name, width, value in FIXED:
            ports.append(Port("output", f"m_axi_{bundle}_{name}", width))
            body.lines.append(f"assign m_axi_{bundle}_{name} = {value};")
        ports += [Port("input", f"m_axi_{bundle}_{name}", width) for name, width in IGNORED]
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


def _status(body: Body, masters: list[str]) -> None:
    """The status register: a bit a master, from its first error in a frame until the next frame starts."""
    body.declarations += [f"wire {name}_error;" for name in masters]
    body.declarations += [f"logic [{len(masters) - 1}:0] failed;"]
    errors = ", ".join(f"{name}_error" for name in reversed(masters))
    body.lines += [
        f"always_ff @(posedge clock) failed <= reset | start ? '0 : failed | {{{errors}}};",
        f"assign status = {{{32 - len(masters)}'d0, failed}};",
    ]


def _silence(body: Body, bundle: str, driven: set[tuple[str, str]]) -> None:
    """Channels of a bundle that nobody uses."""
    for way, channel in (("read", READ), ("write", WRITE)):
        if (bundle, way) not in driven:
            body.lines += [f"assign m_axi_{bundle}_{n} = {value};" for n, _, out, value in channel if out]
