# Shared by csynth.tcl, cosim.tcl and export.tcl: the Vitis HLS project of the kernel, in build/hls.
# Commands of Vitis HLS 2021.1 to 2024.2 (UG1399, "vitis_hls command reference").

source [file join [file dirname [file normalize [info script]]] config.tcl]

# Opens the project; `reset` starts it anew. Cosim and export go on from what csynth left.
proc open_kernel {reset} {
    global top part clock_mhz depths root build
    file mkdir $build
    cd $build
    if {$reset} {
        open_project -reset hls
    } else {
        open_project hls
    }
    set_top $top
    set flags "-std=c++14 -I[file join $root include] $depths"
    foreach file [lsort [glob -directory [file join $root src] *.cpp]] {
        add_files $file -cflags $flags
    }
    foreach file [lsort [glob -directory [file join $root testbench] *.cpp]] {
        add_files -tb $file -cflags $flags
    }
    if {$reset} {
        open_solution -reset solution -flow_target vivado
    } else {
        open_solution solution -flow_target vivado
    }
    set_part $part
    create_clock -period [format %.3f [expr {1000.0 / $clock_mhz}]] -name default
    # 64-bit addresses and the register map that host/driver.py writes to.
    config_interface -m_axi_addr64
    # Memories keep their contents over a reset; only control state is cleared.
    config_rtl -reset control
}

# Runs a command of the tool; an error ends the process with code 1, so that make stops.
proc attempt {command} {
    if {[catch {uplevel 1 $command} message]} {
        puts stderr "error: $command: $message"
        exit 1
    }
}

# Copies the files that match into report/vendor, where `moehls collect` reads them.
proc keep_reports {patterns} {
    global reports
    file mkdir $reports
    foreach pattern $patterns {
        foreach file [glob -nocomplain $pattern] {
            file copy -force $file $reports
        }
    }
}
