"""Backpropagation through time is backpropagation: shared weights are one node with many uses.

An RNN, an LSTM and a GRU over T steps, once as a ``scan`` and once unrolled. In the unrolled graph
the weights are drawn once and used T times, so their cotangent is a sum over the uses, and that
sum is the gradient which the scan's reverse sweep adds up step by step. Truncated after k steps,
the sum leaves out the paths that reach further back.

Run: python examples/through_time.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_bp as bp

T, K, INPUTS, HIDDEN = 12, 4, 3, 5


def rnn(w, state, x):
    """h' = tanh(W [h, x])."""
    (h,) = state
    return (jnp.tanh(w["h"] @ jnp.concatenate([h, x])),)


def lstm(w, state, x):
    """c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh(c'), all gates of W [h, x]."""
    h, c = state
    i, f, o, g = (w[gate] @ jnp.concatenate([h, x]) for gate in "ifog")
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(w, state, x):
    """h' = (1 − z) ⊙ n + z ⊙ h, with n = tanh(W [r ⊙ h, x])."""
    (h,) = state
    r, z = (jax.nn.sigmoid(w[gate] @ jnp.concatenate([h, x])) for gate in "rz")
    n = jnp.tanh(w["n"] @ jnp.concatenate([r * h, x]))
    return ((1 - z) * n + z * h,)


def loss(w, states, target):
    """½ Σ ‖h_t − target_t‖² over time."""
    return 0.5 * jnp.sum((states - target) ** 2)


def scanned(w, cell, state, xs, target):
    """The loss of a scan."""

    def step(state, x):
        state = cell(w, state, x)
        return state, state[0]

    return loss(w, jax.lax.scan(step, state, xs)[1], target)


def unrolled(w, cell, state, xs, target, window=T):
    """The loss of the unrolled graph; no gradient flows further back than a window's start."""
    states = []
    for t, x in enumerate(xs):
        if t and t % window == 0:
            state = jax.lax.stop_gradient(state)
        state = cell(w, state, x)
        states.append(state[0])
    return loss(w, jnp.stack(states), target)


rng, found = np.random.default_rng(0), []
xs, target = rng.normal(size=(T, INPUTS)), rng.normal(size=(T, HIDDEN))
for cell, gates, count in ((rnn, "h", 1), (lstm, "ifog", 2), (gru, "rzn", 1)):
    w = {gate: 0.4 * rng.normal(size=(HIDDEN, HIDDEN + INPUTS)) for gate in gates}
    data = (cell, (jnp.zeros(HIDDEN),) * count, xs, target)
    by_scan, by_graph = bp.grad(scanned)(w, *data), bp.grad(unrolled)(w, *data)
    truncated = bp.grad(unrolled)(w, *data, window=K)
    apart = max(float(jnp.max(jnp.abs(by_scan[g] - by_graph[g]))) for g in gates)
    missing = max(float(jnp.max(jnp.abs(truncated[g] - by_graph[g]))) for g in gates)
    print(f"{cell.__name__:4}  scan − unrolled: {apart:.0e}   truncated − whole: {missing:.2f}")
    found.append((apart, missing))
assert all(apart < 1e-4 < missing for apart, missing in found)
