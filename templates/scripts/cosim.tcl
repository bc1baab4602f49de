# Vitis HLS: the RTL of csynth against the C++, on the sample of data/cosim (testbench/main.cpp). Leaves report/vendor/*_cosim.rpt.
source [file join [file dirname [file normalize [info script]]] hls.tcl]
open_kernel 0
attempt {cosim_design -rtl verilog -argv [file join $root data]}
keep_reports [list [file join $build hls solution sim report "${top}_cosim.rpt"]]
exit 0
