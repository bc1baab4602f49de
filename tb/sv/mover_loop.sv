// burst_read → fifo → burst_write on one AXI port, for their bench: `stall` holds the FIFO's input or output.
module mover_loop #(
    parameter int BURST = 16,
    parameter int OUTSTANDING = 4,
    parameter int DEPTH = 8,
    parameter STYLE = "distributed"
) (
    input  logic clk,
    input  logic rst,
    input  logic read_start,
    output logic read_done,
    input  logic write_start,
    output logic write_done,
    input  logic [63:0] source,
    input  logic [63:0] target,
    input  logic [31:0] beats,
    input  logic [1:0] stall,
    output logic read_error,
    output logic write_error,

    output logic         m_axi_arvalid,
    input  logic         m_axi_arready,
    output logic [63:0]  m_axi_araddr,
    output logic [7:0]   m_axi_arlen,
    output logic [0:0]   m_axi_arid,
    output logic [2:0]   m_axi_arsize,
    output logic [1:0]   m_axi_arburst,
    input  logic         m_axi_rvalid,
    output logic         m_axi_rready,
    input  logic [127:0] m_axi_rdata,
    input  logic [1:0]   m_axi_rresp,
    input  logic         m_axi_rlast,
    input  logic [0:0]   m_axi_rid,
    output logic         m_axi_awvalid,
    input  logic         m_axi_awready,
    output logic [63:0]  m_axi_awaddr,
    output logic [7:0]   m_axi_awlen,
    output logic [0:0]   m_axi_awid,
    output logic [2:0]   m_axi_awsize,
    output logic [1:0]   m_axi_awburst,
    output logic         m_axi_wvalid,
    input  logic         m_axi_wready,
    output logic [127:0] m_axi_wdata,
    output logic [15:0]  m_axi_wstrb,
    output logic         m_axi_wlast,
    input  logic         m_axi_bvalid,
    output logic         m_axi_bready,
    input  logic [1:0]   m_axi_bresp,
    input  logic [0:0]   m_axi_bid
);
  logic [127:0] in_data, out_data;
  logic in_valid, in_ready, out_valid, out_ready;

  assign {m_axi_arid, m_axi_arsize, m_axi_arburst} = {1'b0, 3'd4, 2'b01};
  assign {m_axi_awid, m_axi_awsize, m_axi_awburst} = {1'b0, 3'd4, 2'b01};

  burst_read #(.BURST(BURST), .OUTSTANDING(OUTSTANDING)) reader (
      .clock(clk), .reset(rst), .start(read_start), .done(read_done), .memory(source), .beats(beats), .error(read_error),
      .out_data(in_data), .out_valid(in_valid), .out_ready(in_ready && !stall[0]),
      .m_axi_ARVALID(m_axi_arvalid), .m_axi_ARREADY(m_axi_arready), .m_axi_ARADDR(m_axi_araddr), .m_axi_ARLEN(m_axi_arlen),
      .m_axi_RVALID(m_axi_rvalid), .m_axi_RREADY(m_axi_rready), .m_axi_RDATA(m_axi_rdata), .m_axi_RRESP(m_axi_rresp),
      .m_axi_RLAST(m_axi_rlast)
  );

  fifo #(.WIDTH(128), .DEPTH(DEPTH), .STYLE(STYLE)) queue (
      .clock(clk), .reset(rst), .in_data(in_data), .in_valid(in_valid && !stall[0]), .in_ready(in_ready),
      .out_data(out_data), .out_valid(out_valid), .out_ready(out_ready && !stall[1])
  );

  burst_write #(.BURST(BURST), .OUTSTANDING(OUTSTANDING)) writer (
      .clock(clk), .reset(rst), .start(write_start), .done(write_done), .memory(target), .beats(beats), .error(write_error),
      .in_data(out_data), .in_valid(out_valid && !stall[1]), .in_ready(out_ready),
      .m_axi_AWVALID(m_axi_awvalid), .m_axi_AWREADY(m_axi_awready), .m_axi_AWADDR(m_axi_awaddr), .m_axi_AWLEN(m_axi_awlen),
      .m_axi_WVALID(m_axi_wvalid), .m_axi_WREADY(m_axi_wready), .m_axi_WDATA(m_axi_wdata), .m_axi_WSTRB(m_axi_wstrb),
      .m_axi_WLAST(m_axi_wlast), .m_axi_BVALID(m_axi_bvalid), .m_axi_BREADY(m_axi_bready), .m_axi_BRESP(m_axi_bresp)
  );
endmodule
