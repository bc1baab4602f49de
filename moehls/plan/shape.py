"""The accelerator's shape: parallelism and memory sizes, the compile-time constants of the hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moehls.integer.precision import Precision
from moehls.plan.packing import Form, Packing, packing

BIAS_BITS = 16
"""of an entry of a score bias"""
Storage = Literal["bram", "uram", "lutram"]
Experts = Literal["streamed", "prefetched"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a program asks of the hardware besides sizes, and what a machine has: operations, and bits of numbers."""

    pools: bool = False
    """whether the hardware for POOL steps is there"""
    gated: bool = False
    """whether `activate` can multiply with an operand of memory W"""
    plain_norms: bool = False
    """whether norms can only scale"""
    thresholds: bool = False
    """whether routers can leave out experts of small gates"""
    capacities: bool = False
    """whether experts can take a limited number of tokens"""
    rooms: bool = False
    """whether gates can be relative to the choices that find places; only with capacities"""
    sigmoids: bool = False
    """whether routers score experts by sigmoids"""
    expert_group: int = 0
    """experts of a group from which tokens choose; 0 where no router has groups"""
    selections: bool = False
    """whether routers rank experts by sigmoids with a bias"""
    weighed_inputs: bool = False
    """whether gates can multiply the tokens that are gathered for an expert"""
    sides: bool = False
    """whether LOAD and SCATTER reach residual rows beside the stream's"""
    norm_targets: bool = False
    """whether norms can write their operand to M1 and M2"""
    wide: bool = False
    """whether products can replace residual rows"""
    biased: bool = False
    """whether scores can have a bias of every query and key"""
    bias_shift_low: int = 0
    """smallest and largest shift of those"""
    bias_shift_high: int = 31
    beside: bool = False
    """whether contexts can go to M2, beside the normed operand in M0"""
    scaled_bits: int = 64
    """of a sum with its bias, where it is requantised; never more than accumulator_bits"""
    shift_low: int = 0
    """smallest and largest shift of `rescale`"""
    shift_high: int = 63
    second_bits: int = 64
    """of what `activate` multiplies, never more than accumulator_bits"""
    second_shift_low: int = 0
    second_shift_high: int = 63
    channel_bias_bits: int = 64
    """of the bias of a channel that a LINEAR step requantises, in the stream; never more than accumulator_bits. These three
    are a format: a program is made for the ones of its machine"""
    activated_bias_bits: int = 64
    """the same where the step activates too, and has a second multiplier"""
    channel_shift_bits: int = 6
    """of its shift"""


@dataclass(frozen=True)
class Shape(Capabilities):
    """Compile-time constants of one accelerator (`docs/accelerator.md`, section 1). Depths are in words a bank."""

    precision: Precision
    token_parallel: int
    block: int
    epilogue_lanes: int
    ports: int
    activation_depth: int
    residual_depth: int
    raw_depth: int
    kept_depth: int
    """weight words kept in `weights`: the largest n2 of a stream step"""
    norm_depth: int
    """channel blocks of a token that is normalised or pooled: more than the residual has where heads are padded"""
    parameter_depth: int
    """blocks of parameters kept in memory order"""
    max_tokens: int
    max_experts: int
    fifo_beats: int
    """beats a port that the stream may run ahead"""
    activation_storage: Storage = "bram"
    residual_storage: Storage = "bram"
    fifo_storage: Storage = "uram"
    lut_columns: int = 0
    """outputs of the last pair of tokens whose products are made of LUTs"""
    experts: Experts = "streamed"
    """whether the stream holds all experts in order, or goes from choice to choice and holds the chosen ones alone"""
    token_blocks: int = 1
    """blocks of tokens whose pixels, probabilities and fine values lie on the chip one after the other, at most"""
    head_groups: int = 1
    """groups of heads whose queries, keys and values lie on the chip one after the other, at most"""

    @property
    def slices(self) -> int:
        """cycles a tile takes in the epilogue"""
        return self.block // self.epilogue_lanes

    @property
    def norm_tokens(self) -> int:
        """tokens a cycle in the norm"""
        return min(2, self.token_parallel)

    @property
    def route_experts(self) -> int:
        """experts of a token a cycle in the router: 4, 2 or 1"""
        return 4 if self.max_experts >= 4 else min(2, self.max_experts)

    @property
    def gather_tokens(self) -> int:
        """tokens a cycle, at most, that are gathered for an expert"""
        return min(4, self.token_parallel)

    @property
    def macs_a_cycle(self) -> int:
        return self.token_parallel * self.block * self.block

    @property
    def word_bits(self) -> int:
        return self.block * self.block * self.precision.weight_bits

    @property
    def fifo_words(self) -> int:
        """depth of the stream's FIFO"""
        return max(4, self.fifo_beats * self.ports * 128 // self.word_bits)

    @property
    def bias_words(self) -> int:
        """words of the biases of a tile of scores: of Tt queries and Tt keys"""
        return -(-(self.token_parallel**2) * BIAS_BITS // self.word_bits)

    @property
    def parameter_bits(self) -> int:
        """bits of one channel's parameters in a norm, a pool or a router"""
        return self.precision.accumulator_bits + 32

    @property
    def channel_bits(self) -> int:
        """bits of one channel's parameters in a LINEAR step"""
        p = self.precision
        return p.multiplier_bits + self.channel_shift_bits + min(self.channel_bias_bits, p.accumulator_bits)

    @property
    def activated_bits(self) -> int:
        """bits of one channel's parameters in a LINEAR step that activates"""
        p = self.precision
        beside = p.multiplier_bits + self.channel_shift_bits + p.second_multiplier_bits
        return beside + min(self.activated_bias_bits, p.accumulator_bits)

    def packing(self, form: Form) -> Packing:
        """How blocks of parameters of a form lie in words of the stream."""
        if form == "row":
            return packing(self.block * self.parameter_bits, self.word_bits, 1)
        bits = self.activated_bits if form == "activated" else self.channel_bits
        return packing(self.block * bits, self.word_bits)
