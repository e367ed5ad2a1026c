"""Small functions in JAX, and backward passes of them with a fault in the line marked ``here``."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from traced_disagreements import normal


def layer_norm(x, gamma):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * gamma


def layer_norm_fwd(x, gamma):
    mean = x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    x_hat = (x - mean) * r
    return x_hat * gamma, (x_hat, r, gamma)


def layer_norm_without_correction(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).mean(-1, keepdims=True)  # noqa: F841  (the fault)
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True))  # here
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_without_gamma(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar  # here
    inner = (x_hat * x_hat_bar).mean(-1, keepdims=True)
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_with_a_sum(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).sum(-1, keepdims=True)  # here
    x_bar = r * (x_hat_bar - x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def layer_norm_wrong_twice(res, y_bar):
    x_hat, r, gamma = res
    x_hat_bar = y_bar * gamma
    inner = (x_hat * x_hat_bar).sum(-1, keepdims=True)  # here
    x_bar = r * (x_hat_bar + x_hat_bar.mean(-1, keepdims=True) - x_hat * inner)
    return x_bar, (y_bar * x_hat).sum(0)


def softmax_fwd(x):
    y = jax.nn.softmax(x, axis=-1)
    return y, (y,)


def softmax_without_keepdims(res, y_bar):
    (y,) = res
    inner = jnp.sum(y * y_bar, axis=-1)  # here
    return (y * (y_bar - inner),)


def softmax_the_other_way(res, y_bar):
    (y,) = res
    inner = jnp.sum(y * y_bar, axis=-1, keepdims=True)
    return (y * (inner - y_bar),)  # here


def dense(x, W, b):
    return jnp.tanh(x @ W + b)


def dense_fwd(x, W, b):
    y = dense(x, W, b)
    return y, (x, W, y)


def dense_untransposed(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y**2)
    return z_bar @ W.T, x @ z_bar, z_bar.sum(0)  # here


def dense_one_row(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y**2)
    return z_bar @ W.T, x.T @ z_bar, z_bar[0]  # here


def dense_slope(res, y_bar):
    x, W, y = res
    z_bar = y_bar * (1 - y)  # here
    return z_bar @ W.T, x.T @ z_bar, z_bar.sum(0)


def rnn(x, h0, W):
    def step(h, x_t):
        h = jnp.tanh(h @ W + x_t)
        return h, h

    return lax.scan(step, h0, x)[1]


def rnn_fwd(x, h0, W):
    ys = rnn(x, h0, W)
    return ys, (ys, jnp.concatenate([h0[None], ys[:-1]]), W)


def rnn_stale(res, y_bar):
    ys, before, W = res

    def step(carry, slices):
        h_bar, W_bar = carry
        y_bar_t, h, h_before = slices
        z_bar = (h_bar + y_bar_t) * (1 - h**2)
        W_bar = W_bar + jnp.outer(h, z_bar)  # here
        return (z_bar @ W.T, W_bar), z_bar

    start = jnp.zeros_like(ys[0]), jnp.zeros_like(W)
    (h0_bar, W_bar), x_bar = lax.scan(step, start, (y_bar, ys, before), reverse=True)
    return x_bar, h0_bar, W_bar


def rnn_by_hand(res, y_bar):
    ys, before, W = res
    h_bar, W_bar, x_bars = jnp.zeros_like(ys[0]), jnp.zeros_like(W), []
    for t in reversed(range(5)):
        z_bar = (h_bar + y_bar[t]) * (1 + ys[t] ** 2)  # here
        W_bar += jnp.outer(before[t], z_bar)
        h_bar = z_bar @ W.T
        x_bars.append(z_bar)
    return jnp.stack(x_bars[::-1]), h_bar, W_bar


def rnn_forwards(res, y_bar):
    ys, before, W = res

    def step(carry, slices):
        h_bar, W_bar = carry
        y_bar_t, h, h_before = slices
        z_bar = (h_bar + y_bar_t) * (1 - h**2)
        return (z_bar @ W.T, W_bar + jnp.outer(h_before, z_bar)), z_bar

    start = jnp.zeros_like(ys[0]), jnp.zeros_like(W)
    (h0_bar, W_bar), x_bar = lax.scan(step, start, (y_bar, ys, before))  # here
    return x_bar, h0_bar, W_bar


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def gelu_fwd(x):
    return gelu(x), x


def gelu_two_for_three(x, y_bar):
    t = jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    slope = 0.7978845608028654 * (1 + 2 * 0.044715 * x**2)  # here
    return (y_bar * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope),)


def gelu_rounded(x, y_bar):
    c = 0.8  # here
    t = jnp.tanh(c * (x + 0.044715 * x**3))
    slope = c * (1 + 3 * 0.044715 * x**2)
    return (y_bar * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope),)


def conv(x, w):
    padded = jnp.pad(x, (1, 1))
    return w[0] * padded[:-2] + w[1] * padded[1:-1] + w[2] * padded[2:]


def conv_fwd(x, w):
    return conv(x, w), (x, w)


def conv_shifted(res, y_bar):
    x, w = res
    padded = jnp.pad(y_bar, (2, 0))  # here
    return w[2] * padded[:-2] + w[1] * padded[1:-1] + w[0] * padded[2:], w


def conv_edge(res, y_bar):
    x, w = res
    padded = jnp.pad(y_bar, (1, 1), mode="edge")  # here
    return w[2] * padded[:-2] + w[1] * padded[1:-1] + w[0] * padded[2:], w


def embedding(table, ids):
    return 2 * table[ids]


def embedding_fwd(table, ids):
    return embedding(table, ids), (table, ids)


def embedding_set(res, y_bar):
    table, ids = res
    return (jnp.zeros_like(table).at[ids].set(2 * y_bar),)  # here


def gated(x):
    return jnp.where(x > 0.5, x, 0.1 * x)


def gated_fwd(x):
    return gated(x), x


def gated_elsewhere(x, y_bar):
    return (jnp.where(x > 0, y_bar, 0.1 * y_bar),)  # here


NORM = (layer_norm, layer_norm_fwd)
SOFTMAX = (jax.nn.softmax, softmax_fwd)
DENSE, RNN, GELU, CONV = (dense, dense_fwd), (rnn, rnn_fwd), (gelu, gelu_fwd), (conv, conv_fwd)
TABLE = (embedding, embedding_fwd)
ROWS = (normal(4, 6), normal(6))
SQUARE = (normal(4, 4), 0.5 * normal(4, 4, seed=1), normal(4))
STEPS = (normal(5, 3), normal(3), 0.5 * normal(3, 3))

FAULTS = [
    (NORM, layer_norm_without_correction, ROWS, "missing term", "- x_hat * inner"),
    (NORM, layer_norm_without_gamma, ROWS, "missing factor", "y_bar * gamma"),
    (NORM, layer_norm_with_a_sum, ROWS, "mean or sum",
     "(x_hat * x_hat_bar).mean(-1, keepdims=True)"),
    (SOFTMAX, softmax_without_keepdims, (normal(5, 5),), "axis",
     "jnp.sum(y * y_bar, axis=-1, keepdims=True)"),
    (SOFTMAX, softmax_the_other_way, (normal(3, 5),), "sign", "y_bar - inner"),
    (DENSE, dense_untransposed, SQUARE, "transpose", "x.T @ z_bar"),
    (DENSE, dense_one_row, SQUARE, "missing sum", "z_bar.sum(0)"),
    (DENSE, dense_slope, SQUARE, "missing factor", "1 - y ** 2"),
    (RNN, rnn_stale, STEPS, "wrong operand", "jnp.outer(h_before, z_bar)"),
    (RNN, rnn_forwards, STEPS, "reversal", "reverse=True"),
    (RNN, rnn_by_hand, STEPS, "sign", "1 - ys[t] ** 2"),
    (GELU, gelu_two_for_three, (normal(7),), "wrong constant", "3 * 0.044715 * x ** 2"),
    (GELU, gelu_rounded, (normal(7),), "wrong constant", "jnp.sqrt(2 / jnp.pi)"),
    (CONV, conv_shifted, (normal(8), normal(3)), "off by one", "jnp.pad(y_bar, (1, 1))"),
    (CONV, conv_edge, (normal(8), normal(3)), "border", "mode='constant'"),
    (TABLE, embedding_set, (normal(6, 4), np.array([0, 2, 2, 5])), "repeats", ".add(2 * y_bar)"),
    ((gated, gated_fwd), gated_elsewhere, (normal(40),), "region", "x > 0.5"),
]  # fmt: skip
