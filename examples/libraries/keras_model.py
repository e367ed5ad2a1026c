"""A Keras 3 model on the JAX backend, trained by ``train.fit`` through its stateless call.

Run: pip install 'functional-bp[demo]' keras && python examples/libraries/keras_model.py
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras  # noqa: E402  (reads KERAS_BACKEND)
import numpy as np  # noqa: E402
import optax  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from functional_bp import train  # noqa: E402

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.layers.Input([64]),
        keras.layers.Dense(64),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("relu"),
        keras.layers.Dense(10),
    ]
)


def model(params, x, *, model_state, training):
    """The network as a function of its trainable and its other variables."""
    return network.stateless_call(params, model_state, x, training=training)


state, history = train.fit(
    train.supervised(model, "cross_entropy", ["accuracy"]),
    [variable.value for variable in network.trainable_variables],
    images[:1400],
    labels[:1400],
    model_state=[variable.value for variable in network.non_trainable_variables],
    optimizer=optax.adam(3e-3),
    epochs=15,
    batch_size=50,
    validation_data=(images[1400:], labels[1400:]),
)
for variable, value in zip(network.trainable_variables, state.params):
    variable.assign(value)  # the Keras model holds the trained weights again
for variable, value in zip(network.non_trainable_variables, state.model_state):
    variable.assign(value)
accuracy = np.mean(np.argmax(network(images[1400:]), axis=1) == labels[1400:])
assert accuracy > 0.9
