// burst_read: `beats` beats of 128 bits from `memory` on, in AXI4 bursts, into a FIFO.
//
// A burst ends where its address reaches a multiple of BURST beats, so none crosses 4 KiB. Up to OUTSTANDING bursts are
// asked for ahead of their data. Arguments are taken with `start`; `error` holds from the first response that is not
// OKAY until the next start, and data goes on all the same, so that nothing behind it hangs.
module burst_read #(
    parameter int BURST = 64,       // beats, a power of two up to 256
    parameter int OUTSTANDING = 16  // bursts
) (
    input  logic clock,
    input  logic reset,
    input  logic start,
    output logic done,
    input  logic [63:0] memory,     // address in bytes, a multiple of 16
    input  logic [31:0] beats,
    output logic error,

    output logic [127:0] out_data,
    output logic         out_valid,
    input  logic         out_ready,

    output logic         m_axi_ARVALID,
    input  logic         m_axi_ARREADY,
    output logic [63:0]  m_axi_ARADDR,
    output logic [7:0]   m_axi_ARLEN,
    input  logic         m_axi_RVALID,
    output logic         m_axi_RREADY,
    input  logic [127:0] m_axi_RDATA,
    input  logic [1:0]   m_axi_RRESP,
    input  logic         m_axi_RLAST
);
  localparam int PLACE_BITS = $clog2(BURST);
  localparam int COUNT_BITS = $clog2(OUTSTANDING + 1);
  localparam logic [8:0] LONGEST = 9'(BURST);
  localparam logic [COUNT_BITS-1:0] MOST = COUNT_BITS'(OUTSTANDING);

  logic running;
  logic [59:0] address;               // of the next burst, in beats
  logic [31:0] unasked, untaken;      // beats
  logic [COUNT_BITS-1:0] in_flight;   // bursts
  logic sized;                        // `length` is that of the next burst; it takes a cycle of its own
  logic [8:0] length;

  wire [8:0] room = LONGEST - {{(9 - PLACE_BITS) {1'b0}}, address[PLACE_BITS-1:0]};
  wire asks = sized && in_flight != MOST && (!m_axi_ARVALID || m_axi_ARREADY);
  wire takes = m_axi_RVALID && m_axi_RREADY;
  wire ends = takes && m_axi_RLAST;

  assign out_data = m_axi_RDATA;
  assign out_valid = m_axi_RVALID && running;
  assign m_axi_RREADY = out_ready && running;

  always_ff @(posedge clock) begin
    done <= 1'b0;
    sized <= running && unasked != 0 && !asks;
    length <= unasked < {23'd0, room} ? unasked[8:0] : room;
    if (asks) begin
      m_axi_ARVALID <= 1'b1;
      m_axi_ARADDR <= {address, 4'b0};
      m_axi_ARLEN <= 8'(length - 9'd1);
      address <= address + {51'd0, length};
      unasked <= unasked - {23'd0, length};
    end else if (m_axi_ARREADY) begin
      m_axi_ARVALID <= 1'b0;
    end
    if (asks && !ends) in_flight <= in_flight + 1'b1;
    if (ends && !asks) in_flight <= in_flight - 1'b1;
    if (takes) begin
      untaken <= untaken - 1;
      if (m_axi_RRESP[1]) error <= 1'b1;
    end
    if (running && (untaken == 0 || (untaken == 1 && takes))) begin
      running <= 1'b0;
      done <= 1'b1;
    end
    if (!running && start) begin
      running <= 1'b1;
      address <= memory[63:4];
      unasked <= beats;
      untaken <= beats;
      error <= 1'b0;
    end
    if (reset) begin
      running <= 1'b0;
      sized <= 1'b0;
      done <= 1'b0;
      error <= 1'b0;
      in_flight <= '0;
      m_axi_ARVALID <= 1'b0;
    end
  end
endmodule
