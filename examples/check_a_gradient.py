"""Is a hand-derived gradient right, and if not, where and why.

Run: python examples/check_a_gradient.py
"""

import jax
import jax.numpy as jnp

import functional_bp as bp

# 1. A backward pass derived by hand. One path of the gradient was forgotten: which?


@jax.custom_vjp
def layer_norm(x, gamma, beta):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
    return gamma * (x - mean) * r + beta


def layer_norm_fwd(x, gamma, beta):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
    x_hat = (x - mean) * r
    return gamma * x_hat + beta, (x_hat, r, gamma)


def layer_norm_bwd(residuals, y_bar):
    x_hat, r, gamma = residuals
    x_hat_bar = gamma * y_bar
    x_bar = r * (x_hat_bar - jnp.mean(x_hat_bar, axis=-1, keepdims=True))
    return x_bar, jnp.sum(x_hat * y_bar, axis=0), jnp.sum(y_bar, axis=0)


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)

keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (3, 4))
gamma, beta = 1 + 0.3 * jax.random.normal(keys[1], (4,)), jax.random.normal(keys[2], (4,))

report = bp.check(layer_norm, x, gamma, beta)
print(report)
(finding,) = report.findings

# 2. A derivation on paper, step by step: the first wrong step is named, and the steps after it are
#    judged given what it claims. A function's parameters say what it is given.


def loss(W1, W2, x, y):
    z = bp.name(W1 @ x, "z")
    h = bp.name(jnp.tanh(z), "h")
    o = bp.name(W2 @ h, "o")
    return 0.5 * jnp.sum((o - y) ** 2)


derivation = {
    "o": lambda o, y: o - y,
    "W2": lambda o_bar, h: jnp.outer(o_bar, h),
    "h": lambda o_bar, W2: W2.T @ o_bar,
    "z": lambda h_bar, h: h_bar * (1 - h),  # tanh′ = 1 − tanh²
    "W1": lambda z_bar, x: jnp.outer(z_bar, x),
}
W1, W2 = jax.random.normal(keys[0], (4, 3)), jax.random.normal(keys[1], (2, 4))
steps = bp.check_steps(loss, W1, W2, x[0, :3], x[1, :2], claims=derivation)
print(steps)

assert (finding.kind, finding.argument) == ("missing term", "x")
assert finding.where is not None and "x_bar = r *" in finding.where.text
assert [step.argument for step in steps.findings] == ["z"]
