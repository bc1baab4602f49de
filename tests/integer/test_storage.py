"""An integer network survives the disk, byte for byte, and a bad file is one clear error."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moehls import serialize
from moehls.errors import MoehlsError
from moehls.integer.precision import W16A16
from moehls.integer.storage import load, save
from tests.support.random_networks import Sizes, random_integer_network

SIZES = Sizes(tokens=5, width=8, heads=2, biased=True)
NETWORK = random_integer_network(1, W16A16, SIZES)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "network.npz", NETWORK)
    loaded = load(tmp_path / "network.npz")
    assert same(loaded, NETWORK)
    assert not same(loaded, replace(NETWORK, tokens=6))


def test_same_network_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", NETWORK)
    save(tmp_path / "b.npz", random_integer_network(1, W16A16, SIZES))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_truncated_file(tmp_path: Path) -> None:
    save(tmp_path / "network.npz", NETWORK)
    (tmp_path / "network.npz").write_bytes((tmp_path / "network.npz").read_bytes()[:-1000])
    with pytest.raises(MoehlsError, match=r"network\.npz"):
        load(tmp_path / "network.npz")


def test_something_else(tmp_path: Path) -> None:
    serialize.save(tmp_path / "other.npz", ("not", "a network"))
    with pytest.raises(MoehlsError, match="holds a tuple"):
        load(tmp_path / "other.npz")


def test_a_network_that_breaks_an_invariant(tmp_path: Path) -> None:
    save(tmp_path / "network.npz", replace(NETWORK, outputs=()))
    with pytest.raises(MoehlsError, match="outputs"):
        load(tmp_path / "network.npz")
