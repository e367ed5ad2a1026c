"""A Flax linen network with batch normalisation and dropout, trained by ``train.fit``.

Run: pip install 'functional-bp[demo]' flax && python examples/libraries/flax_linen.py
"""

import jax
import numpy as np
import optax
from flax import linen
from sklearn.datasets import load_digits

from functional_bp import train

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)


class Network(linen.Module):
    """Two dense layers, with batch normalisation and dropout between them."""

    @linen.compact
    def __call__(self, x, training):
        """Scores of the ten digits."""
        h = linen.Dense(64)(x)
        h = linen.BatchNorm(use_running_average=not training)(h)
        h = linen.Dropout(0.2, deterministic=not training)(linen.relu(h))
        return linen.Dense(10)(h)


network = Network()
first = network.init(jax.random.key(0), images[:1], training=False)


def model(params, x, *, rng, model_state, training):
    """The module as a function of its parameters and its running statistics."""
    variables = {"params": params, "batch_stats": model_state}
    if not training:
        return network.apply(variables, x, training=False), model_state
    scores, after = network.apply(
        variables, x, training=True, rngs={"dropout": rng}, mutable=["batch_stats"]
    )
    return scores, after["batch_stats"]


state, history = train.fit(
    train.supervised(model, "cross_entropy", ["accuracy"]),
    first["params"],
    images[:1400],
    labels[:1400],
    model_state=first["batch_stats"],
    optimizer=optax.adam(3e-3),
    epochs=15,
    batch_size=50,
    validation_data=(images[1400:], labels[1400:]),
)
assert history["val_accuracy"][-1] > 0.9
