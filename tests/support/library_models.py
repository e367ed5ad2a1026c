"""What the models of ``test_libraries`` are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """A loss ``(parameters, *data) -> (value, auxiliary)`` written against a library."""

    loss: Callable[..., Any]
    parameters: Any
    data: tuple[Any, ...] = ()
    reference: Callable[..., Any] | None = None  # the same function, where JAX lacks a rule
    max_steps: int | None = None  # of loops without a trip count known before they run
    single: bool = False  # the library computes some of it in single precision whatever it is given


def draws(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def doubles(tree: Any) -> Any:
    """Parameters in double precision, of a library that makes them in single."""
    single = lambda x: getattr(x, "dtype", None) == jnp.float32
    return jax.tree.map(lambda x: x.astype(jnp.float64) if single(x) else x, tree)


def mean_squares(prediction: Any, target: Any) -> Any:
    return jnp.mean((prediction - target) ** 2)
