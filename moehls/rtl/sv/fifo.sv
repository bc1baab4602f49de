// fifo: a stream of the C++ between two processes. DEPTH places, and one more for the value that its reader would hold
// in its hand in the C++ while it waits for another stream. With SLACK, that many words may still come when `in_ready` is low,
// and `in_valid` alone writes: the writer's pipeline does not stop.
`default_nettype none

module fifo #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 2,
    parameter int SLACK = 0,
    parameter STYLE = "auto"  // "ultra" or "block" for deep ones
) (
    input  wire             clock,
    input  wire             reset,
    input  wire [WIDTH-1:0] in_data,
    input  wire             in_valid,
    output wire             in_ready,
    output wire [WIDTH-1:0] out_data,
    output wire             out_valid,
    input  wire             out_ready
);
    localparam bit DEEP = DEPTH > 64;

    if (!DEEP) begin : shallow
        queue #(.WIDTH(WIDTH), .DEPTH(DEPTH), .SLACK(SLACK)) places (
            .clock, .reset, .in_data, .in_valid, .in_ready, .out_data, .out_valid, .out_ready
        );
    end else begin : deep
        // a memory with two cycles of latency in front of a queue that has room for what is under way
        localparam int WORDS = DEPTH + (SLACK > 3 ? SLACK - 3 : 0);  // the queue has three places for the slack
        localparam int BITS = $clog2(WORDS);
        localparam logic [BITS-1:0] LAST = BITS'(WORDS - 1);
        logic [BITS-1:0] head, tail;
        logic [BITS:0] used;
        logic [2:0] credits;
        logic fetched_1, fetched_2;
        wire [WIDTH-1:0] fetched_data;
        wire write = in_valid & (in_ready | SLACK != 0);
        wire fetch = (used != '0) & (credits != '0);
        assign in_ready = used < (BITS + 1)'(WORDS - SLACK);

        memory #(.WIDTH(WIDTH), .DEPTH(WORDS), .STYLE(STYLE == "auto" ? "block" : STYLE), .LATENCY(2)) words (
            .clock, .read_enable(fetch), .read_advance(fetched_1), .read_address(head), .read_data(fetched_data),
            .write_enable(write), .write_address(tail), .write_data(in_data)
        );

        always_ff @(posedge clock) begin
            if (reset) begin
                head <= '0;
                tail <= '0;
                used <= '0;
                credits <= 3'd4;
                fetched_1 <= 1'b0;
                fetched_2 <= 1'b0;
            end else begin
                if (write) tail <= tail == LAST ? '0 : tail + 1'b1;
                if (fetch) head <= head == LAST ? '0 : head + 1'b1;
                used <= used + (BITS + 1)'(write) - (BITS + 1)'(fetch);
                credits <= credits + 3'(out_valid & out_ready) - 3'(fetch);
                fetched_1 <= fetch;
                fetched_2 <= fetched_1;
            end
        end

        wire room;
        queue #(.WIDTH(WIDTH), .DEPTH(3)) places (
            .clock, .reset, .in_data(fetched_data), .in_valid(fetched_2), .in_ready(room), .out_data, .out_valid, .out_ready
        );
        wire unused = room;  // the credits see to it
    end
endmodule

// queue: a few places in LUTs. It is full beyond LEVEL words, at least as many as come under way, so that it does not run
// empty before a writer that it stopped is back.
module queue #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 2,
    parameter int SLACK = 0
) (
    input  wire             clock,
    input  wire             reset,
    input  wire [WIDTH-1:0] in_data,
    input  wire             in_valid,
    output wire             in_ready,
    output wire [WIDTH-1:0] out_data,
    output wire             out_valid,
    input  wire             out_ready
);
    localparam int LEVEL = DEPTH > SLACK ? DEPTH : SLACK + 1;
    localparam int PLACES = LEVEL + 1 + SLACK;
    localparam int BITS = $clog2(PLACES);
    localparam logic [BITS-1:0] LAST = BITS'(PLACES - 1);
    (* ram_style = "distributed" *) logic [WIDTH-1:0] places [0:PLACES-1];
    (* max_fanout = 64 *) logic [BITS-1:0] head, tail;
    logic [BITS:0] used;
    wire write = in_valid & (in_ready | SLACK != 0);
    wire read = out_valid & out_ready;
    assign in_ready = used <= (BITS + 1)'(LEVEL);
    assign out_valid = used != '0;
    assign out_data = places[head];

    always_ff @(posedge clock) begin
        if (write) places[tail] <= in_data;
        if (reset) begin
            head <= '0;
            tail <= '0;
            used <= '0;
        end else begin
            if (write) tail <= tail == LAST ? '0 : tail + 1'b1;
            if (read) head <= head == LAST ? '0 : head + 1'b1;
            used <= used + (BITS + 1)'(write) - (BITS + 1)'(read);
        end
    end
endmodule

`default_nettype wire
