"""Losses and metrics by their formulas in NumPy; models with a loss; what is no objective."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_bp import train
from functional_bp.errors import TrainingError
from functional_bp.train import objective
from functional_bp.train.objective import CallContext, as_objective

RNG = np.random.default_rng(2)
SCORES = RNG.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 1, 2])
ONE_HOT = np.eye(3)[LABELS]
SOFT = RNG.dirichlet(np.ones(3), 5)
P, BITS = RNG.uniform(0.01, 0.99, size=5), np.array([0, 1, 1, 0, 1])
LOG_SOFTMAX = SCORES - np.log(np.exp(SCORES).sum(axis=1, keepdims=True))
CROSS = -LOG_SOFTMAX[np.arange(5), LABELS]
BINARY = -np.where(BITS == 1, np.log(P), np.log(1 - P))
CLIPPED = -np.log(1e-7)  # what a certain and wrong probability costs

# The formulas in double precision differ from NumPy's in a few roundings of 1e-16.
TOLERANCE: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-15}


@pytest.mark.parametrize(
    ("name", "predictions", "y", "expected"),
    [
        ("mean_squared_error", SCORES, ONE_HOT, ((SCORES - ONE_HOT) ** 2).mean(axis=1)),
        ("mse", P, BITS, (P - BITS) ** 2),
        ("mse", P[:, None], BITS, (P - BITS) ** 2),
        ("mse", P, BITS[:, None], (P - BITS) ** 2),
        ("mse", P[:, None], BITS[:, None], (P - BITS) ** 2),
        ("mse", P, BITS.astype(bool), (P - BITS) ** 2),
        ("mean_absolute_error", SCORES, ONE_HOT, np.abs(SCORES - ONE_HOT).mean(axis=1)),
        ("mae", P, BITS, np.abs(P - BITS)),
        ("cross_entropy", SCORES, LABELS, CROSS),
        ("sparse_categorical_crossentropy", SCORES, LABELS[:, None].astype(np.uint8), CROSS),
        ("cross_entropy", SCORES[None], LABELS[None], CROSS[None]),  # b sequences
        ("cross_entropy", 1e4 * np.eye(3)[:1], np.array([1]), [1e4]),  # exp would overflow
        ("categorical_cross_entropy", SCORES, ONE_HOT, CROSS),
        ("categorical_crossentropy", SCORES, SOFT, -(SOFT * LOG_SOFTMAX).sum(axis=1)),
        ("binary_cross_entropy", P, BITS, BINARY),
        ("binary_crossentropy", P[:, None], BITS, BINARY),
        ("binary_crossentropy", np.stack([P, 1 - P], 1), np.stack([BITS, 1 - BITS], 1), BINARY),
        ("binary_crossentropy", np.array([0.0, 1.0]), np.array([1, 0]), [CLIPPED, CLIPPED]),
        ("binary_cross_entropy_with_logits", np.log(P / (1 - P)), BITS, BINARY),
        ("binary_cross_entropy_with_logits", np.array([-1e4, 1e4]), np.array([1, 0]), [1e4, 1e4]),
    ],
)
def test_losses_by_their_formulas(name: str, predictions: Any, y: Any, expected: Any) -> None:
    found = train.LOSSES[name](jnp.asarray(predictions), y)
    rtol = 1e-8 if CLIPPED in expected else 1e-13  # 1 − (1 − 1e-7) loses nine digits
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-15)
    again = train.METRICS[name](jnp.asarray(predictions), y)
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("name", ["mse", "mae", "binary_crossentropy"])
def test_a_loss_has_the_dtype_of_the_predictions(name: str) -> None:
    assert train.LOSSES[name](jnp.float32(P), BITS.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize(
    ("predictions", "y", "expected"),
    [
        (SCORES, LABELS, SCORES.argmax(1) == LABELS),
        (SCORES, LABELS[:, None], SCORES.argmax(1) == LABELS),
        (SCORES, ONE_HOT, SCORES.argmax(1) == LABELS),
        (SCORES[None], LABELS[None], (SCORES.argmax(1) == LABELS)[None]),
        (P, BITS, (P > 0.5) == BITS),
        (P, BITS[:, None], (P > 0.5) == BITS),
        (P[:, None], BITS, ((P > 0.5) == BITS)[:, None]),
        (P, BITS.astype(float), (P > 0.5) == BITS),
    ],
)
def test_accuracy_is_read_by_the_shapes(predictions: Any, y: Any, expected: Any) -> None:
    found = train.METRICS["accuracy"](jnp.asarray(predictions), y)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("shape", "other"), [((2, 2), (4,)), ((2, 3), (3, 2)), ((4,), (3,))])
def test_accuracy_of_shapes_that_do_not_fit_is_refused(shape: Any, other: Any) -> None:
    with pytest.raises(TrainingError, match="accuracy does not know how to compare these"):
        objective.accuracy(jnp.zeros(shape), np.zeros(other))


@pytest.mark.parametrize(
    ("loss", "predictions", "y", "message"),
    [
        (objective.cross_entropy, SCORES, ONE_HOT, "scores of every class and integer labels"),
        (objective.cross_entropy, SCORES, LABELS.astype(float), r"labels f64\[5\]"),
        (objective.cross_entropy, SCORES, LABELS[:3], r"labels i64\[3\]"),
        (objective.categorical_cross_entropy, SCORES, LABELS, "differ in shape"),
        (objective.mean_squared_error, SCORES, SCORES[0], r"f64\[5,3\], targets f64\[3\]"),
        (objective.mean_absolute_error, P, P[:3], "predictions and targets differ in shape"),
        (objective.binary_cross_entropy, P, ONE_HOT, "predictions and targets differ in shape"),
        (objective.binary_cross_entropy_with_logits, P, P[:3], "differ in shape"),
    ],
)
def test_targets_of_another_shape_are_not_broadcast(
    loss: Any, predictions: Any, y: Any, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        loss(jnp.asarray(predictions), y)


def linear(params: Any, x: Any) -> Any:
    return x @ params


X, W = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 3))
LOGITS = X @ W
NLL = -(LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True)))[np.arange(5), LABELS]
WEIGHT = np.array([1.0, 0.0, 2.0, 3.0, 1.0])


def value(task: Any, *batch: Any) -> float:
    return float(task(W, batch))


def test_a_supervised_loss_is_the_weighted_sum_over_the_number_of_examples() -> None:
    task = train.supervised(linear, "cross_entropy")
    np.testing.assert_allclose(value(task, X, LABELS), NLL.mean(), **TOLERANCE)
    weighted = (WEIGHT * NLL).sum() / 5
    np.testing.assert_allclose(value(task, X, LABELS, WEIGHT), weighted, **TOLERANCE)
    twice = train.supervised(linear, lambda predictions, y: jnp.abs(predictions - y))
    expected = (WEIGHT[:, None] * np.abs(LOGITS - ONE_HOT)).mean()  # along the first axis
    np.testing.assert_allclose(value(twice, X, ONE_HOT, WEIGHT), expected, **TOLERANCE)


FACTORS = np.array([5.0, 1.0, 0.5])


@pytest.mark.parametrize("class_weight", [{0: 5.0, 2: 0.5}, FACTORS, [5, 1, 0.5]])
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("cross_entropy", LABELS),
        ("cross_entropy", LABELS[:, None]),
        ("categorical_cross_entropy", ONE_HOT),
        ("categorical_cross_entropy", ONE_HOT.astype(int)),
    ],
)
def test_a_class_weight_is_a_factor_of_its_examples(loss: str, y: Any, class_weight: Any) -> None:
    task = train.supervised(linear, loss, class_weight=class_weight)
    by_class = FACTORS[LABELS]
    np.testing.assert_allclose(value(task, X, y), (by_class * NLL).mean(), **TOLERANCE)
    expected = (by_class * WEIGHT * NLL).mean()
    np.testing.assert_allclose(value(task, X, y, WEIGHT), expected, **TOLERANCE)


def test_classes_without_a_factor_weigh_one() -> None:
    task = train.supervised(linear, "cross_entropy", class_weight={0: 5.0})
    expected = (np.where(LABELS == 0, 5.0, 1.0) * NLL).mean()
    np.testing.assert_allclose(value(task, X, LABELS), expected, **TOLERANCE)
    none = train.supervised(linear, "cross_entropy", class_weight={})
    np.testing.assert_allclose(value(none, X, LABELS), NLL.mean(), **TOLERANCE)


def test_class_weights_of_targets_that_are_numbers() -> None:
    task = train.supervised(lambda p, x: jax.nn.sigmoid(x @ p), "mse", class_weight=[1.0, 3.0])
    w, y = W[:, 0], BITS.astype(float)
    error = (1 / (1 + np.exp(-X @ w)) - y) ** 2
    found = float(task(w, (X, y)))
    np.testing.assert_allclose(found, (np.where(y == 1, 3, 1) * error).mean(), **TOLERANCE)


def test_metrics_are_unweighted_means_by_name() -> None:
    def margin(predictions: Any, y: Any) -> Any:
        return predictions.max(axis=1)

    as_list = train.supervised(linear, "cross_entropy", ["accuracy", margin])
    as_mapping = train.supervised(
        linear, "cross_entropy", {"accuracy": "acc", "margin": margin}, class_weight=FACTORS
    )
    for task in (as_list, as_mapping):
        output = as_objective(task)(W, (X, LABELS, WEIGHT), CallContext())
        expected = {
            "accuracy": (LOGITS.argmax(1) == LABELS).mean(),
            "margin": LOGITS.max(axis=1).mean(),
        }
        assert output.metrics.keys() == expected.keys()
        for name, number in expected.items():  # accuracies are single precision
            np.testing.assert_allclose(output.metrics[name], number, rtol=1e-7)
        assert float(output.weight) == 5
    assert list(train.supervised(linear, "mse", "mae").metrics) == ["mae"]


def test_a_model_is_given_what_it_names() -> None:
    def model(params: Any, x: Any, *, rng: Any, training: bool, model_state: Any) -> Any:
        drawn = jax.random.normal(rng) if training else 0.0
        return x @ params + drawn, model_state + 1

    task = train.supervised(model, "mse")
    state = train.init(W, optax.sgd(0.0), model_state=0, seed=4)
    state, logs = train.step(task, optax.sgd(0.0))(state, (X, ONE_HOT))
    draw = float(jax.random.normal(jax.random.fold_in(jax.random.key(4), 0)))
    expected = ((LOGITS + draw - ONE_HOT) ** 2).mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-12)
    assert int(state.model_state) == 1
    np.testing.assert_allclose(task.predict(W, X, 7), LOGITS, **TOLERANCE)
    keywords = {"rng": jax.random.fold_in(jax.random.key(4), 0), "training": True, "model_state": 0}
    np.testing.assert_allclose(task(W, (X, ONE_HOT), **keywords), expected, rtol=1e-12)


def test_functions_without_a_signature_and_partial_ones_are_objectives() -> None:
    def penalised(params: Any, batch: Any, strength: float) -> Any:
        return jnp.sum(params * batch) + strength

    output = as_objective(functools.partial(penalised, strength=2.0))(
        3.0, jnp.ones(4), CallContext()
    )
    assert (float(output.loss), float(output.weight)) == (14.0, 4.0)
    assert float(as_objective(max)(3.0, 4.0, CallContext()).loss) == 4.0


def test_what_a_loss_returns_is_read_in_three_forms() -> None:
    for value, expected in [
        (jnp.float32(2), (2, {}, 3)),
        ((jnp.float32(2), {"m": 1}), (2, {"m": 1}, 3)),
        (train.Output(2.0, {"m": True}, None, 10), (2, {"m": 1}, 10)),
        (jnp.bfloat16(2), (2, {}, 3)),
    ]:
        output = as_objective(lambda p, b, value=value: value)(W, jnp.ones((3, 2)), CallContext())
        objective = {name: float(x) for name, x in output.metrics.items()}
        assert (float(output.loss), objective, float(output.weight)) == expected
        assert all(x.dtype == np.float32 for x in [*output.metrics.values()])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.ones(3), r"the loss is not one real number\n  got:      f64\[3\]"),
        (jnp.complex64(1), r"the loss is not one real number\n  got:      c64\[\]"),
        (None, "the loss is not one real number\n  got:      NoneType"),
        ((1.0, 2.0), "the loss is not one real number\n  got:      tuple"),
        ("loss", "the loss is not one real number\n  got:      str"),
        (jnp.int32(3), r"the loss has no gradient\n  got:      i32\[\]"),
        (True, "the loss has no gradient\n  got:      bool True"),
        ((1.0, {"m": jnp.ones(2)}), r"metric 'm' is not one real number\n  got:      f64\[2\]"),
        ((1.0, {"m": 1j}), "metric 'm' is not one real number\n  got:      complex 1j"),
        ((1.0, {"loss": 2.0}), "a metric has the name of another number in the logs"),
        ((1.0, {"grad_norm": 2.0}), "got:      'grad_norm'"),
    ],
)
def test_what_is_no_loss_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        as_objective(lambda params, batch: value)(W, X, CallContext())


def same(predictions: Any, y: Any) -> Any:
    return predictions


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mze",), {}, "no loss has this name\n  got:      'mze'\n  expected: one of binary_"),
        ((["mse"],), {}, r"no loss has this name\n  got:      \['mse'\]"),
        (("mse", ["acuracy"]), {}, "no metric has this name\n  got:      'acuracy'"),
        (("mse", {"a": None}), {}, "no metric has this name\n  got:      None"),
        (("mse", ["mae", "mae"]), {}, "two metrics have one name\n  got:      'mae'"),
        (("mse", [same, same]), {}, "two metrics have one name\n  got:      'same'"),
        (("mse",), {"class_weight": {"cat": 2.0}}, r"got:      labels \['cat'\]"),
        (("mse",), {"class_weight": {-1: 2.0}}, r"got:      labels \[-1\]"),
        (("mse",), {"class_weight": np.ones((2, 2))}, r"no factor for every class\n.*f64\[2,2\]"),
        (("mse",), {"class_weight": "balanced"}, "class weights are no factor for every class"),
    ],
)
def test_names_that_are_not_known_are_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train.supervised(linear, *arguments, **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"a supervised batch has inputs and targets\n  got:      f64\[5,3\]"),
        ({"x": X, "y": LABELS}, "a supervised batch has inputs and targets\n  got:      dict"),
        ((X,), "got:      1 entries"),
        ((X, LABELS, WEIGHT, WEIGHT), "got:      4 entries"),
        ((X, LABELS, WEIGHT[:3]), r"sample weights do not fit .*\n  got:      f64\[3\]"),
        ((X, LABELS, np.ones((5, 3))), r"sample weights .*f64\[5,3\]\n  expected: .* f64\[5\]"),
    ],
)
def test_a_batch_that_is_none_of_examples_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message.replace(".*f64", "[^$]*f64")):
        train.supervised(linear, "cross_entropy")(W, batch)


def test_a_model_that_keeps_its_state_to_itself_is_refused() -> None:
    task = train.supervised(lambda params, x, model_state: x @ params, "cross_entropy")
    with pytest.raises(TrainingError, match="a model that takes model_state must give it back"):
        task(W, (X, LABELS), model_state=0)


def test_a_loss_that_is_no_function_is_refused() -> None:
    with pytest.raises(TrainingError, match="a loss must be a function of params and batch"):
        train.step("mse", optax.sgd(0.1))  # pyright: ignore[reportArgumentType]
