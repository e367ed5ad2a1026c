"""Convolutions, pooling and differences: neighbours, and what happens at the border."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import fault, normal, operation


@jax.custom_vjp
def correlate(x, kernel):
    """y_i = Σ_k w_k x_{i+k−1}, three taps, zeros outside."""
    padded = jnp.pad(x, 1)
    return sum(kernel[k] * padded[k : k + x.shape[0]] for k in range(3))


def correlate_fwd(x, kernel):
    """Keep both."""
    padded = jnp.pad(x, 1)
    return sum(kernel[k] * padded[k : k + x.shape[0]] for k in range(3)), (x, kernel)


def correlate_bwd(residuals, y_bar):
    """x̄ correlates ȳ with the flipped kernel;  w̄_k = Σ_i ȳ_i x_{i+k−1}."""
    x, kernel = residuals
    size = x.shape[0]
    padded, padded_bar = jnp.pad(x, 1), jnp.pad(y_bar, 1)
    x_bar = sum(kernel[2 - k] * padded_bar[k : k + size] for k in range(3))
    kernel_bar = jnp.stack([jnp.sum(y_bar * padded[k : k + size]) for k in range(3)])
    return x_bar, kernel_bar


correlate.defvjp(correlate_fwd, correlate_bwd)

CORRELATE = operation(
    correlate,
    lambda rng: (normal(rng, 8), normal(rng, 3)),
    fault(("reversal", "permutation", "wrong operand"), "x", "kernel[2 - k] * padded_bar",
          "kernel[k] * padded_bar"),
    fault(("reversal", "permutation"), "kernel", "return x_bar, kernel_bar",
          "return x_bar, kernel_bar[::-1]"),
    fault("border", "x", "jnp.pad(x, 1), jnp.pad(y_bar, 1)",
          'jnp.pad(x, 1), jnp.pad(y_bar, 1, mode="edge")'),
    fault("border", "kernel", "jnp.pad(x, 1), jnp.pad(y_bar, 1)",
          'jnp.pad(x, 1, mode="wrap"), jnp.pad(y_bar, 1)'),
    fault(("border", "off by one"), "x", "padded, padded_bar = jnp.pad(x, 1), jnp.pad(y_bar, 1)",
          "padded, padded_bar = jnp.pad(x, 1), jnp.pad(y_bar.at[0].set(0.0), 1)"),
    fault("off by one", "x", "jnp.pad(x, 1), jnp.pad(y_bar, 1)",
          "jnp.pad(x, 1), jnp.pad(y_bar, (2, 0))"),
    fault("mean or sum", "kernel", "jnp.sum(y_bar * padded", "jnp.mean(y_bar * padded"),
    fault("missing term", "x", "padded_bar[k : k + size] for k in range(3))",
          "padded_bar[k : k + size] for k in range(2))"),
    also={"long": lambda rng: (normal(rng, 100000), normal(rng, 3))},
)


@jax.custom_vjp
def convolution(x, w):
    """A 3 × 3 convolution of images (batch, channel, height, width), zeros outside."""
    return lax.conv(x, w, (1, 1), "SAME")


def convolution_fwd(x, w):
    """Keep both."""
    return lax.conv(x, w, (1, 1), "SAME"), (x, w)


def convolution_bwd(residuals, y_bar):
    """x̄: flip the kernel, swap its channels;  w̄: correlate x with ȳ over the batch."""
    x, w = residuals
    flipped = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    x_bar = lax.conv(y_bar, flipped, (1, 1), "SAME")
    w_bar = lax.conv_general_dilated(
        x.swapaxes(0, 1), y_bar.swapaxes(0, 1), (1, 1), ((1, 1), (1, 1))
    )
    return x_bar, w_bar.swapaxes(0, 1)


convolution.defvjp(convolution_fwd, convolution_bwd)

CONVOLUTION = operation(
    convolution,
    lambda rng: (normal(rng, 2, 2, 5, 5), normal(rng, 2, 2, 3, 3)),
    fault("reversal", "x", "w[:, :, ::-1, ::-1].swapaxes(0, 1)", "w.swapaxes(0, 1)"),
    fault("transpose", "x", "w[:, :, ::-1, ::-1].swapaxes(0, 1)", "w[:, :, ::-1, ::-1]"),
    fault("reversal", "x", "w[:, :, ::-1, ::-1]", "w[:, :, ::-1]"),
    fault("transpose", "w", "return x_bar, w_bar.swapaxes(0, 1)", "return x_bar, w_bar"),
    fault(("off by one", "border"), "w", "(1, 1), ((1, 1), (1, 1))", "(1, 1), ((0, 2), (1, 1))"),
    fault(("mean or sum", "factor"), "w", "return x_bar, w_bar.swapaxes(0, 1)",
          "return x_bar, w_bar.swapaxes(0, 1) / x.shape[0]"),
    fault(("transpose", "permutation"), "w", "return x_bar, w_bar.swapaxes(0, 1)",
          "return x_bar, w_bar.swapaxes(0, 1).swapaxes(2, 3)"),
)


@jax.custom_vjp
def max_pool(x):
    """Maximum of neighbouring pairs; of equal ones the first counts."""
    return jnp.maximum(x[0::2], x[1::2])


def max_pool_fwd(x):
    """Keep whether the first of each pair is the maximum."""
    first = x[0::2] >= x[1::2]
    return jnp.maximum(x[0::2], x[1::2]), first


def max_pool_bwd(first, y_bar):
    """ȳ goes to the one that was the maximum."""
    first_bar = jnp.where(first, y_bar, 0.0)
    second_bar = jnp.where(first, 0.0, y_bar)
    return (jnp.stack([first_bar, second_bar], axis=1).reshape(-1),)


max_pool.defvjp(max_pool_fwd, max_pool_bwd)

MAX_POOL = operation(
    max_pool,
    lambda rng: (normal(rng, 10),),
    fault(("permutation", "transpose"), "x", "axis=1).reshape(-1)", "axis=0).reshape(-1)"),
    fault(("permutation", "entries", "off by one"), "x", "[first_bar, second_bar]",
          "[second_bar, first_bar]"),
    fault(("extra term", "entries"), "x", "jnp.where(first, 0.0, y_bar)", "y_bar"),
    fault(("factor", "entries", "other"), "x",
          "jnp.stack([first_bar, second_bar], axis=1).reshape(-1)", "0.5 * jnp.repeat(y_bar, 2)"),
    fault("repeats", "x", "first = x[0::2] >= x[1::2]",
          "first = (x[0::2] >= x[1::2]).astype(x.dtype) + (x[0::2] == x[1::2])",
          ("first_bar = jnp.where(first, y_bar, 0.0)", "first_bar = first * y_bar"),
          elsewhere=lambda rng: (np.ones(10, np.float32),)),
    also={"ties, another convention": lambda rng: (np.repeat(normal(rng, 5), 2),)},
)


@jax.custom_vjp
def mean_pool(x):
    """Means of 2 × 2 blocks."""
    h, w = x.shape
    return jnp.mean(x.reshape(h // 2, 2, w // 2, 2), axis=(1, 3))


def mean_pool_fwd(x):
    """Nothing is kept but the shape."""
    return mean_pool(x), None


def mean_pool_bwd(_, y_bar):
    """Each entry of a block gets a quarter."""
    rows = jnp.repeat(y_bar, 2, axis=0)
    return (jnp.repeat(rows, 2, axis=1) / 4.0,)


mean_pool.defvjp(mean_pool_fwd, mean_pool_bwd)

MEAN_POOL = operation(
    mean_pool,
    lambda rng: (normal(rng, 6, 6),),
    fault("factor", "x", "axis=1) / 4.0", "axis=1) / 2.0"),
    fault(("mean or sum", "factor"), "x", " / 4.0", ""),
    fault("permutation", "x", "jnp.repeat(rows, 2, axis=1)", "jnp.tile(rows, (1, 2))"),
    fault("transpose", "x", "jnp.repeat(y_bar, 2, axis=0)", "jnp.repeat(y_bar.T, 2, axis=0)"),
    fault(("precision", "not linear"), "x", "jnp.repeat(y_bar, 2, axis=0)",
          "jnp.repeat(y_bar.astype(jnp.float16).astype(y_bar.dtype), 2, axis=0)"),
    fault(("not linear", "region"), "x", "axis=1) / 4.0,)", "axis=1).clip(-0.5, 0.5) / 4.0,)"),
)


@jax.custom_vjp
def periodic_laplacian(x):
    """x_{i+1} − 2 x_i + x_{i−1} on a ring."""
    return jnp.roll(x, -1) - 2.0 * x + jnp.roll(x, 1)


def periodic_laplacian_fwd(x):
    """Linear: nothing is kept."""
    return jnp.roll(x, -1) - 2.0 * x + jnp.roll(x, 1), None


def periodic_laplacian_bwd(_, y_bar):
    """Its own transpose."""
    return (jnp.roll(y_bar, 1) - 2.0 * y_bar + jnp.roll(y_bar, -1),)


periodic_laplacian.defvjp(periodic_laplacian_fwd, periodic_laplacian_bwd)

PERIODIC_LAPLACIAN = operation(
    periodic_laplacian,
    lambda rng: (normal(rng, 9),),
    fault("border", "x", "jnp.roll(y_bar, 1) - 2.0 * y_bar + jnp.roll(y_bar, -1)",
          "jnp.convolve(y_bar, jnp.array([1.0, -2.0, 1.0], y_bar.dtype), mode=\"same\")"),
    fault(("sign", "factor"), "x", "(jnp.roll(y_bar, 1) - 2.0 * y_bar + jnp.roll(y_bar, -1),)",
          "(-(jnp.roll(y_bar, 1) - 2.0 * y_bar + jnp.roll(y_bar, -1)),)"),
    fault("missing term", "x", " + jnp.roll(y_bar, -1),)", ",)"),
    fault("wrong constant", "x", "1) - 2.0 * y_bar + jnp", "1) - y_bar + jnp"),
    fault(("off by one", "missing term"), "x", "+ jnp.roll(y_bar, -1),)", "+ jnp.roll(y_bar, 1),)"),
)


@jax.custom_vjp
def forward_difference(x, spacing):
    """(x_{i+1} − x_i)/h."""
    return (x[1:] - x[:-1]) / spacing


def forward_difference_fwd(x, spacing):
    """Keep the differences and h."""
    y = (x[1:] - x[:-1]) / spacing
    return y, (y, spacing)


def forward_difference_bwd(residuals, y_bar):
    """x̄_i = (ȳ_{i−1} − ȳ_i)/h, with zeros outside;  h̄ = −Σ y ȳ/h."""
    y, spacing = residuals
    padded = jnp.pad(y_bar, 1)
    x_bar = (padded[:-1] - padded[1:]) / spacing
    return x_bar, -jnp.sum(y * y_bar) / spacing


forward_difference.defvjp(forward_difference_fwd, forward_difference_bwd)

FORWARD_DIFFERENCE = operation(
    forward_difference,
    lambda rng: (normal(rng, 9), np.float32(0.25)),
    fault("sign", "x", "padded[:-1] - padded[1:]", "padded[1:] - padded[:-1]"),
    fault("border", "x", "padded = jnp.pad(y_bar, 1)", 'padded = jnp.pad(y_bar, 1, mode="edge")'),
    fault(("missing factor", "factor"), "spacing", "jnp.sum(y * y_bar) / spacing",
          "jnp.sum(y * y_bar)"),
    fault("sign", "spacing", "-jnp.sum(y *", "jnp.sum(y *"),
    fault(("factor", "missing factor"), "x", ") / spacing\n    return x_bar",
          ") * spacing\n    return x_bar"),
    fault(("cotangent ignored", "missing factor", "wrong operand"), "spacing", "jnp.sum(y * y_bar)",
          "jnp.sum(y)"),
)
