// dsp_slice: a DSP48E2 that multiplies, a register at each of its stages: a * b, added to the sum of its neighbour or to c or to both.
// INPUTS registers at the factors. CHAINED: adds the neighbour's sum. ADDS: 1 adds c, 2 c of a register. An `enable` each register.
// Synthesis takes the primitive, so that the additions are the DSP's own; simulation what it does.
`default_nettype none

module dsp_slice #(
    parameter int INPUTS = 1,
    parameter int CHAINED = 0,
    parameter int ADDS = 0
) (
    input  wire        clock,
    input  wire        enable_first,
    input  wire        enable_input,
    input  wire        enable_product,
    input  wire        enable_sum,
    input  wire        enable_addend,
    input  wire [26:0] a,
    input  wire [17:0] b,
    input  wire [47:0] c,
    input  wire [47:0] cascade_in,  // `cascade_out` of the DSP before it, or zeros
    output wire [47:0] sum,
    output wire [47:0] cascade_out
);
`ifdef SYNTHESIS
    DSP48E2 #(
        .AREG(INPUTS), .ACASCREG(INPUTS), .BREG(INPUTS), .BCASCREG(INPUTS), .CREG(ADDS == 2 ? 1 : 0), .MREG(1), .PREG(1),
        .ADREG(0), .DREG(0), .ALUMODEREG(0), .CARRYINREG(0), .CARRYINSELREG(0), .INMODEREG(0), .OPMODEREG(0),
        .A_INPUT("DIRECT"), .B_INPUT("DIRECT"), .AMULTSEL("A"), .BMULTSEL("B"), .USE_MULT("MULTIPLY"), .USE_SIMD("ONE48")
    ) slice (
        .CLK(clock), .A({{3{a[26]}}, a}), .B(b), .C(c), .D(27'b0), .PCIN(cascade_in), .P(sum), .PCOUT(cascade_out),
        .CEA1(enable_first), .CEB1(enable_first), .CEA2(enable_input), .CEB2(enable_input), .CEM(enable_product),
        .CEP(enable_sum), .CEC(enable_addend),
        .OPMODE({ADDS != 0 ? 2'b11 : 2'b00, CHAINED != 0 ? 3'b001 : 3'b000, 4'b0101}),  // W: c; Z: the neighbour; Y, X: the product
        .ALUMODE(4'b0000), .INMODE(5'b00000), .CARRYINSEL(3'b000), .CARRYIN(1'b0), .CARRYCASCIN(1'b0), .MULTSIGNIN(1'b0),
        .ACIN(30'b0), .BCIN(18'b0), .CEAD(1'b0), .CED(1'b0), .CEALUMODE(1'b0), .CECARRYIN(1'b0), .CECTRL(1'b0),
        .CEINMODE(1'b0), .RSTA(1'b0), .RSTALLCARRYIN(1'b0), .RSTALUMODE(1'b0), .RSTB(1'b0), .RSTC(1'b0), .RSTCTRL(1'b0),
        .RSTD(1'b0), .RSTINMODE(1'b0), .RSTM(1'b0), .RSTP(1'b0)
    );
`else
    logic signed [26:0] a_first, a_input;
    logic signed [17:0] b_first, b_input;
    logic signed [44:0] product;
    logic [47:0] total, addend;

    always_ff @(posedge clock) begin
        if (enable_first) begin
            a_first <= a;
            b_first <= b;
        end
        if (enable_input) begin
            a_input <= INPUTS == 2 ? a_first : a;
            b_input <= INPUTS == 2 ? b_first : b;
        end
        if (enable_product) product <= a_input * b_input;
        if (enable_addend) addend <= c;
        if (enable_sum) total <= (CHAINED != 0 ? cascade_in : 48'b0) + {{3{product[44]}}, product} + (ADDS == 0 ? 48'b0 : ADDS == 1 ? c : addend);
    end

    assign sum = total;
    assign cascade_out = total;
`endif
endmodule

`default_nettype wire
