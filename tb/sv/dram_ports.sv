// The DRAM model with two ports under the names of AXI buses, for its own bench.
module dram_ports #(
    parameter int BEATS = 4096
) (
    input  logic clk,
    input  logic rst_n,
    input  logic [15:0] latency,
    input  logic [15:0] bandwidth_q8,
    input  logic [15:0] refresh_interval,
    input  logic [15:0] refresh_length,
    input  logic [7:0]  stall_q8,
    input  logic [31:0] seed,
    input  logic [63:0] error_first,
    input  logic [63:0] error_last,
    output logic [63:0] read_beats,
    output logic [63:0] write_beats,
    output logic [31:0] protocol_errors,
    input  logic [0:0] p0_arvalid,
    output logic [0:0] p0_arready,
    input  logic [63:0] p0_araddr,
    input  logic [7:0] p0_arlen,
    output logic [0:0] p0_rvalid,
    input  logic [0:0] p0_rready,
    output logic [127:0] p0_rdata,
    output logic [1:0] p0_rresp,
    output logic [0:0] p0_rlast,
    input  logic [0:0] p0_awvalid,
    output logic [0:0] p0_awready,
    input  logic [63:0] p0_awaddr,
    input  logic [7:0] p0_awlen,
    input  logic [0:0] p0_wvalid,
    output logic [0:0] p0_wready,
    input  logic [127:0] p0_wdata,
    input  logic [15:0] p0_wstrb,
    input  logic [0:0] p0_wlast,
    output logic [0:0] p0_bvalid,
    input  logic [0:0] p0_bready,
    output logic [1:0] p0_bresp,
    input  logic [0:0] p0_arid,
    input  logic [2:0] p0_arsize,
    input  logic [1:0] p0_arburst,
    output logic [0:0] p0_rid,
    input  logic [0:0] p0_awid,
    input  logic [2:0] p0_awsize,
    input  logic [1:0] p0_awburst,
    output logic [0:0] p0_bid,
    input  logic [0:0] p1_arvalid,
    output logic [0:0] p1_arready,
    input  logic [63:0] p1_araddr,
    input  logic [7:0] p1_arlen,
    output logic [0:0] p1_rvalid,
    input  logic [0:0] p1_rready,
    output logic [127:0] p1_rdata,
    output logic [1:0] p1_rresp,
    output logic [0:0] p1_rlast,
    input  logic [0:0] p1_awvalid,
    output logic [0:0] p1_awready,
    input  logic [63:0] p1_awaddr,
    input  logic [7:0] p1_awlen,
    input  logic [0:0] p1_wvalid,
    output logic [0:0] p1_wready,
    input  logic [127:0] p1_wdata,
    input  logic [15:0] p1_wstrb,
    input  logic [0:0] p1_wlast,
    output logic [0:0] p1_bvalid,
    input  logic [0:0] p1_bready,
    output logic [1:0] p1_bresp,
    input  logic [0:0] p1_arid,
    input  logic [2:0] p1_arsize,
    input  logic [1:0] p1_arburst,
    output logic [0:0] p1_rid,
    input  logic [0:0] p1_awid,
    input  logic [2:0] p1_awsize,
    input  logic [1:0] p1_awburst,
    output logic [0:0] p1_bid
);
  wire [1:0] arvalid = {p1_arvalid, p0_arvalid};
  wire [1:0] arready;
  assign {p1_arready, p0_arready} = arready;
  wire [1:0][63:0] araddr = {p1_araddr, p0_araddr};
  wire [1:0][7:0] arlen = {p1_arlen, p0_arlen};
  wire [1:0] rvalid;
  assign {p1_rvalid, p0_rvalid} = rvalid;
  wire [1:0] rready = {p1_rready, p0_rready};
  wire [1:0][127:0] rdata;
  assign {p1_rdata, p0_rdata} = rdata;
  wire [1:0][1:0] rresp;
  assign {p1_rresp, p0_rresp} = rresp;
  wire [1:0] rlast;
  assign {p1_rlast, p0_rlast} = rlast;
  wire [1:0] awvalid = {p1_awvalid, p0_awvalid};
  wire [1:0] awready;
  assign {p1_awready, p0_awready} = awready;
  wire [1:0][63:0] awaddr = {p1_awaddr, p0_awaddr};
  wire [1:0][7:0] awlen = {p1_awlen, p0_awlen};
  wire [1:0] wvalid = {p1_wvalid, p0_wvalid};
  wire [1:0] wready;
  assign {p1_wready, p0_wready} = wready;
  wire [1:0][127:0] wdata = {p1_wdata, p0_wdata};
  wire [1:0][15:0] wstrb = {p1_wstrb, p0_wstrb};
  wire [1:0] wlast = {p1_wlast, p0_wlast};
  wire [1:0] bvalid;
  assign {p1_bvalid, p0_bvalid} = bvalid;
  wire [1:0] bready = {p1_bready, p0_bready};
  wire [1:0][1:0] bresp;
  assign {p1_bresp, p0_bresp} = bresp;
  assign {p0_rid, p0_bid, p1_rid, p1_bid} = '0;

  dram #(.PORTS(2), .BEATS(BEATS)) dram (.*);
endmodule
