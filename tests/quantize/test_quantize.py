"""Whole networks: the integers compute what the float network computes, the same every time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.operations import HIDDEN, IntegerAttention, IntegerLinear, IntegerNetwork
from moehls.integer.precision import PRECISIONS, W8A8, Precision
from moehls.integer.validate import check
from moehls.network.operations import ActivationForm, FloatArray, LayerNorm, Linear, Network
from moehls.quantize import quantize, random_calibration
from moehls.reference import run
from moehls.serialize import save
from moehls.simulate.compare import Fidelity, FidelityMeter
from tests.quantize.support import SHAPE, Draw, float_network, images, relative_bias

BOUNDS = {"w8a8": (24.0, 95.0, 20.0), "w16a16": (58.0, 99.5, 50.0)}
"""forced SQNR in dB, choices kept in %, SQNR of every stage in dB"""


def fidelity(network: Network, integer: IntegerNetwork, seed: int = 99) -> Fidelity:
    """Measured on images that were not calibrated on, for every task."""
    meter = FidelityMeter(network, integer)
    for image in images(seed, 3):
        for task in range(network.tasks):
            meter.add(image, task, run(integer, image, task), {})
    return meter.result()


@pytest.mark.parametrize("form", ["exact", "tanh"])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_a_whole_network_keeps_its_meaning(precision: Precision, form: ActivationForm) -> None:
    """Every operation, both GELU forms, two tasks, outputs of every kind; on unseen images."""
    network = float_network(seed=1, layers=4, form=form)
    integer = quantize(network, images(0, 8), precision)
    check(integer)
    found = fidelity(network, integer)
    forced, kept, stage = BOUNDS[precision.name]
    assert found.sqnr_forced_db is not None
    assert found.sqnr_forced_db > forced
    assert found.routing_agreement is not None
    assert found.routing_agreement * 100 > kept
    measured = {s.name: s.sqnr_db for s in found.stages if s.sqnr_db is not None}
    assert {"x", "l0.n1", "l0.q", "l0.v", "l0.c", "l0.a", "l1.x2", "l1.n2.fine", "logits", "first.fine"} <= set(
        measured
    )
    centred = {name: value for name, value in measured.items() if not name.endswith(".k")}  # keys move by a constant
    assert min(centred.values()) > stage, centred


def _hiding(value: float) -> FloatArray:
    """The biases of BEiT, a third of the keys of a query hidden by `value`."""
    draw = Draw(5)
    bias = relative_bias(draw)
    hidden = draw.generator.random(bias.shape[1:]) < 0.3
    hidden[:, 0] = False
    return np.where(hidden, np.float32(value), bias)


BIASES: dict[str, Callable[[], FloatArray]] = {
    "relative positions": lambda: relative_bias(Draw(3)),
    "large": lambda: relative_bias(Draw(3), spread=12.0),
    "shared": lambda: relative_bias(Draw(3), heads=1),
    "infinite": lambda: _hiding(-np.inf),
    "100": lambda: _hiding(-100.0),
    "10,000": lambda: _hiding(-1e4),
    "lowest": lambda: _hiding(float(np.finfo(np.float32).min)),
}


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_biases_of_scores_keep_their_meaning(precision: Precision, name: str) -> None:
    network = float_network(seed=1, tasks=1, bias=BIASES[name]())
    integer = quantize(network, images(0, 8), precision)
    check(integer)
    found = fidelity(network, integer)
    print(f"{precision.name} {name}: {found.sqnr_forced_db:.1f} dB")
    forced, _, stage = BOUNDS[precision.name]
    assert found.sqnr_forced_db is not None
    assert found.sqnr_forced_db > forced
    contexts = [s.sqnr_db for s in found.stages if s.name.endswith(".c")]
    assert all(db is not None and db > stage for db in contexts), contexts


def test_biases_that_change_nothing_are_left_out() -> None:
    """A constant a query; also so low that float32 loses the scores it is added to: then all keys are alike."""
    draw = Draw(4)
    rows = np.repeat(draw.normal(1, 25, 1, scale=9.0), 25, axis=2)
    integer = quantize(float_network(seed=1, tasks=1, bias=rows), images(0, 2), W8A8)
    assert all(op.bias is None for op in integer.operations if isinstance(op, IntegerAttention))
    rows[:, 7] = np.finfo(np.float32).min
    integer = quantize(float_network(seed=1, tasks=1, bias=rows), images(0, 2), W8A8)
    biases = [op.bias for op in integer.operations if isinstance(op, IntegerAttention)]
    for bias in biases:
        assert bias is not None
        assert np.unique(np.argwhere(bias.entries == HIDDEN)[:, 1]).tolist() == [7]
        assert (bias.entries[:, 7] == HIDDEN).all()


def test_a_bias_larger_than_all_scores_fits_the_accumulators() -> None:
    """Queries and keys of next to nothing: their steps grow until 32 bits hold the sums with the bias."""
    network = float_network(seed=1, tasks=1, bias=relative_bias(Draw(3)))
    quiet = [
        replace(o, weight=o.weight * np.float32(1e-5), bias=o.bias * np.float32(1e-5))
        if isinstance(o, Linear) and o.name.endswith((".q", ".k"))
        else o
        for o in network.operations
    ]
    network = replace(network, operations=tuple(quiet))
    integer = quantize(network, images(0, 4), W8A8)
    check(integer)
    assert (fidelity(network, integer).sqnr_forced_db or 0) > BOUNDS["w8a8"][0]


def test_one_task_needs_no_task_input() -> None:
    network = float_network(seed=2, tasks=1)
    integer = quantize(network, images(0, 4), W8A8)
    check(integer)
    assert integer.task_input is None
    assert (fidelity(network, integer).sqnr_forced_db or 0) > BOUNDS["w8a8"][0]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, quantize(float_network(seed=3), images(0, 3), W8A8))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_threads_do_not_change_the_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from moehls.quantize import quantize; from moehls.serialize import save;"
        "from moehls.integer.precision import W8A8; from tests.quantize.support import float_network, images;"
        "save(Path(sys.argv[1]), quantize(float_network(seed=4), images(0, 8), W8A8))"
    )
    for threads in ("1", "2"):
        limits = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / threads)],
            check=True,
            env=os.environ | limits,
            cwd=Path(__file__).parents[2],
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_constant_in_the_keys_costs_nothing() -> None:
    """Softmax does not see it; so the integers, their bias apart, are those of keys without it."""
    network = float_network(seed=5, layers=1)
    moved = tuple(
        dataclasses.replace(o, bias=o.bias + np.float32(64)) if isinstance(o, Linear) and o.name == "l0.k" else o
        for o in network.operations
    )
    plain = quantize(network, images(0, 4), W8A8)
    constant = quantize(dataclasses.replace(network, operations=moved), images(0, 4), W8A8)
    image = images(7, 1)[0]
    assert np.array_equal(run(plain, image).array("l0.c"), run(constant, image).array("l0.c"))
    first, second = (next(o for o in n.operations if o.name == "l0.k") for n in (plain, constant))
    assert isinstance(first, IntegerLinear)
    assert isinstance(second, IntegerLinear)
    assert np.array_equal(first.weight, second.weight)


def test_progress_names_every_operation() -> None:
    seen: list[tuple[int, int, str]] = []
    integer = quantize(float_network(), images(0, 1), W8A8, lambda done, total, name: seen.append((done, total, name)))
    assert [name for _, _, name in seen] == [o.name for o in integer.operations]
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}


def test_of_many_images_evenly_spaced_ones_are_taken() -> None:
    """25 tokens and 2 tasks: 163 images fill the 8192 tokens a calibration holds."""
    network = float_network(seed=6, layers=1)
    many = images(0, 326)
    few = quantize(network, many[::2], W8A8)
    assert np.array_equal(
        run(quantize(network, many, W8A8), many[0]).array("logits"), run(few, many[0]).array("logits")
    )


def test_random_calibration_gives_a_valid_network() -> None:
    network = float_network(seed=6)
    drawn = random_calibration(network, 0)
    assert drawn.shape[1:] == SHAPE
    assert np.array_equal(drawn, random_calibration(network, 0))
    assert not np.array_equal(drawn, random_calibration(network, 1))
    check(quantize(network, drawn, W8A8))


@pytest.mark.parametrize(
    ("shape", "fill", "words"),
    [
        ((2, 3, 32, 40), 0.5, r"shape \(2, 3, 32, 40\).*\[samples, 3, 32, 48\]"),
        ((0, 3, 32, 48), 0.5, "at least one sample"),
        ((1, 3, 32, 48), np.nan, "not finite"),
    ],
)
def test_calibration_images_that_do_not_fit(shape: tuple[int, ...], fill: float, words: str) -> None:
    with pytest.raises(MoehlsError, match=words):
        quantize(float_network(), np.full(shape, fill, np.float32), W8A8)


def test_images_of_one_colour_and_dead_weights_do_no_harm() -> None:
    """No range at all in a channel, a matrix of zeros and a norm without gain."""
    network = float_network(seed=8)
    dead = tuple(
        dataclasses.replace(o, weight=np.zeros_like(o.weight))
        if isinstance(o, Linear | LayerNorm) and o.name in ("l0.fc1", "l1.v", "l1.norm2")
        else o
        for o in network.operations
    )
    integer = quantize(dataclasses.replace(network, operations=dead), np.full((2, *SHAPE), 0.25, np.float32), W8A8)
    check(integer)
