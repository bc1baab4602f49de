"""Bit widths of the integer network: the parameter table of `docs/numbers.md`, section 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """One column of the parameter table in `docs/numbers.md`."""

    name: str
    weight_bits: int
    activation_bits: int
    accumulator_bits: int
    fine_shift: int
    score_fraction: int
    gelu_bits: int
    gelu_fraction: int
    delta_fraction: int
    residual_bits: int = 16
    fine_bits: int = 16
    multiplier_bits: int = 16
    second_multiplier_bits: int = 8
    requantised_bits: int = 24
    score_bits: int = 20
    delta_step: int = 5
    context_fraction: int = 8
    norm_fraction: int = 12
    norm_bits: int = 20
    gate_fraction: int = 15
    logit_fraction: int = 10
    logit_bits: int = 24
    expert_fraction: int = 8


W8A8 = Precision(
    name="w8a8",
    weight_bits=8,
    activation_bits=8,
    accumulator_bits=32,
    fine_shift=7,
    score_fraction=8,
    gelu_bits=16,
    gelu_fraction=10,
    delta_fraction=14,
)
W16A16 = Precision(
    name="w16a16",
    weight_bits=16,
    activation_bits=16,
    accumulator_bits=48,
    fine_shift=0,
    score_fraction=10,
    gelu_bits=20,
    gelu_fraction=13,
    delta_fraction=18,
)
PRECISIONS = {p.name: p for p in (W8A8, W16A16)}
