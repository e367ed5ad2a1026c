"""Broadcasting, reshaping, several outputs, pytrees, low precision."""

import jax
import jax.numpy as jnp

from benchmarks.corpus.declare import fault, normal, operation, uniform


@jax.custom_vjp
def outer_sum(x, y):
    """z_ij = x_i y_j + x_i, as a broadcast."""
    return x[:, None] * y[None, :] + x[:, None]


def outer_sum_fwd(x, y):
    """Keep both."""
    return x[:, None] * y[None, :] + x[:, None], (x, y)


def outer_sum_bwd(residuals, z_bar):
    """x̄ = Σ_j z̄ (y + 1);  ȳ = Σ_i z̄ x."""
    x, y = residuals
    x_bar = jnp.sum(z_bar * (y[None, :] + 1.0), axis=1)
    y_bar = jnp.sum(z_bar * x[:, None], axis=0)
    return x_bar, y_bar


outer_sum.defvjp(outer_sum_fwd, outer_sum_bwd)

OUTER_SUM = operation(
    outer_sum,
    lambda rng: (normal(rng, 5), normal(rng, 5)),
    fault("missing term", "x", "(y[None, :] + 1.0)", "y[None, :]"),
    fault("axis", "y", "z_bar * x[:, None], axis=0", "z_bar * x[:, None], axis=1"),
    fault(("transpose", "axis"), "y", "z_bar * x[:, None]", "z_bar * x[None, :]"),
    fault(("missing sum", "entries"), "y", "jnp.sum(z_bar * x[:, None], axis=0)",
          "jnp.diag(z_bar) * x"),
    fault("mean or sum", "x", "x_bar = jnp.sum", "x_bar = jnp.mean"),
    fault(("missing sum", "not linear"), "y", "jnp.sum(z_bar * x[:, None], axis=0)",
          "jnp.mean(z_bar, axis=0) * jnp.sum(x)"),
    fault("structure", "x", "return x_bar, y_bar", "return x_bar[:, None], y_bar"),
)


@jax.custom_vjp
def split_heads(x):
    """(t, h k) to (h, t, k), two heads."""
    return x.reshape(x.shape[0], 2, -1).transpose(1, 0, 2)


def split_heads_fwd(x):
    """Linear: nothing is kept."""
    return x.reshape(x.shape[0], 2, -1).transpose(1, 0, 2), None


def split_heads_bwd(_, y_bar):
    """Back to (t, h, k), then merged."""
    merged = y_bar.transpose(1, 0, 2)
    return (merged.reshape(merged.shape[0], -1),)


split_heads.defvjp(split_heads_fwd, split_heads_bwd)

SPLIT_HEADS = operation(
    split_heads,
    lambda rng: (normal(rng, 4, 4),),
    fault(("permutation", "transpose"), "x", "merged = y_bar.transpose(1, 0, 2)",
          "merged = y_bar.reshape(-1, *y_bar.shape[::2])"),
    fault(("permutation", "transpose"), "x", "y_bar.transpose(1, 0, 2)",
          "y_bar.transpose(1, 2, 0)"),
    fault(("structure", "transpose"), "x", "(merged.reshape(merged.shape[0], -1),)", "(merged,)"),
    fault(("permutation", "reversal"), "x", "y_bar.transpose(1, 0, 2)",
          "y_bar[::-1].transpose(1, 0, 2)"),
)


@jax.custom_vjp
def moments(x):
    """The mean and the (biased) variance over rows: two outputs."""
    mean = jnp.mean(x, axis=0)
    return mean, jnp.mean((x - mean) ** 2, axis=0)


def moments_fwd(x):
    """Keep x less its mean."""
    mean = jnp.mean(x, axis=0)
    centred = x - mean
    return (mean, jnp.mean(centred**2, axis=0)), centred


def moments_bwd(centred, bars):
    """x̄ = (m̄ + 2 (x − m) v̄)/N."""
    mean_bar, variance_bar = bars
    count = centred.shape[0]
    return ((mean_bar + 2.0 * centred * variance_bar) / count,)


moments.defvjp(moments_fwd, moments_bwd)

MOMENTS = operation(
    moments,
    lambda rng: (normal(rng, 5, 5),),
    fault("cotangent ignored", "x", "mean_bar + 2.0 * centred * variance_bar",
          "2.0 * centred * variance_bar"),
    fault("cotangent ignored", "x", "mean_bar + 2.0 * centred * variance_bar",
          "mean_bar + 0.0 * centred"),
    fault(("permutation", "wrong operand"), "x", "mean_bar, variance_bar = bars",
          "variance_bar, mean_bar = bars"),
    fault(("factor", "missing factor"), "x", "2.0 * centred", "centred"),
    fault(("factor", "off by one", "wrong constant"), "x", "count = centred.shape[0]",
          "count = centred.shape[0] - 1"),
    fault(("mean or sum", "factor"), "x", "(mean_bar + 2.0 * centred * variance_bar) / count",
          "mean_bar + 2.0 * centred * variance_bar"),
    fault("error", "x", "count = centred.shape[0]", "count = mean_bar.shape[1]"),
)


@jax.custom_vjp
def two_layers(params, x):
    """tanh(x w₁ + b₁) w₂, the parameters in a dictionary."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def two_layers_fwd(params, x):
    """Keep the parameters, x and the hidden layer."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"], (params, x, hidden)


def two_layers_bwd(residuals, y_bar):
    """Backpropagation as in every textbook."""
    params, x, hidden = residuals
    hidden_bar = y_bar @ params["w2"].T
    inner_bar = hidden_bar * (1.0 - hidden**2)
    w1_bar = x.T @ inner_bar
    b1_bar = jnp.sum(inner_bar, axis=0)
    w2_bar = hidden.T @ y_bar
    return {"w1": w1_bar, "b1": b1_bar, "w2": w2_bar}, inner_bar @ params["w1"].T


two_layers.defvjp(two_layers_fwd, two_layers_bwd)

TWO_LAYERS = operation(
    two_layers,
    lambda rng: ({"w1": normal(rng, 4, 4), "b1": normal(rng, 4), "w2": normal(rng, 4, 4)},
                 normal(rng, 4, 4)),
    fault("missing factor", ("params['w1']", "params['b1']", "x"), "hidden_bar * (1.0 - hidden**2)",
          "hidden_bar"),
    fault(("wrong operand", "wrong function"), ("params['w1']", "params['b1']", "x"),
          "(1.0 - hidden**2)", "hidden * (1.0 - hidden)"),
    fault("transpose", ("params['w1']", "params['b1']", "x"), 'y_bar @ params["w2"].T',
          'y_bar @ params["w2"]'),
    fault("wrong operand", "params['w2']", "hidden.T @ y_bar", "x.T @ y_bar"),
    fault("transpose", "params['w1']", "w1_bar = x.T @ inner_bar", "w1_bar = inner_bar.T @ x"),
    fault("wrong operand", "x", 'inner_bar @ params["w1"].T', 'hidden_bar @ params["w1"].T'),
    fault("axis", "params['b1']", "jnp.sum(inner_bar, axis=0)", "jnp.sum(inner_bar, axis=1)"),
    fault(("permutation", "wrong operand"), ("params['w1']", "params['w2']"),
          '"w1": w1_bar, "b1": b1_bar, "w2": w2_bar', '"w1": w2_bar, "b1": b1_bar, "w2": w1_bar'),
    fault("structure", "params['b1']", '"b1": b1_bar, ', ""),
    fault(("sign", "transpose"), ("params['w2']", "x"), "w2_bar = hidden.T @ y_bar",
          "w2_bar = -hidden.T @ y_bar", ('inner_bar @ params["w1"].T', 'inner_bar @ params["w1"]')),
)


@jax.custom_vjp
def mixed_scale(x, scale):
    """A bfloat16 array times a float32 scale per column, in bfloat16."""
    return (x.astype(scale.dtype) * scale).astype(x.dtype)


def mixed_scale_fwd(x, scale):
    """Keep both as they came."""
    return (x.astype(scale.dtype) * scale).astype(x.dtype), (x, scale)


def mixed_scale_bwd(residuals, y_bar):
    """Multiply and sum in float32; each cotangent in its argument's dtype."""
    x, scale = residuals
    wide_bar = y_bar.astype(scale.dtype)
    x_bar = (wide_bar * scale).astype(x.dtype)
    scale_bar = jnp.sum(wide_bar * x.astype(scale.dtype), axis=0)
    return x_bar, scale_bar


mixed_scale.defvjp(mixed_scale_fwd, mixed_scale_bwd)

MIXED_SCALE = operation(
    mixed_scale,
    lambda rng: (jnp.asarray(normal(rng, 64, 2), jnp.bfloat16), uniform(rng, 0.5, 2.0, 2)),
    fault("dtype", "x", "(wide_bar * scale).astype(x.dtype)", "wide_bar * scale"),
    fault("dtype", "scale", "return x_bar, scale_bar",
          "return x_bar, scale_bar.astype(jnp.bfloat16)"),
    fault("precision", "scale", "return x_bar, scale_bar",
          "scale_bar = jnp.sum(y_bar * x, axis=0, dtype=jnp.bfloat16).astype(scale.dtype)\n"
          "    return x_bar, scale_bar", needs_reference=True),
    fault(("mean or sum", "factor"), "scale", "scale_bar = jnp.sum", "scale_bar = jnp.mean"),
    fault("missing factor", "x", "(wide_bar * scale).astype", "wide_bar.astype"),
    hard=True,
)
