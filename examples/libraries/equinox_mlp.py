"""An Equinox module, trained by ``train.fit``: its arrays are the parameters.

Run: pip install 'functional-bp[demo]' equinox && python examples/libraries/equinox_mlp.py
"""

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from functional_bp import train

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)

network = eqx.nn.MLP(64, 10, width_size=64, depth=1, key=jax.random.key(0))
params, static = eqx.partition(network, eqx.is_inexact_array)


def model(params, x):
    """The module's value for every image of a batch."""
    return jax.vmap(eqx.combine(params, static))(x)


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
trained = eqx.combine(state.params, static)  # a module again
accuracy = np.mean(np.argmax(jax.vmap(trained)(images[1400:]), axis=1) == labels[1400:])
assert accuracy > 0.9
