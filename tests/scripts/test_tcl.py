"""The vendor scripts: complete Tcl, which runs to its end where the vendor's commands are stubs that record."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from moehls.resources import resource

SCRIPTS = resource("templates") / "scripts"
TCL = sorted(SCRIPTS.glob("*.tcl"))
CONFIG = """
set top kernel
set part xczu7ev-ffvc1156-2-e
set board_part xilinx.com:zcu104:part0:1.1
set clock_mhz 300
set port_bits 128
set depths {-DWEIGHTS_DEPTH=1}
set root [file dirname [file dirname [file normalize [info script]]]]
set build [file join $root build]
set reports [file join $root report vendor]
"""
# Every unknown command is the vendor's: it is recorded, and answers what the scripts need to go on.
STUBS = """
set log [open $env(LOG) w]
proc unknown {args} {
    global log
    puts $log $args
    flush $log
    switch -- [lindex $args 0] {
        get_board_parts  { return xilinx.com:zcu104:part0:1.1 }
        get_ipdefs       { return moehls:hls:kernel:1.0 }
        create_bd_cell   { return "/[lindex $args end]" }
        get_bd_intf_pins { if {[lindex $args 1] eq "-of_objects"} { return {/accelerator/m_axi_a /accelerator/m_axi_b} }
                           return [lindex $args end] }
        get_bd_pins      { return [lindex $args end] }
        get_property     { if {[lindex $args 1] eq "PROGRESS"} { return 100% }
                           return [file dirname $::env(LOG)] }
        csynth_design    { if {[info exists ::env(FAIL)]} { error "no such loop" } }
    }
}
rename exit real_exit
proc exit {{code 0}} { real_exit $code }
"""


def braces(text: str) -> int:
    """Depth of braces left open, comments and escapes aside."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return code.replace("\\{", "").replace("\\}", "").count("{") - code.replace("\\{", "").replace("\\}", "").count("}")


@pytest.mark.parametrize("script", TCL, ids=lambda path: path.name)
def test_braces_and_brackets_balance(script: Path) -> None:
    text = script.read_text()
    assert braces(text) == 0
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert code.count("[") == code.count("]")


def run(tmp_path: Path, script: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    tclsh = shutil.which("tclsh")
    assert tclsh is not None
    root = tmp_path / "a project"
    shutil.copytree(SCRIPTS, root / "scripts")
    (root / "scripts/config.tcl").write_text(CONFIG)
    for file in (
        "src/kernel.cpp",
        "testbench/main.cpp",
        "data/weights.bin",
        "build/vivado/design.gen/sources_1/bd/design/hw_handoff/design.hwh",
        "build/bitstream/design_wrapper.bit",
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    log = root / "build/bitstream/log"
    main = tmp_path / "main.tcl"
    main.write_text(STUBS + f"source {{{root}/scripts/{script}}}\n")
    done = subprocess.run(
        [tclsh, str(main)], capture_output=True, text=True, timeout=60, check=False,
        env={"LOG": str(log), "PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return done, log.read_text().splitlines()


needs_tclsh = pytest.mark.skipif(shutil.which("tclsh") is None, reason="no tclsh here")


@needs_tclsh
@pytest.mark.parametrize("script", ["csynth.tcl", "cosim.tcl", "export.tcl", "bitstream.tcl"])
def test_a_script_runs_to_its_end(script: str, tmp_path: Path) -> None:
    done, commands = run(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, "")
    goal = {"csynth": "csynth_design", "cosim": "cosim_design", "export": "export_design", "bitstream": "launch_runs"}
    assert any(command.startswith(goal[script.removesuffix(".tcl")]) for command in commands)


@needs_tclsh
def test_vitis_gets_the_part_the_clock_and_the_sources(tmp_path: Path) -> None:
    _, commands = run(tmp_path, "csynth.tcl")
    assert "set_part xczu7ev-ffvc1156-2-e" in commands
    assert "create_clock -period 3.333 -name default" in commands
    assert any(command.startswith("add_files ") and "kernel.cpp" in command for command in commands)


@needs_tclsh
def test_a_failed_synthesis_ends_with_code_1(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "csynth.tcl", FAIL="1")
    assert done.returncode == 1
    assert "no such loop" in done.stderr


@needs_tclsh
def test_every_master_gets_a_port_of_its_own_a_clock_and_a_connection(tmp_path: Path) -> None:
    _, commands = run(tmp_path, "bitstream.tcl")
    text = "\n".join(commands)
    for port, master in (("S_AXI_HP0_FPD", "m_axi_a"), ("S_AXI_HP1_FPD", "m_axi_b")):
        assert f"/ps/{port}" in text
        assert f"connect_bd_intf_net /accelerator/{master} " in text
    assert "CONFIG.PSU__USE__S_AXI_GP3 1" in text
    assert "CONFIG.PSU__USE__S_AXI_GP4 1" not in text
    assert "connect_bd_net /accelerator/interrupt /ps/pl_ps_irq0" in text
