"""A stand-in for the Verilog that Vitis HLS writes: our RTL in its folders, behind a top module of its form.

The top has the ports of a Vitis kernel (every AXI signal, with widths as parameters, an address range of the registers as wide as
they need), a `timescale`, a register set by `#0`, and a table that it reads from a .dat file when it starts: without that
file it stays in reset.
"""

from __future__ import annotations

import re
from pathlib import Path

from moehls.project import Project
from moehls.simulate.rtl import generated_sources

_PORT = re.compile(r"^    (input |output) wire (?:\[(\d+):0\] )?(\w+),?$", re.MULTILINE)
_MASTER = re.compile(r"m_axi_(\w+)_([A-Z]+)$")
_WIDTHS = {"ID": 1, "ADDR": 64, "DATA": 128, "USER": 1}
_WIDTH_OF = {
    "ID": "ID_WIDTH", "ADDR": "ADDR_WIDTH", "DATA": "DATA_WIDTH", "STRB": "DATA_WIDTH / 8", "USER": "USER_WIDTH",
}  # fmt: skip


def write_solution(project: Project, folder: Path) -> None:
    """The Verilog of a solution in `folder`, as `syn/verilog` or `impl/verilog` has it."""
    name = project.manifest["interfaces"]["kernel"]
    folder.mkdir(parents=True)
    for source in generated_sources(project):
        text = source.read_text()
        if source.stem == name:
            (folder / f"{name}.v").write_text(_top(name, text, _control_bits(project)))
            text = text.replace(f"module {name} (", f"module {name}_core (")
        (folder / f"{name}_{source.stem}.v").write_text(text)
    (folder / f"{name}_go_ROM_AUTO_1R.dat").write_text("0\n1\n")


def _control_bits(project: Project) -> int:
    """Bits of an address behind the last register, which is followed by a reserved word."""
    last = project.manifest["registers"][-1]
    return int(last["offset"] + last["bits"] // 8 + 4 - 1).bit_length()


def _top(name: str, core: str, control_bits: int) -> str:
    ports = [(m[1].strip(), int(m[2] or 0), m[3]) for m in _PORT.finditer(core)]
    bundles = dict.fromkeys(m[1] for _, _, port in ports if (m := _MASTER.match(port)))
    lines = ["`timescale 1 ns / 1 ps", "", f'(* CORE_GENERATION_INFO="{name},hls_ip,{{}}" *)', "", f"module {name} ("]
    lines += [",\n".join(f"        {port}" for _, _, port in ports), ");", ""]
    lines += [
        "parameter    C_S_AXI_CONTROL_DATA_WIDTH = 32;",
        f"parameter    C_S_AXI_CONTROL_ADDR_WIDTH = {control_bits};",
    ]
    lines += [
        f"parameter    C_M_AXI_{bundle.upper()}_{kind}_WIDTH = {width};"
        for bundle in bundles
        for kind, width in _WIDTHS.items()
    ]
    connections = []
    for direction, high, port in ports:
        lines.append(f"{direction}  {_range(port, high)}{port};")
        value = port
        if port == "ap_rst_n":
            value = "ap_rst_n & go_q[0] & ~held"
        elif direction == "input" and port.startswith("s_axi_control_A") and port.endswith("ADDR"):
            value = f"{{{{{high + 1 - control_bits}{{1'b0}}}}, {port}}}" if high + 1 > control_bits else port
        connections.append(f"    .{port}({value})")
    lines += ["", "reg    held;", "reg [7:0] go[0:1];", "wire [7:0] go_q = go[1];", ""]
    lines += [
        "// power-on initialization",
        "initial begin",
        "#0 held = 1'b0;",
        f'$readmemh("./{name}_go_ROM_AUTO_1R.dat", go);',
    ]
    return "\n".join([*lines, "end", "", f"{name}_core core(", ",\n".join(connections), ");", "", "endmodule", ""])


def _range(port: str, high: int) -> str:
    if port.startswith("s_axi_control_"):
        kind = {"ADDR": "ADDR_WIDTH", "DATA": "DATA_WIDTH", "STRB": "DATA_WIDTH / 8"}.get(port[-4:])
        return f"[C_S_AXI_CONTROL_{kind} - 1:0] " if kind else f"[{high}:0] " if high else ""
    found = _MASTER.match(port)
    kind = next((width for end, width in _WIDTH_OF.items() if port.endswith(end)), None)
    if found is None or kind is None:
        return f"[{high}:0] " if high else ""
    return f"[C_M_AXI_{found[1].upper()}_{kind} - 1:0] "
