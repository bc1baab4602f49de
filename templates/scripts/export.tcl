# Vitis HLS: the RTL of csynth as an IP of Vivado, in build/ip.
source [file join [file dirname [file normalize [info script]]] hls.tcl]
open_kernel 0
set archive [file join $build ip "$top.zip"]
file mkdir [file dirname $archive]
attempt {export_design -rtl verilog -format ip_catalog -vendor moehls -library hls -version 1.0 -output $archive}
exit 0
