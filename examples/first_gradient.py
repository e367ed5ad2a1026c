"""A first gradient: change two letters, and read what was differentiated.

Run: python examples/first_gradient.py
"""

import jax
import jax.numpy as jnp

import functional_bp as bp


def loss(weights, x, y):
    """Mean squared error of a network with one hidden layer."""
    h = bp.name(jnp.tanh(x @ weights["hidden"]), "h")
    return jnp.mean((h @ weights["out"] - y) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
weights = {
    "hidden": jax.random.normal(keys[0], (3, 5)),
    "out": jax.random.normal(keys[1], (5, 2)),
}
x, y = jax.random.normal(keys[2], (4, 3)), jax.random.normal(keys[3], (4, 2))

# The graph: operations with the rule that stands for each, and the lines above that made them.
print(bp.trace(loss, weights, x, y), "\n")

# The gradient: a pytree like the weights. It works inside jit, vmap, scan and shard_map.
value, weights_bar = jax.jit(bp.value_and_grad(loss))(weights, x, y)
print(f"loss {value:.4f}, ‖∂loss/∂out‖ = {jnp.linalg.norm(weights_bar['out']):.4f}\n")

# A rule is a value that can be looked at: its signature says what is kept, `why` how it came about.
rule = bp.rules[jax.lax.tanh_p]
print(f"tanh keeps {rule.pullbacks['x'].keeps}, because {rule.why}")

witness = jax.grad(loss)(weights, x, y)
jax.tree.map(lambda ours, theirs: print("apart by", jnp.max(jnp.abs(ours - theirs))),
             weights_bar, witness)  # fmt: skip
assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-5), weights_bar, witness))
