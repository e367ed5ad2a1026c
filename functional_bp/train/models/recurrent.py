"""Recurrent cells and the scan over time: h_t = f(h_{t−1}, x_t), the weights shared by all t.

What an input adds does not depend on the state: a_t = x_t W + b is one product for all times.
A cell takes the state and a_t. Gates stand beside each other in W, U and b, in Keras' order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid

from functional_bp.errors import TrainingError, compose

State = tuple[Any, ...]  # h, or h and c, each f32[b,m]
GLOROT = jax.nn.initializers.glorot_uniform()
ORTHOGONAL = jax.nn.initializers.orthogonal()


def rnn(U: Any, state: State, a: Any) -> State:
    """Elman's cell: h' = tanh(a + h U), with U ``f32[m,m]``."""
    (h,) = state
    return (jnp.tanh(a + h @ U),)


def lstm(U: Any, state: State, a: Any) -> State:
    """Long short-term memory, with the gates i, f, g, o of a + h U and U ``f32[m,4m]``.

    c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g),  h' = σ(o) ⊙ tanh(c').
    """
    h, c = state
    i, f, g, o = jnp.split(a + h @ U, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(c), c


def gru(U: Any, state: State, a: Any) -> State:
    """Gated recurrent unit, with the gates z, r, n and U ``f32[m,3m]``.

    z = σ(a_z + h U_z),  r = σ(a_r + h U_r),  n = tanh(a_n + (r ⊙ h) U_n),
    h' = z ⊙ h + (1 − z) ⊙ n. (Keras' ``GRU(reset_after=False)``.)
    """
    (h,) = state
    m = h.shape[-1]
    z, r = jnp.split(sigmoid(a[..., : 2 * m] + h @ U[:, : 2 * m]), 2, axis=-1)
    n = jnp.tanh(a[..., 2 * m :] + (r * h) @ U[:, 2 * m :])
    return (z * h + (1 - z) * n,)


class Cell(NamedTuple):
    """A cell, how many gates its weights hold, and of how many arrays its state is."""

    step: Callable[[Any, State, Any], State]
    gates: int
    states: int


CELLS = {"rnn": Cell(rnn, 1, 1), "lstm": Cell(lstm, 4, 2), "gru": Cell(gru, 3, 1)}


def init(
    key: Any, cell: str, inputs: int, units: int, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """W by Glorot's rule, U with orthogonal rows, b = 0 but 1 for the LSTM's gate f: as in Keras.

    Args:
        key: a random key.
        cell: "rnn", "lstm" or "gru".
        inputs: n, the entries of an input.
        units: m, the entries of a state.
        dtype: of the parameters.

    Returns:
        ``W: f32[n,g m]``, ``U: f32[m,g m]``, ``b: f32[g m]`` of the cell's g gates.

    Raises:
        TrainingError: there is no such cell.

    Example:
        >>> import jax
        >>> {k: v.shape for k, v in init(jax.random.key(0), "gru", 3, 5).items()}
        {'W': (3, 15), 'U': (5, 15), 'b': (15,)}
    """
    columns = _cell(cell).gates * units
    b = jnp.zeros(columns, dtype)
    return {
        "W": GLOROT(jax.random.fold_in(key, 0), (inputs, columns), dtype),
        "U": ORTHOGONAL(jax.random.fold_in(key, 1), (units, columns), dtype),
        "b": b.at[units : 2 * units].set(1) if cell == "lstm" else b,
    }


def apply(
    params: dict[str, Any],
    x: Any,
    *,
    cell: str,
    state: State | None = None,
    window: int | None = None,
    unroll: bool = False,
) -> tuple[jax.Array, State]:
    """All states h_1, ..., h_T of a sequence, and the last state.

    Args:
        params: of ``init``.
        x: sequences ``f32[b,T,n]``.
        cell: "rnn", "lstm" or "gru".
        state: h_0 (and c_0), ``f32[b,m]`` each; zeros by default.
        window: no gradient flows from one window of so many steps back into the one before
            (truncated backpropagation through time); by default it flows through all.
        unroll: write the T steps out, as one graph, in place of a ``lax.scan``.

    Returns:
        ``f32[b,T,m]``, and the state after T steps.
    """
    step, U = _cell(cell).step, params["U"]
    a = jnp.swapaxes(x @ params["W"] + params["b"], 0, 1)
    if state is None:
        state = (jnp.zeros((x.shape[0], U.shape[0]), a.dtype),) * _cell(cell).states

    def body(state: State, inputs: tuple[Any, Any]) -> tuple[State, Any]:
        t, a_t = inputs
        if window:
            cut = lax.stop_gradient(state)
            state = jax.tree.map(lambda c, s: jnp.where(t % window == 0, c, s), cut, state)
        state = step(U, state, a_t)
        return state, state[0]

    if not unroll:
        state, hs = lax.scan(body, state, (jnp.arange(len(a)), a))
        return jnp.swapaxes(hs, 0, 1), state
    states = []
    for t in range(len(a)):
        state, h = body(state, (t, a[t]))
        states.append(h)
    return jnp.stack(states, axis=1), state


def _cell(name: str) -> Cell:
    if name not in CELLS:
        raise TrainingError(
            compose("there is no such recurrent cell", got=repr(name),
                    expected=", ".join(map(repr, CELLS)))
        )  # fmt: skip
    return CELLS[name]
