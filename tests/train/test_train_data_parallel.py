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
from functional_bp.train.data_parallel import DataParallel, layout_of

RNG = np.random.default_rng(4)
ADAM = optax.adam(1e-2)
W = RNG.normal(size=(3, 2))
EIGHT = DataParallel.over(jax.devices())


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
    assert placed["x"].sharding.spec == PartitionSpec(*(["batch"] if length == 16 else []))
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
    assert layout_of(None, 32) is None
    assert _devices(layout_of(2, 32)) == jax.devices()[:2]
    assert _devices(layout_of(jax.devices()[3:5], 32)) == jax.devices()[3:5]
    assert _devices(layout_of(8, None)) == jax.devices()


def _devices(layout: DataParallel | None) -> list[Any]:
    assert layout is not None
    return list(layout.mesh.devices.flat)


@pytest.mark.parametrize(
    ("devices", "batch_size", "message"),
    [
        (0, 32, "there are not so many devices\n  got:      devices=0\n  expected: 1 to 8"),
        (9, 32, "there are not so many devices\n  got:      devices=9"),
        ([], 32, "there is no device to train on"),
        (8, 12, "cannot share a batch evenly\n  got:      batch_size=12 over 8 devices"),
    ],
)
def test_devices_that_are_not_there_or_do_not_fit_are_refused(
    devices: Any, batch_size: int, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        layout_of(devices, batch_size)
