"""The network with two inputs, three hidden units and one output, by SGD and by Adam.

Forward, with σ the logistic function::

    z = W1 x + b1     h = σ(z)     o = W2 h + b2     p = σ(o)

It learns which points of a square lie near its diagonal: a first time with plain gradient descent
on the mean squared error, a second time with Adam on the binary cross entropy.

Run: python examples/two_three_one.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functional_bp import train

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, size=(400, 2)).astype(np.float32)
y = (np.abs(x[:, 0] - x[:, 1]) < 0.5).astype(np.float32)
params = {
    "W1": rng.normal(size=(2, 3)).astype(np.float32),
    "b1": np.zeros(3, np.float32),
    "W2": rng.normal(size=(3, 1)).astype(np.float32),
    "b2": np.zeros(1, np.float32),
}


def model(params, x):
    """p, the probability that a point lies near the diagonal: f32[b]."""
    h = jax.nn.sigmoid(x @ params["W1"] + params["b1"])
    return jax.nn.sigmoid(h @ params["W2"] + params["b2"])[:, 0]


state, squares = train.fit(
    train.supervised(model, "mean_squared_error"), params, x, y,
    optimizer=optax.sgd(2.0), epochs=50, batch_size=20,
)  # fmt: skip
state, entropies = train.fit(
    train.supervised(model, "binary_cross_entropy", ["accuracy"]), params, x, y,
    optimizer=optax.adam(0.1), epochs=50, batch_size=20,
)  # fmt: skip
print(f"mean squared error by SGD: {squares['loss'][0]:.4f} to {squares['loss'][-1]:.4f}")
print(f"cross entropy by Adam:     {entropies['loss'][0]:.4f} to {entropies['loss'][-1]:.4f} nats")
print(f"accuracy by Adam:          {entropies['accuracy'][-1]:.1%}")

probability = train.predict(model, state, x)
assert jnp.mean((probability > 0.5) == (y > 0.5)) > 0.95
