"""Low precision with wide accumulation, cancellation avoided, wide ranges, deep chains."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import normal, operation


def half(array, dtype="bfloat16"):
    """The array in bfloat16 or float16."""
    return jnp.asarray(array, dtype)


@jax.custom_vjp
def half_layer_norm(x, gamma):
    """Layer norm of bfloat16 or float16, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    r = lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return (centred * r * gamma.astype(wide.dtype)).astype(x.dtype)


def half_layer_norm_fwd(x, gamma):
    """Keep x as it came: the statistics are cheap to have again."""
    return half_layer_norm(x, gamma), (x, gamma)


def half_layer_norm_bwd(residuals, y_bar):
    """As for float32, rounded at the end alone."""
    x, gamma = residuals
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y_bar = y_bar.astype(wide.dtype)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    r = lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    x_hat, scaled = centred * r, y_bar * gamma.astype(wide.dtype)
    mean_bar = jnp.mean(scaled, axis=-1, keepdims=True)
    x_bar = r * (scaled - mean_bar - x_hat * jnp.mean(scaled * x_hat, axis=-1, keepdims=True))
    return x_bar.astype(x.dtype), jnp.sum(y_bar * x_hat, axis=0).astype(gamma.dtype)


half_layer_norm.defvjp(half_layer_norm_fwd, half_layer_norm_bwd)


@jax.custom_vjp
def half_softmax(x):
    """Softmax of bfloat16 or float16, computed in float32."""
    return jax.nn.softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def half_softmax_fwd(x):
    """Keep the input, not the rounded output."""
    return half_softmax(x), x


def half_softmax_bwd(x, y_bar):
    """p (ȳ − Σ p ȳ) in float32."""
    p = jax.nn.softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    wide_bar = y_bar.astype(p.dtype)
    return ((p * (wide_bar - jnp.sum(p * wide_bar, axis=-1, keepdims=True))).astype(x.dtype),)


half_softmax.defvjp(half_softmax_fwd, half_softmax_bwd)


@jax.custom_vjp
def half_dense(x, w):
    """A product of bfloat16 matrices with float32 accumulation."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.dot(x, w, preferred_element_type=wide).astype(x.dtype)


def half_dense_fwd(x, w):
    """Keep both."""
    return half_dense(x, w), (x, w)


def half_dense_bwd(residuals, y_bar):
    """Both products with float32 accumulation."""
    x, w = residuals
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x_bar = jnp.dot(y_bar, w.T, preferred_element_type=wide)
    w_bar = jnp.dot(x.T, y_bar, preferred_element_type=wide)
    return x_bar.astype(x.dtype), w_bar.astype(w.dtype)


half_dense.defvjp(half_dense_fwd, half_dense_bwd)


@jax.custom_vjp
def half_gelu(x):
    """Exact GELU of float16, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.scipy.stats.norm.cdf(wide)).astype(x.dtype)


def half_gelu_bwd(x, y_bar):
    """Φ(x) + x φ(x) in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = jax.scipy.stats.norm.cdf(wide) + wide * jax.scipy.stats.norm.pdf(wide)
    return ((slope * y_bar.astype(wide.dtype)).astype(x.dtype),)


half_gelu.defvjp(lambda x: (half_gelu(x), x), half_gelu_bwd)


@jax.custom_vjp
def exp_minus_one(x):
    """eˣ − 1, for tiny x."""
    return jnp.expm1(x)


exp_minus_one.defvjp(lambda x: (jnp.expm1(x), jnp.expm1(x)), lambda y, y_bar: (y_bar * (y + 1.0),))


@jax.custom_vjp
def scaled_product(x, y):
    """x y / (x² + y²) by entry, brought to scale first so that nothing overflows."""
    scale = jnp.maximum(jnp.abs(x), jnp.abs(y))
    a, b = x / scale, y / scale
    return a * b / (a * a + b * b)


def scaled_product_bwd(residuals, z_bar):
    """z̄ y (y² − x²)/(x² + y²)², in scaled units, divided by the scale."""
    x, y = residuals
    scale = jnp.maximum(jnp.abs(x), jnp.abs(y))
    a, b = x / scale, y / scale
    common = z_bar * (b * b - a * a) / (a * a + b * b) ** 2 / scale
    return common * b, -common * a


scaled_product.defvjp(lambda x, y: (scaled_product(x, y), (x, y)), scaled_product_bwd)


def scaled_product_truth(x, y):
    """The same without the scale, for autodiff in float64."""
    return x * y / (x * x + y * y)


@jax.custom_vjp
def hypotenuse(x, y):
    """√(x² + y²) without overflow."""
    scale = jnp.maximum(jnp.abs(x), jnp.abs(y))
    return scale * jnp.sqrt((x / scale) ** 2 + (y / scale) ** 2)


def hypotenuse_fwd(x, y):
    """Keep the direction."""
    z = hypotenuse(x, y)
    return z, (x / z, y / z)


hypotenuse.defvjp(hypotenuse_fwd, lambda unit, z_bar: (z_bar * unit[0], z_bar * unit[1]))


def hypotenuse_truth(x, y):
    """The same without the scale, for autodiff in float64."""
    return jnp.sqrt(x * x + y * y)


@jax.custom_vjp
def deep_sine(x):
    """Two hundred sines in a row."""
    return lax.scan(lambda h, _: (jnp.sin(h) * 1.1, None), x, length=200)[0]


def deep_sine_fwd(x):
    """Keep every layer's input."""
    return lax.scan(lambda h, _: (jnp.sin(h) * 1.1, h), x, length=200)


def deep_sine_bwd(layers, y_bar):
    """The chain rule, last layer first."""
    step = lambda h_bar, h: (1.1 * jnp.cos(h) * h_bar, None)
    return (lax.scan(step, y_bar, layers, reverse=True)[0],)


deep_sine.defvjp(deep_sine_fwd, deep_sine_bwd)


@jax.custom_vjp
def deep_product(w, x):
    """Sixty matrix products in a row."""
    return lax.scan(lambda h, _: (w @ h, None), x, length=60)[0]


def deep_product_fwd(w, x):
    """Keep w and every h."""
    last, before = lax.scan(lambda h, _: (w @ h, h), x, length=60)
    return last, (w, before)


def deep_product_bwd(residuals, y_bar):
    """h̄ ← wᵀ h̄, w̄ += h̄ hᵀ."""
    w, before = residuals

    def step(carry, h):
        h_bar, w_bar = carry
        return (w.T @ h_bar, w_bar + jnp.outer(h_bar, h)), None

    (x_bar, w_bar), _ = lax.scan(step, (y_bar, jnp.zeros_like(w)), before, reverse=True)
    return w_bar, x_bar


deep_product.defvjp(deep_product_fwd, deep_product_bwd)


@jax.custom_vjp
def large_sum_of_squares(x):
    """Σ x² of many numbers."""
    return jnp.sum(x * x)


large_sum_of_squares.defvjp(lambda x: (jnp.sum(x * x), x), lambda x, y_bar: (2.0 * y_bar * x,))


@jax.custom_vjp
def large_mean(x):
    """The mean of many numbers."""
    return jnp.mean(x)


large_mean.defvjp(
    lambda x: (jnp.mean(x), x),
    lambda x, y_bar: (jnp.full_like(x, 1.0) * (y_bar / x.size),),
)


@jax.custom_vjp
def log_one_minus_exp(x):
    """log(1 − eˣ) for x < 0, in two branches."""
    near = x > -0.6931471805599453
    return jnp.where(near, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


log_one_minus_exp.defvjp(
    lambda x: (log_one_minus_exp(x), x), lambda x, y_bar: (-y_bar / jnp.expm1(-x),)
)


OPERATIONS = (
    operation(half_layer_norm, lambda rng: (half(normal(rng, 4, 32)), half(normal(rng, 32))),
              hard=True, also={"float16": lambda rng: (half(normal(rng, 4, 32), "float16"),
                                                       half(normal(rng, 32), "float16"))}),
    operation(half_softmax, lambda rng: (half(normal(rng, 4, 32)),), hard=True,
              also={"float16": lambda rng: (half(normal(rng, 4, 32), "float16"),)}),
    operation(half_dense, lambda rng: (half(normal(rng, 6, 40)), half(normal(rng, 40, 4))),
              hard=True, also={"float16": lambda rng: (half(normal(rng, 6, 40), "float16"),
                                                       half(normal(rng, 40, 4), "float16"))}),
    operation(half_gelu, lambda rng: (half(normal(rng, 4, 8), "float16"),), hard=True),
    operation(exp_minus_one, lambda rng: (normal(rng, 6, scale=1e-15),), hard=True),
    operation(scaled_product, lambda rng: tuple(normal(rng, 6, scale=1e15) for _ in "xy"),
              hard=True, reference="scaled_product_truth",
              also={"tiny": lambda rng: tuple(normal(rng, 6, scale=1e-15) for _ in "xy")}),
    operation(hypotenuse, lambda rng: (normal(rng, 6, scale=1e18), normal(rng, 6, scale=1e18)),
              hard=True, reference="hypotenuse_truth"),
    operation(deep_sine, lambda rng: (normal(rng, 5),), hard=True),
    operation(deep_product, lambda rng: (normal(rng, 4, 4, scale=0.4), normal(rng, 4)), hard=True),
    operation(large_sum_of_squares, lambda rng: (normal(rng, 100000),), hard=True),
    operation(large_mean, lambda rng: (100.0 + normal(rng, 100000),), hard=True),
    operation(log_one_minus_exp, lambda rng: (-np.array([1e-12, 1e-6, 0.1, 0.6931472, 3.0, 40.0],
                                                       np.float32),), hard=True),
)
