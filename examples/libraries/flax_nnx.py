"""A Flax NNX network, trained by ``train.fit`` as a function of its parameters.

Run: pip install 'functional-bp[demo]' flax && python examples/libraries/flax_nnx.py
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from functional_bp import train

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)


class Network(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """Scores of the ten digits."""
        return self.out(nnx.relu(self.hidden(x)))


graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)


def model(params, x):
    """The module's value, its parameters an argument."""
    return nnx.merge(graph, params, rest)(x)


state, history = train.fit(
    train.supervised(model, "cross_entropy", ["accuracy"]),
    params,
    images[:1400],
    labels[:1400],
    optimizer=optax.adam(3e-3),
    epochs=15,
    batch_size=50,
    validation_data=(images[1400:], labels[1400:]),
)
trained = nnx.merge(graph, state.params, rest)  # a module again
accuracy = np.mean(np.argmax(trained(images[1400:]), axis=1) == labels[1400:])
assert accuracy > 0.9
