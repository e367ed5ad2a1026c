"""A rule for a primitive of one's own, and a fused operation with its pullback.

Run: python examples/own_rule.py
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

import functional_bp as bp

# 1. A primitive that JAX knows how to run, and nothing how to differentiate: y = x e^x.


def x_exp_x(x):
    """Bind the primitive."""
    return x_exp_x_p.bind(x)


x_exp_x_p = Primitive("x_exp_x")
x_exp_x_p.def_impl(lambda x: x * jnp.exp(x))
x_exp_x_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(x_exp_x_p, mlir.lower_fun(lambda x: x * jnp.exp(x), multiple_results=False))

try:
    bp.grad(x_exp_x)(1.0)
except bp.errors.MissingRuleError as error:
    print(error, "\n")  # says which line needs which rule

# Naming x and y keeps both for the reverse sweep; y is there anyway.
bp.rule(
    x_exp_x_p,
    "x -> y",
    x=lambda y_bar, x, y: y_bar * (y + lax.exp(x)),
    why="y = x eˣ, dy = (eˣ + x eˣ) dx = (eˣ + y) dx",
)
slope = jax.jit(bp.grad(x_exp_x))(1.0)
curvature = bp.grad(bp.grad(lambda x: jnp.sin(x_exp_x(x))))(0.3)
print(f"d(x eˣ)/dx at 1 is {slope:.6f}, and 2e is {2 * jnp.e:.6f}")

# 2. A fused operation: cross entropy, whose pullback needs the probabilities and nothing else.


def cross_entropy_forward(scores, label):
    """L = log Σ exp(oᵢ) − o_y, and beside it p = softmax(o) for the pullback."""
    shifted = scores - lax.stop_gradient(jnp.max(scores))
    exps = jnp.exp(shifted)
    total = jnp.sum(exps)
    return jnp.log(total) - shifted[label], exps / total


cross_entropy = bp.operation(
    "scores, label -> loss | p",
    cross_entropy_forward,
    scores=lambda loss_bar, p, label: loss_bar * p.at[label].add(-1.0),
    why="∂L/∂oᵢ = exp(oᵢ)/Σⱼ exp(oⱼ) − [i = y] = pᵢ − [i = y]",
)
scores, labels = jax.random.normal(jax.random.key(0), (4, 10)), jnp.array([1, 0, 9, 3])
mean_loss = lambda o: jnp.mean(jax.vmap(cross_entropy)(o, labels))
scores_bar = bp.grad(mean_loss)(scores)
print(f"cross entropy {mean_loss(scores):.4f}, each row of its gradient sums to 0")

witness = jax.grad(jax.grad(lambda x: jnp.sin(x * jnp.exp(x))))(0.3)
expected = (jax.nn.softmax(scores) - jax.nn.one_hot(labels, 10)) / 4
assert jnp.allclose(slope, 2 * jnp.e, rtol=1e-6)
assert jnp.allclose(curvature, witness, rtol=1e-5)
assert jnp.allclose(scores_bar, expected, atol=1e-6)
assert jnp.allclose(jax.grad(mean_loss)(scores), expected, atol=1e-6)
