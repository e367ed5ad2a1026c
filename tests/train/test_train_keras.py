"""Losses, metrics and steps by Keras' names give Keras' numbers; run with ``-m libraries``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_bp import train
from functional_bp.train.objective import CallContext, as_objective

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("keras")]

RNG = np.random.default_rng(5)
X = RNG.normal(size=(12, 4)).astype(np.float32)
WEIGHT = RNG.uniform(0, 2, 12).astype(np.float32)
LABELS = RNG.integers(0, 3, 12)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
SCORES = RNG.normal(size=(12, 3)).astype(np.float32)
BITS = RNG.integers(0, 2, (12, 1)).astype(np.float32)
PROBABILITIES = RNG.uniform(size=(12, 1)).astype(np.float32)
CERTAIN = np.where(np.arange(12)[:, None] % 2, 1.0, 0.0).astype(np.float32)
WORDS = RNG.normal(size=(12, 5, 3)).astype(np.float32)
WORD_LABELS = RNG.integers(0, 3, (12, 5))

# Single precision on both sides, in another order: some roundings of 6e-8.
TOLERANCE: dict[str, Any] = {"rtol": 2e-6, "atol": 1e-7}


def outputs(predictions: Any, batch: Any, loss: str, metrics: Any = ()) -> Any:
    task = train.supervised(lambda params, x: jnp.asarray(params), loss, metrics)
    return as_objective(task)(predictions, batch, CallContext())


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("name", "keras_name", "options", "predictions", "y"),
    [
        ("mse", "MeanSquaredError", {}, SCORES, ONE_HOT),
        ("mse", "MeanSquaredError", {}, PROBABILITIES, BITS),
        ("mean_absolute_error", "MeanAbsoluteError", {}, SCORES, ONE_HOT),
        ("mae", "MeanAbsoluteError", {}, WORDS, WORDS[::-1]),
        ("binary_crossentropy", "BinaryCrossentropy", {}, PROBABILITIES, BITS),
        ("binary_crossentropy", "BinaryCrossentropy", {}, CERTAIN, BITS),
        ("binary_cross_entropy_with_logits", "BinaryCrossentropy", {"from_logits": True},
         SCORES, ONE_HOT),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy",
         {"from_logits": True}, SCORES, LABELS),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy",
         {"from_logits": True}, SCORES, LABELS[:, None]),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy",
         {"from_logits": True}, WORDS, WORD_LABELS),
        ("categorical_crossentropy", "CategoricalCrossentropy", {"from_logits": True},
         SCORES, ONE_HOT),
    ],
)  # fmt: skip
def test_a_loss_is_keras(
    keras: Any, name: str, keras_name: str, options: Any, predictions: Any, y: Any, weight: Any
) -> None:
    # Keras lays weights [b] along the last axis of values [b, t]; ours go along the first.
    column = weight[:, None] if weight is not None and predictions.ndim == 3 else weight
    expected = getattr(keras.losses, keras_name)(**options)(y, predictions, sample_weight=column)
    batch = (X, y) if weight is None else (X, y, weight)
    np.testing.assert_allclose(outputs(predictions, batch, name).loss, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "keras_name", "predictions", "y"),
    [
        ("accuracy", "SparseCategoricalAccuracy", SCORES, LABELS),
        ("accuracy", "SparseCategoricalAccuracy", SCORES, LABELS[:, None]),
        ("accuracy", "SparseCategoricalAccuracy", WORDS, WORD_LABELS),
        ("accuracy", "CategoricalAccuracy", SCORES, ONE_HOT),
        ("accuracy", "BinaryAccuracy", PROBABILITIES, BITS),
        ("binary_accuracy", "BinaryAccuracy", SCORES, ONE_HOT),
        ("mse", "MeanSquaredError", SCORES, ONE_HOT),
        ("mae", "MeanAbsoluteError", SCORES, ONE_HOT),
        ("binary_crossentropy", "BinaryCrossentropy", PROBABILITIES, BITS),
    ],
)
def test_a_metric_is_keras(
    keras: Any, name: str, keras_name: str, predictions: Any, y: Any
) -> None:
    metric = getattr(keras.metrics, keras_name)()
    metric.update_state(y, predictions)
    found = outputs(predictions, (X, y), "mse" if y.shape == predictions.shape else
                    "cross_entropy", [name]).metrics[name]  # fmt: skip
    np.testing.assert_allclose(found, metric.result(), **TOLERANCE)


CASES = {
    "plain": {},
    "sample_weight": {"sample_weight": WEIGHT},
    "class_weight": {"class_weight": {0: 3.0, 2: 0.5}},
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_a_keras_model(keras: Any, case: str) -> None:
    """Three batches of momentum: the losses before them and the weights after."""
    options = CASES[case]
    layer = keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((4,)), layer])
    kernel, bias = (np.array(variable.value) for variable in layer.weights)
    error = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), error)

    task = train.supervised(
        lambda p, x: x @ p["kernel"] + p["bias"], "sparse_categorical_crossentropy",
        class_weight=options.get("class_weight"),
    )  # fmt: skip
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = train.init({"kernel": kernel, "bias": bias}, optimizer)
    step = train.step(task, optimizer)
    weight = options.get("sample_weight")
    batch = (X, LABELS) if weight is None else (X, LABELS, weight)
    for _ in range(3):
        state, logs = step(state, batch)
        history = model.fit(X, LABELS, batch_size=12, shuffle=False, verbose=0, **options).history
        np.testing.assert_allclose(logs["loss"], history["loss"][0], **TOLERANCE)
    found = jax.device_get((state.params["kernel"], state.params["bias"]))
    for ours, theirs in zip(found, layer.weights, strict=True):
        np.testing.assert_allclose(ours, theirs.value, rtol=2e-6, atol=1e-6)
