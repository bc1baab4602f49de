// burst_write: `beats` beats of 128 bits from a FIFO to `memory`, in AXI4 bursts; done when every response is in.
//
// A burst ends where its address reaches a multiple of BURST beats, so none crosses 4 KiB. Up to OUTSTANDING bursts wait
// for their response. Data follows its address. Arguments are taken with `start`; `error` holds from the first response
// that is not OKAY until the next start.
module burst_write #(
    parameter int BURST = 64,      // beats, a power of two up to 256
    parameter int OUTSTANDING = 4  // bursts
) (
    input  logic clock,
    input  logic reset,
    input  logic start,
    output logic done,
    input  logic [63:0] memory,    // address in bytes, a multiple of 16
    input  logic [31:0] beats,
    output logic error,

    input  logic [127:0] in_data,
    input  logic         in_valid,
    output logic         in_ready,

    output logic         m_axi_AWVALID,
    input  logic         m_axi_AWREADY,
    output logic [63:0]  m_axi_AWADDR,
    output logic [7:0]   m_axi_AWLEN,
    output logic         m_axi_WVALID,
    input  logic         m_axi_WREADY,
    output logic [127:0] m_axi_WDATA,
    output logic [15:0]  m_axi_WSTRB,
    output logic         m_axi_WLAST,
    input  logic         m_axi_BVALID,
    output logic         m_axi_BREADY,
    input  logic [1:0]   m_axi_BRESP
);
  localparam int PLACE_BITS = $clog2(BURST);
  localparam int COUNT_BITS = $clog2(OUTSTANDING + 1);
  localparam logic [8:0] LONGEST = 9'(BURST);
  localparam logic [COUNT_BITS-1:0] MOST = COUNT_BITS'(OUTSTANDING);

  logic running;
  logic [59:0] address;                        // of the next burst, in beats
  logic [PLACE_BITS-1:0] place;                // of the next beat of data in its burst
  logic [31:0] unasked, unsent;                // beats
  logic [COUNT_BITS-1:0] open, unanswered;     // bursts whose address is taken: without all data, without a response
  logic sized;                                 // `length` is that of the next burst; it takes a cycle of its own
  logic [8:0] length;

  wire [8:0] room = LONGEST - {{(9 - PLACE_BITS) {1'b0}}, address[PLACE_BITS-1:0]};
  wire asks = sized && unanswered != MOST && !m_axi_AWVALID;
  wire asked = m_axi_AWVALID && m_axi_AWREADY;
  wire sends = m_axi_WVALID && m_axi_WREADY;
  wire ends = sends && m_axi_WLAST;
  wire answered = m_axi_BVALID && m_axi_BREADY;

  assign m_axi_WVALID = in_valid && open != 0;
  assign m_axi_WDATA = in_data;
  assign m_axi_WSTRB = '1;
  assign m_axi_WLAST = &place || unsent == 1;
  assign in_ready = m_axi_WREADY && open != 0;
  assign m_axi_BREADY = 1'b1;

  always_ff @(posedge clock) begin
    done <= 1'b0;
    sized <= running && unasked != 0 && !asks;
    length <= unasked < {23'd0, room} ? unasked[8:0] : room;
    if (asks) begin
      m_axi_AWVALID <= 1'b1;
      m_axi_AWADDR <= {address, 4'b0};
      m_axi_AWLEN <= 8'(length - 9'd1);
      address <= address + {51'd0, length};
      unasked <= unasked - {23'd0, length};
    end else if (asked) begin
      m_axi_AWVALID <= 1'b0;
    end
    if (asked && !ends) open <= open + 1'b1;
    if (ends && !asked) open <= open - 1'b1;
    if (asks && !answered) unanswered <= unanswered + 1'b1;
    if (answered && !asks) unanswered <= unanswered - 1'b1;
    if (sends) begin
      place <= place + 1'b1;
      unsent <= unsent - 1;
    end
    if (answered && m_axi_BRESP[1]) error <= 1'b1;
    if (running && unsent == 0 && unanswered == 0) begin
      running <= 1'b0;
      done <= 1'b1;
    end
    if (!running && start) begin
      running <= 1'b1;
      address <= memory[63:4];
      place <= memory[4+:PLACE_BITS];
      unasked <= beats;
      unsent <= beats;
      error <= 1'b0;
    end
    if (reset) begin
      running <= 1'b0;
      sized <= 1'b0;
      done <= 1'b0;
      error <= 1'b0;
      open <= '0;
      unanswered <= '0;
      m_axi_AWVALID <= 1'b0;
    end
  end
endmodule
