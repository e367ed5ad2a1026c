"""A network with one hidden layer and weight decay, and its gradients by hand.

Forward, for one image x ∈ ℝ^64 with label y, φ = relu and weight decay λ::

    z = W1 x     h = φ(z)     o = W2 h
    L = cross entropy(o, y) = log Σᵢ exp(oᵢ) − o_y
    s = λ/2 (‖W1‖²_F + ‖W2‖²_F)
    J = L + s

Backward, from J to the weights (the chain rule, applied from the output to the input)::

    ∂J/∂L = 1                  ∂J/∂s = 1
    ∂J/∂o = softmax(o) − e_y
    ∂J/∂W2 = ∂J/∂o hᵀ + λ W2
    ∂J/∂h = W2ᵀ ∂J/∂o
    ∂J/∂z = ∂J/∂h ⊙ φ'(z)
    ∂J/∂W1 = ∂J/∂z xᵀ + λ W1

Over a batch, L is the mean of the images' losses, so ∂J/∂o carries a factor 1/b.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

PIXELS, CLASSES = 64, 10


class Weights(NamedTuple):
    """``W1: f32[d,64]`` and ``W2: f32[10,d]``, with d hidden units."""

    W1: Array
    W2: Array


def initial_weights(seed: int, width: int) -> Weights:
    """Draw from N(0, 2/n) and N(0, 1/n), n inputs a unit: z and o keep the scale of x."""
    first, second = jax.random.split(jax.random.key(seed))
    return Weights(
        W1=jax.random.normal(first, (width, PIXELS)) * (2 / PIXELS) ** 0.5,
        W2=jax.random.normal(second, (CLASSES, width)) * (1 / width) ** 0.5,
    )


def scores(weights: Weights, images: Array) -> Array:
    """o = W2 φ(W1 x) for every image, ``f32[b,10]``."""
    return jax.nn.relu(images @ weights.W1.T) @ weights.W2.T


def loss(weights: Weights, batch: Any) -> Array:
    """L, the mean cross entropy of a batch, in nats."""
    images, labels = batch
    log_probabilities = jax.nn.log_softmax(scores(weights, images))
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def objective(weights: Weights, batch: Any, weight_decay: float) -> Array:
    """J = L + λ/2 (‖W1‖²_F + ‖W2‖²_F)."""
    squares = jnp.sum(weights.W1**2) + jnp.sum(weights.W2**2)
    return loss(weights, batch) + weight_decay / 2 * squares


def hand_gradients(weights: Weights, batch: Any, weight_decay: float) -> Weights:
    """∂J/∂W1 and ∂J/∂W2 by the equations above, without automatic differentiation."""
    images, labels = batch
    z = images @ weights.W1.T
    h = jax.nn.relu(z)
    o = h @ weights.W2.T
    o_bar = (jax.nn.softmax(o) - jax.nn.one_hot(labels, CLASSES)) / len(images)
    h_bar = o_bar @ weights.W2
    z_bar = h_bar * (z > 0)
    return Weights(
        W1=z_bar.T @ images + weight_decay * weights.W1,
        W2=o_bar.T @ h + weight_decay * weights.W2,
    )


def accuracy(weights: Weights, batch: Any) -> Array:
    """The share of images whose label has the largest score."""
    images, labels = batch
    return jnp.mean(jnp.argmax(scores(weights, images), axis=1) == labels)
