"""A classifier of sequences: an LSTM, and a dense layer on its last state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functional_bp.train.models import recurrent


def init(
    key: Any, inputs: int, units: int, outputs: int, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """The parameters of the cell, ``recurrent.init``, and of the dense layer by Glorot's rule.

    Args:
        key: a random key.
        inputs: n, the entries of an input.
        units: m, the entries of a state.
        outputs: k, of classes or numbers.
        dtype: of the parameters.

    Returns:
        ``W: f32[n,4m]``, ``U: f32[m,4m]``, ``b: f32[4m]`` with the gates i, f, g, o beside each
        other, as in Keras; ``V: f32[m,k]`` and ``d: f32[k]``.

    Example:
        >>> import jax
        >>> params = init(jax.random.key(0), inputs=3, units=4, outputs=2)
        >>> apply(params, jax.numpy.ones((5, 7, 3))).shape
        (5, 2)
    """
    return {
        **recurrent.init(jax.random.fold_in(key, 0), "lstm", inputs, units, dtype),
        "V": recurrent.GLOROT(jax.random.fold_in(key, 1), (units, outputs), dtype),
        "d": jnp.zeros(outputs, dtype),
    }


def apply(params: dict[str, Any], x: Any) -> jax.Array:
    """ŷ = h_T V + d, where h_t, c_t = lstm(h_{t−1}, c_{t−1}, x_t) from zeros.

    Args:
        params: of ``init``.
        x: sequences ``f32[b,T,n]``.

    Returns:
        ŷ ``f32[b,k]``: numbers, or the logits of classes.
    """
    _, (h, _) = recurrent.apply(params, x, cell="lstm")
    return h @ params["V"] + params["d"]
