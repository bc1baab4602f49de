// burst_read_segments: the beats of 128 bits of `segments` runs of memory, one after another, in AXI4 bursts, into a FIFO.
//
// A request is a run: its first beat, counted from `memory`, in the low half, how many beats in the high one, at least one. The
// bursts of a run follow those of the run before without waiting for their data. Bursts and arguments are as in burst_read;
// `error` is high for a cycle for each response that is not OKAY, as the module starts several times a frame.
module burst_read_segments #(
    parameter int BURST = 64,       // beats, a power of two up to 256
    parameter int OUTSTANDING = 16  // bursts
) (
    input  logic clock,
    input  logic reset,
    input  logic start,
    output logic done,
    input  logic [63:0] memory,     // address in bytes, a multiple of 16
    input  logic [15:0] segments,
    output logic error,

    input  logic [63:0] requests_data,
    input  logic        requests_valid,
    output logic        requests_ready,

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
  logic [59:0] base, address;         // of the memory and of the next burst, in beats
  logic [31:0] unasked;               // beats of this run
  logic [15:0] left;                  // runs after this one
  logic [COUNT_BITS-1:0] in_flight;   // bursts
  logic sized;                        // `length` is that of the next burst; it takes a cycle of its own
  logic [8:0] length;

  wire [8:0] room = LONGEST - {{(9 - PLACE_BITS) {1'b0}}, address[PLACE_BITS-1:0]};
  wire asks = sized && in_flight != MOST && (!m_axi_ARVALID || m_axi_ARREADY);
  wire takes = m_axi_RVALID && m_axi_RREADY;
  wire ends = takes && m_axi_RLAST;
  wire turns = requests_ready && requests_valid;

  assign requests_ready = running && unasked == 0 && left != 0;
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
    if (turns) begin
      address <= base + {28'd0, requests_data[31:0]};
      unasked <= requests_data[63:32];
      left <= left - 1'b1;
    end
    if (asks && !ends) in_flight <= in_flight + 1'b1;
    if (ends && !asks) in_flight <= in_flight - 1'b1;
    error <= takes && m_axi_RRESP[1];
    if (running && left == 0 && unasked == 0 && in_flight == 0) begin
      running <= 1'b0;
      done <= 1'b1;
    end
    if (!running && start) begin
      running <= 1'b1;
      base <= memory[63:4];
      unasked <= '0;
      left <= segments;
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
