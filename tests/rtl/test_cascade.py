"""Sums of products as DSPs: every product is added once, in time, and to what is there by then."""

from __future__ import annotations

import pytest

from moehls.rtl.cascade import CHAIN, FIRST, latency, layout


@pytest.mark.parametrize("products", [*range(1, 41), 64, 100])
def test_a_layout_adds_every_product_once(products: int) -> None:
    slots = layout(products)
    sums: list[set[int]] = []
    for i, slot in enumerate(slots):
        own = {i}
        for k in (i - 1 if slot.chained else None, slot.other):
            if k is not None:
                assert slots[k].adds < slot.adds, "its sum is in a register by then"
                assert own.isdisjoint(sums[k])
                own |= sums[k]
        if slot.chained:
            assert slots[i - 1].adds == slot.adds - 1, "the neighbour's sum stays one cycle"
        if slot.other is not None:
            assert slots[slot.other].adds == slot.adds - 1
        assert slot.factors >= 0
        assert slot.adds == slot.factors + FIRST + slot.inputs - 1
        sums.append(own)
    assert sums[-1] == set(range(products))
    assert [slot for slot in slots if slot.addend and slot.other is None] == [slot for slot in slots if slot.addend]
    assert sum(slot.addend for slot in slots) == 1


def test_chains_are_short_and_their_sums_added_pair_by_pair() -> None:
    assert [latency(n) for n in (1, 2, 4, 5, 8, 9, 16, 17, 32)] == [3, 4, 6, 7, 7, 8, 8, 9, 9]
    runs, run = [], 0
    for slot in layout(16):
        run = run + 1 if slot.chained else 1
        runs.append(run)
    assert max(runs) == CHAIN
