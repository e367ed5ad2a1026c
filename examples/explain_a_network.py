"""See what goes on in a network: every value and gradient, a picture, and where a NaN comes from.

Run: python examples/explain_a_network.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import functional_bp as bp


def loss(W1, W2, x, y):
    z = bp.name(W1 @ x, "z")
    h = bp.name(jnp.tanh(z), "h")
    o = bp.name(W2 @ h, "o")
    return jnp.sum((o - y) ** 2) / 2


keys = jax.random.split(jax.random.key(0), 4)
W1, W2 = jax.random.normal(keys[0], (4, 3)), jax.random.normal(keys[1], (2, 4))
x, y = jax.random.normal(keys[2], (3,)), jax.random.normal(keys[3], (2,))

# 1. Both sweeps, step by step, in the terminal.

explanation = bp.explain(loss, W1, W2, x, y)
print(explanation)
o_bar = explanation.value["o"] - y  # on paper
h_bar = W2.T @ o_bar
z_bar = h_bar * (1 - explanation.value["h"] ** 2)
on_paper = {"o": o_bar, "h": h_bar, "z": z_bar, "W1": jnp.outer(z_bar, x)}

# 2. The same as a picture and as a page in which every node can be asked.

with tempfile.TemporaryDirectory() as folder:
    for file in ("network.svg", "network.html"):
        explanation.save(Path(folder) / file, style="d2l")
    sizes = [file.stat().st_size for file in Path(folder).iterdir()]
    print(f"a picture and a page, {sum(sizes) // 1024} KiB")

# 3. The gradient at a value inside the function, alone and compiled.

h_bar_alone = jax.jit(bp.cotangents(loss, ["h"]))(W1, W2, x, y)["h"]

# 4. A NaN that the loss does not show: √ is masked at 0, its derivative is not.


def masked(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


found = bp.explain(masked, jnp.array([4.0, 0.0])).first_nonfinite()
print(found)

for name, expected in on_paper.items():
    assert jnp.allclose(explanation.cotangent[name], expected, rtol=1e-4, atol=1e-6), name
assert len(sizes) == 2 and jnp.allclose(h_bar_alone, h_bar, rtol=1e-4, atol=1e-6)
assert found is not None and found.operation == "sqrt"
