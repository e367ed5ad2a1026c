"""A multilayer perceptron: h_l = σ(h_{l−1} W_l + b_l), the last layer without σ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from functional_bp.errors import TrainingError, compose

GLOROT = jax.nn.initializers.glorot_uniform()


def init(key: Any, sizes: Sequence[int], dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Weights uniform in ±√(6 / (n + m)) (Glorot's), biases 0, as Keras' ``Dense`` has them.

    Args:
        key: a random key.
        sizes: how many units each layer has, inputs first and outputs last.
        dtype: of the parameters.

    Returns:
        ``W1: f32[n0,n1], b1: f32[n1], W2: ...``.

    Raises:
        TrainingError: there are no two layers, or one without units.

    Example:
        >>> import jax
        >>> params = init(jax.random.key(0), [2, 3, 1])
        >>> {name: leaf.shape for name, leaf in params.items()}
        {'W1': (2, 3), 'b1': (3,), 'W2': (3, 1), 'b2': (1,)}
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise TrainingError(
            compose("a perceptron has at least inputs and outputs", got=f"sizes {list(sizes)}",
                    expected="two or more positive numbers of units, such as [64, 32, 10]")
        )  # fmt: skip
    params = {}
    for l, (n, m) in enumerate(zip(sizes, sizes[1:]), start=1):  # noqa: E741
        params[f"W{l}"] = GLOROT(jax.random.fold_in(key, l), (n, m), dtype)
        params[f"b{l}"] = jnp.zeros(m, dtype)
    return params


def apply(
    params: dict[str, Any], x: Any, *, activation: Callable[[Any], Any] = jax.nn.relu
) -> jax.Array:
    """h_0 = x,  h_l = σ(h_{l−1} W_l + b_l),  ŷ = h_{L−1} W_L + b_L.

    Args:
        params: of ``init``.
        x: inputs ``f32[b,n0]``.
        activation: σ, entry by entry.

    Returns:
        ŷ ``f32[b,nL]``: numbers, or the logits of classes.
    """
    layers, h = len(params) // 2, x
    for l in range(1, layers):  # noqa: E741
        h = activation(h @ params[f"W{l}"] + params[f"b{l}"])
    return h @ params[f"W{layers}"] + params[f"b{layers}"]
