"""A training loop in thirty lines: handwritten digits, Adam, gradients by functional_bp.

Run: pip install 'functional-bp[demo]' && python examples/digits.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import functional_bp as bp

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train_x, test_x, train_y, test_y = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)


def scores(weights, x):
    """Two convolutions and a linear layer, f32[b,10]."""
    h = x.reshape(-1, 8, 8, 1)
    for kernel in weights["kernels"]:
        convolved = jax.lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.lax.reduce_window(
            jax.nn.relu(convolved), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    return h.reshape(len(h), -1) @ weights["out"]


def loss(weights, x, y):
    """Mean cross entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores(weights, x), y).mean()


def normal(key, *shape):
    """N(0, 2/n) for n inputs a unit."""
    return jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))


keys = jax.random.split(jax.random.key(0), 3)
weights = {
    "kernels": [normal(keys[0], 3, 3, 1, 16), normal(keys[1], 3, 3, 16, 32)],
    "out": normal(keys[2], 2 * 2 * 32, 10),
}
optimizer = optax.adam(4e-3)


@jax.jit
def step(weights, state, x, y):
    """One step of Adam."""
    value, weights_bar = bp.value_and_grad(loss)(weights, x, y)
    updates, state = optimizer.update(weights_bar, state)
    return optax.apply_updates(weights, updates), state, value


state, rng, value = optimizer.init(weights), np.random.default_rng(0), jnp.nan
for epoch in range(12):
    for batch in np.array_split(rng.permutation(len(train_x))[:1408], 22):
        weights, state, value = step(weights, state, train_x[batch], train_y[batch])
    print(f"epoch {epoch + 1:2d}  loss {value:.4f}")

accuracy = jnp.mean(jnp.argmax(scores(weights, test_x), axis=1) == test_y)
print(f"accuracy on {len(test_y)} held-out images: {accuracy:.1%}")
assert accuracy >= 0.97
