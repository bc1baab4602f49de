// A DRAM behind several AXI4 ports: one memory, a read latency, a shared bandwidth cap, refresh gaps and random stalls.
//
// Every port answers in order and keeps up to OUTSTANDING bursts in flight. Bandwidth is a token bucket that all ports share:
// each cycle adds `bandwidth_q8` / 256 beats, a data beat of either direction takes one. The defaults of the bench (150 cycles,
// 3 beats of 16 bytes a cycle at 300 MHz) are 75 % of the 19.2 GB/s of a ZCU104. All settings are inputs, so a test may change
// them while it runs. The memory is filled and read by the bench, which reaches `memory` by name.
module dram #(
    parameter int PORTS = 5,
    parameter int ADDRESS_BITS = 64,
    parameter int BEATS = 1 << 16,        // size in beats of 128 bits, a power of two
    parameter int OUTSTANDING = 32
) (
    input logic clk,
    input logic rst_n,

    // settings
    input logic [15:0] latency,           // cycles from the address to the first beat
    input logic [15:0] bandwidth_q8,      // beats a cycle over all ports, 8 fraction bits
    input logic [15:0] refresh_interval,  // cycles from one refresh to the next, 0: none
    input logic [15:0] refresh_length,    // cycles without data
    input logic [7:0]  stall_q8,          // probability of a stall a channel and cycle, in 1/256
    input logic [31:0] seed,
    input logic [ADDRESS_BITS-1:0] error_first,  // reads in error_first … error_last answer SLVERR (first > last: none)
    input logic [ADDRESS_BITS-1:0] error_last,

    input  logic [PORTS-1:0]                   arvalid,
    output logic [PORTS-1:0]                   arready,
    input  logic [PORTS-1:0][ADDRESS_BITS-1:0] araddr,
    input  logic [PORTS-1:0][7:0]              arlen,
    output logic [PORTS-1:0]                   rvalid,
    input  logic [PORTS-1:0]                   rready,
    output logic [PORTS-1:0][127:0]            rdata,
    output logic [PORTS-1:0][1:0]              rresp,
    output logic [PORTS-1:0]                   rlast,

    input  logic [PORTS-1:0]                   awvalid,
    output logic [PORTS-1:0]                   awready,
    input  logic [PORTS-1:0][ADDRESS_BITS-1:0] awaddr,
    input  logic [PORTS-1:0][7:0]              awlen,
    input  logic [PORTS-1:0]                   wvalid,
    output logic [PORTS-1:0]                   wready,
    input  logic [PORTS-1:0][127:0]            wdata,
    input  logic [PORTS-1:0][15:0]             wstrb,
    input  logic [PORTS-1:0]                   wlast,
    output logic [PORTS-1:0]                   bvalid,
    input  logic [PORTS-1:0]                   bready,
    output logic [PORTS-1:0][1:0]              bresp,

    output logic [63:0] read_beats,            // data beats moved since reset
    output logic [63:0] write_beats,
    output logic [31:0] protocol_errors        // bursts that cross 4 KiB or leave the memory, wrong wlast
);
  localparam int QUEUE_BITS = $clog2(OUTSTANDING);
  localparam logic [1:0] OKAY = 2'b00, SLVERR = 2'b10;
  typedef logic [ADDRESS_BITS-1:0] address_t;
  localparam int INDEX_BITS = $clog2(BEATS);
  localparam address_t SIZE = address_t'(BEATS) << 4;

  logic [127:0] memory[BEATS]  /* verilator public_flat_rw */;

  logic [63:0] now;
  logic [31:0] random[PORTS][4];
  logic [15:0] refresh_count;
  wire         refreshing = refresh_interval != 0 && refresh_count < refresh_length;

  // Read bursts in flight, a ring a port.
  address_t              read_address[PORTS][OUTSTANDING];
  logic [8:0]            read_left[PORTS][OUTSTANDING];
  logic [63:0]           read_due[PORTS][OUTSTANDING];
  logic [QUEUE_BITS:0]   read_head[PORTS], read_tail[PORTS];
  // Write bursts, one open a port, responses in order.
  address_t              write_address[PORTS];
  logic [8:0]            write_left[PORTS];
  logic [63:0]           write_due[PORTS][OUTSTANDING];
  logic [QUEUE_BITS:0]   response_head[PORTS], response_tail[PORTS];

  function automatic logic [31:0] xorshift(logic [31:0] x);
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return x;
  endfunction

  function automatic logic burst_is_wrong(address_t address, logic [7:0] len);
    address_t last = address + (address_t'(len) << 4) + 15;
    return address[3:0] != 0 || address[ADDRESS_BITS-1:12] != last[ADDRESS_BITS-1:12] || last >= SIZE;
  endfunction

  // One generator a channel, so that the channels of a port stall independently.
  function automatic logic stalled(logic [31:0] x);
    return x[15:8] < stall_q8;
  endfunction

  // Sums over the ports of one cycle are blocking: they carry from port to port inside the loop.
  /* verilator lint_off BLKSEQ */
  int tokens;  // beats of bandwidth left, 8 fraction bits
  int spend;
  int first;   // the port after the one served last comes first
  int served;
  int beats_in, beats_out, errors;  // of this cycle, all ports

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      now <= 0;
      refresh_count <= 0;
      tokens <= 0;
      first <= 0;
      read_beats <= 0;
      write_beats <= 0;
      protocol_errors <= 0;
      arready <= '0;
      rvalid <= '0;
      awready <= '0;
      wready <= '0;
      bvalid <= '0;
      for (int p = 0; p < PORTS; p++) begin
        for (int c = 0; c < 4; c++) random[p][c] <= seed ^ (32'h9E3779B9 * 32'(4 * p + c + 1));
        read_head[p] <= 0;
        read_tail[p] <= 0;
        response_head[p] <= 0;
        response_tail[p] <= 0;
        write_left[p] <= 0;
      end
    end else begin
      now <= now + 1;
      refresh_count <= refresh_interval == 0 || refresh_count + 1 >= refresh_interval ? 16'd0 : refresh_count + 1;
      spend = tokens + int'(bandwidth_q8);
      beats_out = 0;
      beats_in = 0;
      errors = 0;
      if (spend > 16 * 256) spend = 16 * 256;
      served = first + PORTS - 1;
      for (int i = 0; i < PORTS; i++) begin
        automatic int p = first + i >= PORTS ? first + i - PORTS : first + i;
        automatic logic [QUEUE_BITS-1:0] head = read_head[p][QUEUE_BITS-1:0];
        automatic logic [QUEUE_BITS-1:0] tail = read_tail[p][QUEUE_BITS-1:0];
        for (int c = 0; c < 4; c++) random[p][c] <= xorshift(random[p][c]);

        // read address
        arready[p] <= (read_tail[p] - read_head[p]) < (QUEUE_BITS + 1)'(OUTSTANDING - 1) && !stalled(random[p][0]);
        if (arvalid[p] && arready[p]) begin
          read_address[p][tail] <= araddr[p];
          read_left[p][tail] <= 9'(arlen[p]) + 1;
          read_due[p][tail] <= now + 64'(latency);
          read_tail[p] <= read_tail[p] + 1;
          if (burst_is_wrong(araddr[p], arlen[p])) begin
            errors = errors + 1;
            $display("dram: read burst %h + %0d on port %0d is not allowed", araddr[p], arlen[p], p);
          end
        end

        // read data
        if (rvalid[p] && rready[p]) rvalid[p] <= 1'b0;
        if ((!rvalid[p] || rready[p]) && read_head[p] != read_tail[p] && read_due[p][head] <= now && spend >= 256 &&
            !refreshing && !stalled(random[p][1])) begin
          automatic address_t address = read_address[p][head];
          rvalid[p] <= 1'b1;
          rdata[p] <= memory[address[4+:INDEX_BITS]];
          rresp[p] <= address >= error_first && address <= error_last ? SLVERR : OKAY;
          rlast[p] <= read_left[p][head] == 1;
          read_address[p][head] <= address + 16;
          read_left[p][head] <= read_left[p][head] - 1;
          if (read_left[p][head] == 1) read_head[p] <= read_head[p] + 1;
          spend = spend - 256;
          beats_out = beats_out + 1;
          served = p;
        end

        // write address: one burst at a time
        awready[p] <= write_left[p] == 0 && !(awvalid[p] && awready[p]) && !stalled(random[p][2]);
        if (awvalid[p] && awready[p]) begin
          write_address[p] <= awaddr[p];
          write_left[p] <= 9'(awlen[p]) + 1;
          if (burst_is_wrong(awaddr[p], awlen[p])) begin
            errors = errors + 1;
            $display("dram: write burst %h + %0d on port %0d is not allowed", awaddr[p], awlen[p], p);
          end
        end

        // write data
        wready[p] <= spend >= 256 && !refreshing && !stalled(random[p][3]) &&
                     (write_left[p] > 9'(wvalid[p] && wready[p])) &&
                     (response_tail[p] - response_head[p]) < (QUEUE_BITS + 1)'(OUTSTANDING - 1);
        if (wvalid[p] && wready[p]) begin
          for (int b = 0; b < 16; b++)
            if (wstrb[p][b]) memory[write_address[p][4+:INDEX_BITS]][8*b+:8] <= wdata[p][8*b+:8];
          write_address[p] <= write_address[p] + 16;
          write_left[p] <= write_left[p] - 1;
          spend = spend - 256;
          beats_in = beats_in + 1;
          served = p;
          if (wlast[p] != (write_left[p] == 1)) begin
            errors = errors + 1;
            $display("dram: wlast is wrong on port %0d", p);
          end
          if (write_left[p] == 1) begin
            write_due[p][response_tail[p][QUEUE_BITS-1:0]] <= now + 64'(latency);
            response_tail[p] <= response_tail[p] + 1;
          end
        end

        // write response
        if (bvalid[p] && bready[p]) bvalid[p] <= 1'b0;
        if ((!bvalid[p] || bready[p]) && response_head[p] != response_tail[p] &&
            write_due[p][response_head[p][QUEUE_BITS-1:0]] <= now && !stalled(random[p][2])) begin
          bvalid[p] <= 1'b1;
          bresp[p] <= OKAY;
          response_head[p] <= response_head[p] + 1;
        end
      end
      tokens <= spend;
      first <= (served + 1) % PORTS;
      read_beats <= read_beats + 64'(beats_out);
      write_beats <= write_beats + 64'(beats_in);
      protocol_errors <= protocol_errors + 32'(errors);
    end
  end
  /* verilator lint_on BLKSEQ */
endmodule
