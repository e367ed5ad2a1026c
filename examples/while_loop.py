"""The gradient of a loop that decides by itself when to stop.

Newton's method for the root y(a) of y³ + y = a. The loop runs until it has converged, so its
number of steps is not known before it runs: JAX's reverse mode refuses it.

Run: python examples/while_loop.py
"""

import jax
import jax.numpy as jnp
from jax import lax

import functional_bp as bp


def root(a):
    """The y with y³ + y = a, by Newton's method from y = a."""

    def unfinished(state):
        _, change = state
        return jnp.abs(change) > 1e-6

    def newton(state):
        y, _ = state
        change = (y**3 + y - a) / (3 * y**2 + 1)
        return y - change, change

    return lax.while_loop(unfinished, newton, (a, jnp.inf))[0]


try:
    jax.grad(root)(10.0)
except ValueError as error:
    print(f"jax.grad: {str(error)[:73]}…")

# The bound says how many steps to make room for; the loop still stops when it has converged.
slopes = jax.jit(jax.vmap(bp.grad(root, max_steps=20)))(jnp.array([1.0, 2.0, 10.0, 30.0]))
print("dy/da at a = 1, 2, 10, 30:", slopes)

# Too small a bound is an error that says so, never a wrong number.
try:
    bp.grad(root, max_steps=2)(10.0)
    refused = False
except bp.errors.BackpropError as error:
    print(error)
    refused = True

# The true derivative, by the implicit function theorem: dy/da = 1/(3y² + 1).
y = jax.vmap(root)(jnp.array([1.0, 2.0, 10.0, 30.0]))
assert refused and jnp.allclose(slopes, 1 / (3 * y**2 + 1), rtol=1e-5)
