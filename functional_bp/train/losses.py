"""Losses by name: ``(predictions, y) -> values``, one for every example or position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from functional_bp.errors import TrainingError, compose, describe

SMALLEST_PROBABILITY = 1e-7  # Keras' epsilon: ln 0 is not taken


def mean_squared_error(predictions: Any, y: Any) -> Any:
    """The mean of (ŷ − y)² over the last axis; over none if there is one axis only."""
    return _over_features(jnp.square(_difference(predictions, y)))


def mean_absolute_error(predictions: Any, y: Any) -> Any:
    """The mean of |ŷ − y| over the last axis; over none if there is one axis only."""
    return _over_features(jnp.abs(_difference(predictions, y)))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """−ln softmax(logits)_y of logits ``f32[..., k]`` and integer labels ``i32[...]``, in nats."""
    labels = jnp.asarray(labels)
    if labels.ndim == logits.ndim and labels.shape[-1] == 1:  # a column of labels, as in Keras
        labels = labels[..., 0]
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TrainingError(
            compose("cross entropy takes scores of every class and integer labels",
                    got=f"logits {describe(logits)}, labels {describe(labels)}",
                    expected="logits f32[b,k] and labels i32[b]",
                    do="'categorical_cross_entropy' takes one-hot labels")
        )  # fmt: skip
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def categorical_cross_entropy(logits: Any, probabilities: Any) -> Any:
    """−Σ_k p_k ln softmax(logits)_k of logits and probabilities ``f32[..., k]``, in nats."""
    _same_shape(logits, probabilities)
    return -jnp.sum(probabilities * jax.nn.log_softmax(logits), axis=-1)


def binary_cross_entropy(probabilities: Any, y: Any) -> Any:
    """−y ln p − (1 − y) ln(1 − p), p clipped to [ε, 1 − ε], ε = 1e-7; mean over the last axis.

    Of probabilities, as a sigmoid layer gives; ``binary_cross_entropy_with_logits`` is more
    accurate where the layer can be left out.
    """
    probabilities, y = _pair(probabilities, y)
    p = jnp.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return _over_features(-y * jnp.log(p) - (1 - y) * jnp.log(1 - p))


def binary_cross_entropy_with_logits(logits: Any, y: Any) -> Any:
    """−y ln σ(o) − (1 − y) ln(1 − σ(o)), the mean over the last axis."""
    logits, y = _pair(logits, y)
    return _over_features(-y * jax.nn.log_sigmoid(logits) - (1 - y) * jax.nn.log_sigmoid(-logits))


def _over_features(values: Any) -> Any:
    return jnp.mean(values, axis=-1) if values.ndim > 1 else values


def _difference(predictions: Any, y: Any) -> Any:
    predictions, y = _pair(predictions, y)
    return predictions - y


def _pair(predictions: Any, y: Any) -> tuple[Any, Any]:
    """Both in the predictions' dtype; ``[b, 1]`` beside ``[b]`` is read as ``[b]``."""
    y = jnp.asarray(y).astype(predictions.dtype)
    if predictions.ndim == y.ndim + 1 and predictions.shape[-1] == 1:
        predictions = predictions[..., 0]
    elif y.ndim == predictions.ndim + 1 and y.shape[-1] == 1:
        y = y[..., 0]
    _same_shape(predictions, y)
    return predictions, y


def _same_shape(predictions: Any, y: Any) -> None:
    if predictions.shape != jnp.shape(y):  # broadcasting would hide the mistake
        raise TrainingError(
            compose("predictions and targets differ in shape",
                    got=f"predictions {describe(predictions)}, targets {describe(y)}",
                    expected="one shape for both")
        )  # fmt: skip


LOSSES: Mapping[str, Callable[..., Any]] = {
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "mae": mean_absolute_error,
    "cross_entropy": cross_entropy,
    "sparse_categorical_crossentropy": cross_entropy,
    "categorical_cross_entropy": categorical_cross_entropy,
    "categorical_crossentropy": categorical_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_crossentropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
}
