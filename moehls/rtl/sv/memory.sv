// memory: one read port, one write port, as block, ultra or distributed RAM infer. The data follows the address by LATENCY
// cycles: `read_enable` takes the address, with LATENCY 2 `read_advance` moves the word on to the output a cycle later.
`default_nettype none

module memory #(
    parameter int WIDTH   = 8,
    parameter int DEPTH   = 16,
    // verilator lint_off UNUSEDPARAM
    parameter     STYLE   = "block",  // for synthesis
    // verilator lint_on UNUSEDPARAM
    parameter int LATENCY = 2,
    localparam int BITS   = DEPTH > 1 ? $clog2(DEPTH) : 1
) (
    input  wire             clock,
    input  wire             read_enable,
    input  wire             read_advance,
    input  wire [BITS-1:0]  read_address,
    output wire [WIDTH-1:0] read_data,
    input  wire             write_enable,
    input  wire [BITS-1:0]  write_address,
    input  wire [WIDTH-1:0] write_data
);
    (* ram_style = STYLE *) logic [WIDTH-1:0] words [0:DEPTH-1];
    logic [WIDTH-1:0] word;

`ifndef SYNTHESIS  // memories come up as zeros by themselves; URAM takes no other value
    initial for (int i = 0; i < DEPTH; i++) words[i] = '0;
`endif

    always_ff @(posedge clock) begin
        if (write_enable) words[write_address] <= write_data;
        if (read_enable) word <= words[read_address];
    end

    if (LATENCY == 1) begin : direct
        assign read_data = word;
        wire unused = read_advance;
    end else begin : registered
        logic [WIDTH-1:0] moved;
        always_ff @(posedge clock) if (read_advance) moved <= word;
        assign read_data = moved;
    end
endmodule

`default_nettype wire
