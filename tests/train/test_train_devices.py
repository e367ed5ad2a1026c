"""Data parallel steps on eight simulated devices give the numbers of one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train.devices import Placement, check_shares, over_devices

RNG = np.random.default_rng(4)
ADAM = optax.adam(1e-2)
W = RNG.normal(size=(3, 2))
EIGHT = Placement(over_devices(jax.devices()))


def loss(w: Any, batch: Any) -> Any:
    return batch["scale"] * jnp.mean((jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2)


def batch_of(length: int) -> Any:
    x, y = RNG.normal(size=(length, 3)), RNG.normal(size=(length, 2))
    return {"scale": 2.0, "x": x, "y": y}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("length", [16, 12])  # 8 devices share the one and hold the other whole
def test_steps_on_devices_are_those_of_one(length: int, accumulate: int) -> None:
    batch = batch_of(length)
    step = train.step(loss, ADAM, accumulate=accumulate, nonfinite="skip")
    alone, shared = train.init(W, ADAM), EIGHT.replicate(train.init(W, ADAM))
    placed, expected, found = EIGHT.split(batch), {}, {}
    assert placed["x"].sharding.spec == PartitionSpec(*(["data"] if length == 16 else []))
    assert placed["scale"].sharding.spec == PartitionSpec()
    for _ in range(3):
        alone, expected = step(alone, batch)
        shared, found = step(shared, placed)
    # Means of eight slices add up in another order: roundings of 1e-16, which Adam normalises.
    np.testing.assert_allclose(shared.params, alone.params, rtol=1e-11)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-12)
    assert shared.params.sharding.is_fully_replicated
    assert step.compilations == 2  # once on one device and once on eight


def test_a_layout_is_over_a_number_of_devices_or_over_these() -> None:
    assert list(over_devices(2).mesh.devices) == jax.devices()[:2]
    assert list(over_devices(jax.devices()[3:5]).mesh.devices) == jax.devices()[3:5]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (0, "there are not so many devices\n  got:      devices=0\n  expected: 1 to 8"),
        (9, "there are not so many devices\n  got:      devices=9"),
        ([], "there is no device\n  got:      devices="),
    ],
)
def test_devices_that_are_not_there_or_do_not_fit_are_refused(devices: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        over_devices(devices)


def test_devices_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(TrainingError, match="evenly\n  got:      batch_size=12 over 8 devices"):
        check_shares(over_devices(8), 12)
