// The part of a DSP48E2 that dsp_slice uses, written from UG579: signed 27 x 18 multiplier and 48-bit adder without pre-adder,
// pattern detector or logic modes, every attribute and port under its own name. Where an attribute or port asks for
// what is not here, the sum is wrong.
`default_nettype none

module DSP48E2 #(
    parameter int AREG = 1, ACASCREG = 1, BREG = 1, BCASCREG = 1, CREG = 1, MREG = 1, PREG = 1, ADREG = 1, DREG = 1,
    parameter int ALUMODEREG = 1, CARRYINREG = 1, CARRYINSELREG = 1, INMODEREG = 1, OPMODEREG = 1,
    parameter A_INPUT = "DIRECT", B_INPUT = "DIRECT", AMULTSEL = "A", BMULTSEL = "B", USE_MULT = "MULTIPLY", USE_SIMD = "ONE48"
) (
    input wire CLK,
    input wire signed [29:0] A,
    input wire signed [17:0] B,
    input wire [47:0] C, PCIN,
    input wire [26:0] D,
    output wire [47:0] P, PCOUT,
    input wire CEA1, CEA2, CEB1, CEB2, CEC, CEM, CEP, CEAD, CED, CEALUMODE, CECARRYIN, CECTRL, CEINMODE,
    input wire [8:0] OPMODE,
    input wire [3:0] ALUMODE,
    input wire [4:0] INMODE,
    input wire [2:0] CARRYINSEL,
    input wire CARRYIN, CARRYCASCIN, MULTSIGNIN,
    input wire [29:0] ACIN,
    input wire [17:0] BCIN,
    input wire RSTA, RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP
);
    logic signed [29:0] a1, a2;
    logic signed [17:0] b1, b2;
    logic [47:0] c1, p;
    logic signed [44:0] m;
    wire signed [26:0] multiplicand = 27'(AREG == 0 ? A : a2);
    wire signed [17:0] multiplier = BREG == 0 ? B : b2;
    wire signed [44:0] product = multiplicand * multiplier;
    wire signed [44:0] multiplied = MREG == 0 ? product : m;
    wire [47:0] c = CREG == 0 ? C : c1;
    wire [47:0] xy = OPMODE[3:0] == 4'b0101 ? 48'(multiplied) : '0;
    wire [47:0] z = OPMODE[6:4] == 3'b001 ? PCIN : OPMODE[6:4] == 3'b010 ? p : OPMODE[6:4] == 3'b011 ? c : '0;
    wire [47:0] w = OPMODE[8:7] == 2'b11 ? c : OPMODE[8:7] == 2'b01 ? p : '0;
    wire [47:0] total = KNOWN && idle ? z + w + xy : 48'hbad;

    always_ff @(posedge CLK) begin
        if (CEA1) a1 <= A;
        if (CEA2) a2 <= AREG == 2 ? a1 : A;
        if (CEB1) b1 <= B;
        if (CEB2) b2 <= BREG == 2 ? b1 : B;
        if (CEC) c1 <= C;
        if (CEM) m <= product;
        if (CEP) p <= total;
    end

    assign P = PREG == 0 ? total : p;
    assign PCOUT = P;

    localparam bit KNOWN = A_INPUT == "DIRECT" && B_INPUT == "DIRECT" && AMULTSEL == "A" && BMULTSEL == "B"
        && USE_MULT == "MULTIPLY" && USE_SIMD == "ONE48" && ACASCREG == AREG && BCASCREG == BREG && ADREG == 0 && DREG == 0
        && ALUMODEREG == 0 && CARRYINREG == 0 && CARRYINSELREG == 0 && INMODEREG == 0 && OPMODEREG == 0;
    wire idle = ALUMODE == 0 && INMODE == 0 && CARRYINSEL == 0 && !CARRYIN && A[29:26] == {4{A[26]}};

    wire unused = &{1'b0, D, CEAD, CED, CEALUMODE, CECARRYIN, CECTRL, CEINMODE, CARRYCASCIN, MULTSIGNIN, ACIN, BCIN, RSTA,
                    RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP};
endmodule

`default_nettype wire
