# Vivado: a block design of the kernel and the Zynq UltraScale+ processing system, down to build/bitstream/design.{bit,hwh}.
#
#   PS M_AXI_HPM0_FPD → SmartConnect → kernel s_axi_control         registers
#   kernel m_axi_*    → SmartConnect → PS S_AXI_HP0 … HP3, HPC0, HPC1   one 128-bit port a master
#   kernel interrupt  → PS pl_ps_irq0
#
# Run by `make bitstream` as `vivado -mode batch -source scripts/bitstream.tcl`; Vivado 2021.1 to 2024.2.

source [file join [file dirname [file normalize [info script]]] config.tcl]

set design design
set out [file join $build bitstream]
file mkdir $out
file mkdir $reports

create_project $design [file join $build vivado] -part $part -force
if {[llength [get_board_parts -quiet $board_part]] == 0} {
    puts stderr "error: Vivado does not know the board $board_part; install its board files (Tools > Vivado Store > Boards)"
    exit 1
}
set_property board_part $board_part [current_project]
set_property ip_repo_paths [list [file join $build hls solution impl ip]] [current_project]
update_ip_catalog -rebuild
set definition [get_ipdefs -all -filter "NAME == $top && LIBRARY == hls"]
if {[llength $definition] == 0} {
    puts stderr "error: no IP of the kernel in build/hls/solution/impl/ip; run make export first"
    exit 1
}

create_bd_design $design
# Without a version in its name, the catalogue's newest IP is taken.
set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e ps]
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} $ps
set kernel [create_bd_cell -type ip -vlnv [lindex $definition end] accelerator]

# Slave ports of the processing system in the order they are used: name, its S_AXI_GP number, its clock pin.
set slaves {
    {S_AXI_HP0_FPD  2 saxihp0_fpd_aclk}
    {S_AXI_HP1_FPD  3 saxihp1_fpd_aclk}
    {S_AXI_HP2_FPD  4 saxihp2_fpd_aclk}
    {S_AXI_HP3_FPD  5 saxihp3_fpd_aclk}
    {S_AXI_HPC0_FPD 0 saxihpc0_fpd_aclk}
    {S_AXI_HPC1_FPD 1 saxihpc1_fpd_aclk}
}
set masters [lsort [get_bd_intf_pins -of_objects $kernel -filter {MODE == Master && VLNV =~ "*:aximm_rtl:*"}]]
if {[llength $masters] > [llength $slaves]} {
    puts stderr "error: the kernel has [llength $masters] AXI masters, the processing system [llength $slaves] slave ports"
    exit 1
}
set slaves [lrange $slaves 0 [expr {[llength $masters] - 1}]]

set settings [list CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__M_AXI_GP2 0 \
    CONFIG.PSU__USE__IRQ0 1 CONFIG.PSU__FPGA_PL0_ENABLE 1 CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ 100]
foreach slave $slaves {
    lassign $slave name number clock
    lappend settings CONFIG.PSU__USE__S_AXI_GP$number 1 CONFIG.PSU__SAXIGP${number}__DATA_WIDTH $port_bits
}
set_property -dict $settings $ps

# The kernel's clock comes from an MMCM: the PS clock dividers do not reach every frequency.
set wizard [create_bd_cell -type ip -vlnv xilinx.com:ip:clk_wiz clock]
set_property -dict [list CONFIG.PRIM_SOURCE No_buffer \
    CONFIG.CLKOUT1_REQUESTED_OUT_FREQ [format %.3f $clock_mhz] CONFIG.RESET_TYPE ACTIVE_LOW CONFIG.RESET_PORT resetn] $wizard
set reset [create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset]
connect_bd_net [get_bd_pins $ps/pl_clk0] [get_bd_pins $wizard/clk_in1]
connect_bd_net [get_bd_pins $ps/pl_resetn0] [get_bd_pins $wizard/resetn] [get_bd_pins $reset/ext_reset_in]
connect_bd_net [get_bd_pins $wizard/locked] [get_bd_pins $reset/dcm_locked]
set clk [get_bd_pins $wizard/clk_out1]
set rst_n [get_bd_pins $reset/peripheral_aresetn]
connect_bd_net $clk [get_bd_pins $reset/slowest_sync_clk] [get_bd_pins $kernel/ap_clk] [get_bd_pins $ps/maxihpm0_fpd_aclk]
connect_bd_net $rst_n [get_bd_pins $kernel/ap_rst_n]
connect_bd_net [get_bd_pins $kernel/interrupt] [get_bd_pins $ps/pl_ps_irq0]

# A SmartConnect of one slave and one master joins the two AXI ports `from` and `to`.
proc join_axi {name from to} {
    global clk rst_n
    set connect [create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $name]
    set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI 1 CONFIG.NUM_CLKS 1] $connect
    connect_bd_net $clk [get_bd_pins $connect/aclk]
    connect_bd_net $rst_n [get_bd_pins $connect/aresetn]
    connect_bd_intf_net $from [get_bd_intf_pins $connect/S00_AXI]
    connect_bd_intf_net [get_bd_intf_pins $connect/M00_AXI] $to
}

join_axi registers [get_bd_intf_pins $ps/M_AXI_HPM0_FPD] [get_bd_intf_pins $kernel/s_axi_control]
foreach master $masters slave $slaves {
    lassign $slave name number clock
    connect_bd_net $clk [get_bd_pins $ps/$clock]
    join_axi memory$number $master [get_bd_intf_pins $ps/$name]
}

assign_bd_address
# The kernel needs the DDR alone; the PS's flash and low-power windows stay out of its reach.
foreach segment [get_bd_addr_segs -quiet -of_objects [get_bd_addr_spaces -of_objects $kernel]] {
    if {[string match *LPS_OCM* $segment] || [string match *QSPI* $segment]} {
        exclude_bd_addr_seg $segment
    }
}
validate_bd_design
save_bd_design
set wrapper [make_wrapper -files [get_files $design.bd] -top]
add_files -norecurse $wrapper
set_property top ${design}_wrapper [current_fileset]
update_compile_order -fileset sources_1

set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    puts stderr "error: implementation ended as [get_property STATUS [get_runs impl_1]]; see build/vivado/$design.runs"
    exit 1
}

open_run impl_1
report_utilization -file [file join $reports utilization.rpt]
report_timing_summary -file [file join $reports timing.rpt]
report_power -file [file join $reports power.rpt]
set run [get_property DIRECTORY [get_runs impl_1]]
file copy -force [file join $run ${design}_wrapper.bit] [file join $out $design.bit]
set handoff [glob [file join $build vivado $design.gen sources_1 bd $design hw_handoff $design.hwh]]
file copy -force [lindex $handoff 0] [file join $out $design.hwh]
exit 0
