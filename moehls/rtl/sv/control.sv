// control: the AXI4-Lite slave of a kernel, with the register map Vitis HLS gives (UG1399, "S_AXILITE Control Register Map").
//
//   0x00  ap_start (bit 0), ap_done (1, clears on read), ap_idle (2), ap_ready (3, clears on read), auto_restart (7)
//   0x04  global interrupt enable;  0x08  enable of ap_done (0), ap_ready (1);  0x0c  status of them, toggles on write
//   0x10  arguments, WORDS words of 32 bits, those outside PRESENT reserved: a 64-bit one takes three, a 32-bit one two
//   behind the arguments: `status`, read only
module control #(
    parameter int ADDRESS_BITS = 8,
    parameter int WORDS = 2,
    parameter logic [WORDS-1:0] PRESENT = '1
) (
    input logic ap_clk,
    input logic ap_rst,

    input  logic                    s_axi_AWVALID,
    output logic                    s_axi_AWREADY,
    input  logic [ADDRESS_BITS-1:0] s_axi_AWADDR,
    input  logic                    s_axi_WVALID,
    output logic                    s_axi_WREADY,
    input  logic [31:0]             s_axi_WDATA,
    input  logic [3:0]              s_axi_WSTRB,
    output logic                    s_axi_BVALID,
    input  logic                    s_axi_BREADY,
    output logic [1:0]              s_axi_BRESP,
    input  logic                    s_axi_ARVALID,
    output logic                    s_axi_ARREADY,
    input  logic [ADDRESS_BITS-1:0] s_axi_ARADDR,
    output logic                    s_axi_RVALID,
    input  logic                    s_axi_RREADY,
    output logic [31:0]             s_axi_RDATA,
    output logic [1:0]              s_axi_RRESP,
    output logic                    interrupt,

    output logic                   ap_start,
    input  logic                   ap_done,
    input  logic                   ap_idle,
    input  logic                   ap_ready,
    output logic [WORDS-1:0][31:0] arguments,
    input  logic [31:0]            status
);
  localparam int INDEX_BITS = ADDRESS_BITS - 2;
  localparam logic [INDEX_BITS-1:0] CONTROL = 0, ENABLE = 1, MASK = 2, PENDING = 3;
  localparam logic [INDEX_BITS-1:0] FIRST = 4, STATUS = FIRST + INDEX_BITS'(WORDS);

  logic done, ready, restart, enable;
  logic [1:0] mask, pending;

  // an address waits for its data and the other way round; one response at a time
  logic [INDEX_BITS-1:0] write_index;
  logic write_known, read_takes, writes;
  assign s_axi_AWREADY = !write_known && !s_axi_BVALID;
  assign s_axi_WREADY = write_known;
  assign s_axi_BRESP = 2'b00;
  assign writes = s_axi_WVALID && s_axi_WREADY;
  assign s_axi_ARREADY = !s_axi_RVALID;
  assign s_axi_RRESP = 2'b00;
  assign read_takes = s_axi_ARVALID && s_axi_ARREADY;
  wire [INDEX_BITS-1:0] read_index = s_axi_ARADDR[ADDRESS_BITS-1:2];
  wire byte_0 = writes && s_axi_WSTRB[0];

  assign interrupt = enable && pending != 0;

  always_ff @(posedge ap_clk) begin
    if (s_axi_AWVALID && s_axi_AWREADY) begin
      write_known <= 1'b1;
      write_index <= s_axi_AWADDR[ADDRESS_BITS-1:2];
    end
    if (writes) begin
      write_known <= 1'b0;
      s_axi_BVALID <= 1'b1;
    end else if (s_axi_BREADY) begin
      s_axi_BVALID <= 1'b0;
    end

    if (read_takes) begin
      s_axi_RVALID <= 1'b1;
      s_axi_RDATA <= '0;
      case (read_index)
        CONTROL: s_axi_RDATA <= {22'd0, interrupt, 1'b0, restart, 3'd0, ready, ap_idle, done, ap_start};
        ENABLE: s_axi_RDATA[0] <= enable;
        MASK: s_axi_RDATA[1:0] <= mask;
        PENDING: s_axi_RDATA[1:0] <= pending;
        STATUS: s_axi_RDATA <= status;
        default: ;
      endcase
      for (int i = 0; i < WORDS; i++) if (PRESENT[i] && read_index == FIRST + INDEX_BITS'(i)) s_axi_RDATA <= arguments[i];
    end else if (s_axi_RREADY) begin
      s_axi_RVALID <= 1'b0;
    end

    if (ap_ready) ap_start <= restart;
    if (read_takes && read_index == CONTROL) begin
      done <= 1'b0;
      ready <= 1'b0;
    end
    if (ap_done) done <= 1'b1;
    if (ap_ready) ready <= 1'b1;
    if (byte_0) begin
      case (write_index)
        CONTROL: begin
          if (s_axi_WDATA[0]) ap_start <= 1'b1;
          restart <= s_axi_WDATA[7];
        end
        ENABLE: enable <= s_axi_WDATA[0];
        MASK: mask <= s_axi_WDATA[1:0];
        PENDING: pending <= pending ^ s_axi_WDATA[1:0];
        default: ;
      endcase
    end
    if (mask[0] && ap_done) pending[0] <= 1'b1;
    if (mask[1] && ap_ready) pending[1] <= 1'b1;
    for (int i = 0; i < WORDS; i++)
      if (writes && PRESENT[i] && write_index == FIRST + INDEX_BITS'(i))
        for (int b = 0; b < 4; b++) if (s_axi_WSTRB[b]) arguments[i][8*b+:8] <= s_axi_WDATA[8*b+:8];

    if (ap_rst) begin
      write_known <= 1'b0;
      s_axi_BVALID <= 1'b0;
      s_axi_RVALID <= 1'b0;
      ap_start <= 1'b0;
      done <= 1'b0;
      ready <= 1'b0;
      restart <= 1'b0;
      enable <= 1'b0;
      mask <= '0;
      pending <= '0;
      arguments <= '0;
    end
  end
endmodule
