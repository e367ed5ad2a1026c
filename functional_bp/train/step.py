"""A training step on optax whose gradients are ours, and its layout over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from functional_bp.transforms import value_and_grad


class State(NamedTuple):
    """What training carries from step to step."""

    params: Any
    optimizer_state: Any


def make_step(
    objective: Callable[..., jax.Array], optimizer: optax.GradientTransformation
) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """A jit-compiled step: ``step(state, batch) -> (state, value of the objective before it)``.

    Args:
        objective: ``objective(params, batch)``, a scalar.
        optimizer: any gradient transformation of optax.
    """

    @jax.jit
    def step(state: State, batch: Any) -> tuple[State, jax.Array]:
        value, params_bar = value_and_grad(objective)(state.params, batch)
        updates, optimizer_state = optimizer.update(params_bar, state.optimizer_state, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer_state), value

    return step


class DataParallel(NamedTuple):
    """The same parameters on every device, a slice of every batch on each.

    ``jit`` follows the layout of its arguments: each device computes the gradient of its slice,
    and the sum over the batch becomes an all-reduce.
    """

    mesh: Mesh

    @classmethod
    def over(cls, devices: Sequence[Any]) -> DataParallel:
        """One mesh axis, ``batch``, over the devices."""
        count = len(devices)
        return cls(jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=devices))

    def replicate(self, tree: Any) -> Any:
        """A copy of every array on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def split(self, batch: Any) -> Any:
        """Arrays cut along their first axis, whose length the device count divides."""
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec("batch")))
