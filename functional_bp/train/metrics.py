"""Metrics by name: ``(predictions, y) -> values``, whose mean over the examples is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from functional_bp.errors import TrainingError, compose, describe
from functional_bp.train import losses


def accuracy(predictions: Any, y: Any) -> Any:
    """[ŷ = y], the prediction read by its shape beside the targets'.

    Scores ``f32[..., k]`` with integer labels ``i32[...]``: the class of the largest. Scores and
    one-hot targets of one shape with k > 1: the largest of each. Otherwise both are one number an
    example: a probability, and right means on the same side of ½.
    """
    y = jnp.asarray(y)
    scores = predictions.ndim and predictions.shape[-1] > 1
    if scores and y.ndim == predictions.ndim and y.shape[-1] == 1:
        y = y[..., 0]
    if scores and y.shape == predictions.shape[:-1]:
        return (jnp.argmax(predictions, axis=-1) == y).astype(jnp.float32)
    if scores and y.ndim > 1 and y.shape == predictions.shape:
        return (jnp.argmax(predictions, -1) == jnp.argmax(y, -1)).astype(jnp.float32)
    return binary_accuracy(predictions, y)


def binary_accuracy(probabilities: Any, y: Any, threshold: float = 0.5) -> Any:
    """[(p > ½) = y] for every number predicted."""
    y = jnp.asarray(y)
    if _without_column(probabilities) != _without_column(y):
        raise TrainingError(
            compose("accuracy does not know how to compare these",
                    got=f"predictions {describe(probabilities)}, targets {describe(y)}",
                    expected="scores f32[b,k] with labels i32[b] or one-hot f32[b,k], "
                    "or probabilities f32[b] with targets of 0 and 1")
        )  # fmt: skip
    return ((probabilities > threshold) == (y.reshape(probabilities.shape) > 0.5)).astype(
        jnp.float32
    )


def _without_column(x: Any) -> tuple[int, ...]:
    return x.shape[:-1] if x.shape[-1:] == (1,) else x.shape


METRICS: Mapping[str, Callable[..., Any]] = {
    "accuracy": accuracy,
    "acc": accuracy,
    "binary_accuracy": binary_accuracy,
    **losses.LOSSES,
}
