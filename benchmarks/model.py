"""A model of the bench: what is differentiated, how, and at which arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """A function of parameters and data, and the transform of it that is measured."""

    function: Callable[..., Any]
    params: Any
    data: tuple[Any, ...] = ()
    transform: str = "value_and_grad"  # a name in ``engine.TRANSFORMS``


def drawing(seed: int = 0) -> Callable[..., Any]:
    """A function that draws a float32 array of normal numbers; 1 / √rows is the default scale."""
    rng = np.random.default_rng(seed)
    return lambda *shape, scale=None: jnp.asarray(
        rng.normal(size=shape) * (scale if scale is not None else shape[0] ** -0.5), jnp.float32
    )
