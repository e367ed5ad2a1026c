"""An objective is what is minimised: a function of parameters and a batch, or model and loss.

Any function ``loss(params, batch)`` is an objective. It is given ``rng``, ``model_state`` and
``training`` if it has keyword arguments of these names, and returns the loss, the loss and a
dictionary of metrics, or an ``Output``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functional_bp.errors import TrainingError, describe

# Losses: ``(predictions, y) -> values``, one for every example or position.

SMALLEST_PROBABILITY = 1e-7  # Keras' epsilon: ln 0 is not taken


def mean_squared_error(predictions: Any, y: Any) -> Any:
    """ℓ = mean (ŷ − y)² is taken over the last axis; over none if there is one axis only."""
    predictions, y = _pair(predictions, y)
    return _over_features(jnp.square(predictions - y))


def mean_absolute_error(predictions: Any, y: Any) -> Any:
    """ℓ = mean |ŷ − y| is taken over the last axis; over none if there is one axis only."""
    predictions, y = _pair(predictions, y)
    return _over_features(jnp.abs(predictions - y))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """ℓ = −ln softmax(logits)_y, of ``f32[..., k]`` and integer labels ``i32[...]``, in nats."""
    labels = jnp.asarray(labels)
    if labels.ndim == logits.ndim and labels.shape[-1] == 1:  # a column of labels, as in Keras
        labels = labels[..., 0]
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TrainingError("cross entropy takes scores of every class and integer labels",
                            got=f"logits {describe(logits)}, labels {describe(labels)}",
                            expected="logits f32[b,k] and labels i32[b]",
                            do="'categorical_cross_entropy' takes one-hot labels")  # fmt: skip
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def categorical_cross_entropy(logits: Any, probabilities: Any) -> Any:
    """ℓ = −Σ_k p_k ln softmax(logits)_k, of logits and probabilities ``f32[..., k]``, in nats."""
    _same_shape(logits, probabilities)
    return -jnp.sum(probabilities * jax.nn.log_softmax(logits), axis=-1)


def binary_cross_entropy(probabilities: Any, y: Any) -> Any:
    """ℓ = mean −y ln p − (1 − y) ln(1 − p) over the last axis, p clipped to [ε, 1 − ε], ε = 1e-7.

    It takes probabilities, as a sigmoid layer gives them; ``binary_cross_entropy_with_logits`` is
    more accurate where the layer can be left out.
    """
    probabilities, y = _pair(probabilities, y)
    p = jnp.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return _over_features(-y * jnp.log(p) - (1 - y) * jnp.log(1 - p))


def binary_cross_entropy_with_logits(logits: Any, y: Any) -> Any:
    """ℓ = mean −y ln σ(o) − (1 − y) ln(1 − σ(o)) is taken over the last axis."""
    logits, y = _pair(logits, y)
    return _over_features(-y * jax.nn.log_sigmoid(logits) - (1 - y) * jax.nn.log_sigmoid(-logits))


def _over_features(values: Any) -> Any:
    return jnp.mean(values, axis=-1) if values.ndim > 1 else values


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
        raise TrainingError("predictions and targets differ in shape",
                            got=f"predictions {describe(predictions)}, targets {describe(y)}",
                            expected="one shape for both")  # fmt: skip


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


# Metrics: ``(predictions, y) -> values``, whose mean over the examples is reported.


def accuracy(predictions: Any, y: Any) -> Any:
    """A = [ŷ = y], where a prediction is read by its shape beside the targets'.

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
    """A = [(p > ½) = y] is taken for every number predicted."""
    y = jnp.asarray(y)
    if _without_column(probabilities) != _without_column(y):
        raise TrainingError("accuracy does not know how to compare these",
                            got=f"predictions {describe(probabilities)}, targets {describe(y)}",
                            expected="scores f32[b,k] with labels i32[b] or one-hot f32[b,k], "
                            "or probabilities f32[b] with targets of 0 and 1")  # fmt: skip
    return ((probabilities > threshold) == (y.reshape(probabilities.shape) > 0.5)).astype(
        jnp.float32
    )


def _without_column(x: Any) -> tuple[int, ...]:
    return x.shape[:-1] if x.shape[-1:] == (1,) else x.shape


METRICS: Mapping[str, Callable[..., Any]] = {
    "accuracy": accuracy,
    "acc": accuracy,
    "binary_accuracy": binary_accuracy,
    **LOSSES,
}


KEYWORDS = ("rng", "model_state", "training")
RESERVED = ("loss", "grad_norm", "nonfinite")  # names in the logs of a step


class Output(NamedTuple):
    """An objective returns this.

    Attributes:
        loss: what is minimised, a scalar.
        metrics: further scalars, by name.
        model_state: what the model keeps beside its parameters, after this batch.
        weight: how many examples the loss and the metrics are means of; by default the length of
            the batch's first axis. The mean over an epoch weighs batches by it.
    """

    loss: Any
    metrics: Mapping[str, Any] = {}
    model_state: Any = None
    weight: Any = None


class CallContext(NamedTuple):
    """An objective may ask for this beside parameters and batch."""

    rng: Any = None
    model_state: Any = None
    training: bool = False
    cast: Callable[[Any], Any] = lambda tree: tree  # to the dtype of the computation

    def keywords_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The function is given those of rng, model_state and training that it names."""
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin
            return {}
        return {name: getattr(self, name) for name in KEYWORDS if name in parameters}


Objective = Callable[[Any, Any, CallContext], Output]


def as_objective(loss: Callable[..., Any]) -> Objective:
    """The function gets the one form that steps call: ``(params, batch, context) -> Output``.

    Raises:
        TrainingError: when called, if the loss is no real scalar, or a metric is none or has a
            name that a step uses itself.
    """
    if not callable(loss):
        raise TrainingError(
            "a loss must be a function of params and batch", got=describe(loss),
            expected="loss(params, batch), or train.supervised(model, loss)"
        )  # fmt: skip

    model = loss.model if isinstance(loss, Supervised) else loss

    def objective(params: Any, batch: Any, context: CallContext) -> Output:
        keywords = context.keywords_of(model)
        if isinstance(loss, Supervised):
            output = loss.output(params, batch, context)
        else:
            output = _output(loss(context.cast(params), context.cast(batch), **keywords))
        known = output.weight is None  # a NumPy number, which nobody takes for the loss's own
        weight = np.float32(batch_length(batch)) if known else jnp.float32(output.weight)
        return Output(
            _loss(output.loss),
            {str(k): _metric(str(k), v) for k, v in output.metrics.items()},
            output.model_state if "model_state" in keywords else context.model_state,
            weight,
        )

    return objective


def batch_length(batch: Any) -> int:
    """A batch is as long as its first array's first axis; 1 where there is none."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return next((shape[0] for shape in shapes if shape), 1)


def _output(value: Any) -> Output:
    if isinstance(value, Output):
        return value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return Output(*value)
    return Output(value)


def _loss(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if isinstance(value, int) or (dtype is not None and dtype.kind in "biu"):
        raise TrainingError(
            "the loss has no gradient", got=describe(value), expected="f32[]",
            do="a count is a metric; minimise a smooth function, as a cross entropy"
        )  # fmt: skip
    return _real_scalar("the loss", value)


def _metric(name: str, value: Any) -> Any:
    if name in RESERVED:
        raise TrainingError("a metric has the name of another number in the logs", got=repr(name),
                            expected="another name than " + ", ".join(RESERVED))  # fmt: skip
    return _real_scalar(f"metric {name!r}", value)


def _real_scalar(what: str, value: Any) -> Any:
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    is_number = dtype is not None or isinstance(value, bool | int | float)
    if not is_number or shape != () or (dtype is not None and dtype.kind == "c"):
        raise TrainingError(
            f"{what} is not one real number", got=describe(value), expected="f32[]",
            do="return its mean over the batch, or (loss, {'name': metric})"
        )  # fmt: skip
    value = jnp.asarray(value)
    return value if value.dtype in ("float32", "float64") else value.astype(jnp.float32)


@dataclass(eq=False, repr=False)
class Supervised:
    """A model has a loss of its predictions; see ``supervised``."""

    model: Callable[..., Any]
    loss: Callable[..., Any]
    metrics: Mapping[str, Callable[..., Any]]
    class_weight: np.ndarray | None

    def __call__(self, params: Any, batch: Any, **keywords: Any) -> Any:
        """The loss is that of a batch ``(x, y)`` or ``(x, y, weight)``."""
        return self.output(params, batch, CallContext(**keywords)).loss

    def predict(self, params: Any, x: Any, model_state: Any = None) -> Any:
        """The model predicts, outside training."""
        return self.apply(params, x, CallContext(model_state=model_state))[0]

    def apply(self, params: Any, x: Any, context: CallContext) -> tuple[Any, Any]:
        """The model is called; the predictions are returned with its state after them or None."""
        keywords = context.keywords_of(self.model)
        predictions = self.model(context.cast(params), context.cast(x), **keywords)
        if "model_state" not in keywords:
            return predictions, None
        if not (isinstance(predictions, tuple) and len(predictions) == 2):
            raise TrainingError("a model that takes model_state must give it back",
                                got=describe(predictions),
                                expected="(predictions, new model_state)")  # fmt: skip
        return predictions

    def output(self, params: Any, batch: Any, context: CallContext) -> Output:
        """Loss, metrics and model state of a batch are computed."""
        x, y, weight = _unpacked(batch)
        predictions, model_state = self.apply(params, x, context)
        widened = lambda x: x.astype(jnp.float32) if x.dtype in ("bfloat16", "float16") else x
        predictions = jax.tree.map(widened, predictions)
        values = self.loss(predictions, y)
        metrics = {name: jnp.mean(f(predictions, y)) for name, f in self.metrics.items()}
        return Output(self._mean(values, y, weight), metrics, model_state)

    def _mean(self, values: Any, y: Any, weight: Any) -> Any:
        """Σ w l / n over all n entries of l: a weight of 2 counts an example twice in the sum."""
        if self.class_weight is not None:
            factors = jnp.asarray(self.class_weight, values.dtype)
            by_class = factors.at[_labels(y, values)].get(mode="fill", fill_value=1)
            weight = by_class if weight is None else _along(weight, by_class) * by_class
        if weight is None:
            return jnp.mean(values)
        return jnp.mean(values * _along(weight, values).astype(values.dtype))


def _labels(y: Any, values: Any) -> Any:
    """Integer labels, one for every value of the loss: as they are, of a column or one-hot."""
    y = jnp.asarray(y)
    if y.ndim == values.ndim + 1:
        y = y[..., 0] if y.shape[-1] == 1 else jnp.argmax(y, axis=-1)
    return y.astype(jnp.int32)


def _along(weight: Any, values: Any) -> Any:
    """Weights of the first axes as a factor of all of them."""
    weight = jnp.asarray(weight)
    if weight.shape != values.shape[: weight.ndim]:
        raise TrainingError("sample weights do not fit the values of the loss",
                            got=describe(weight),
                            expected=f"the first axes of {describe(values)}")  # fmt: skip
    return weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))


def _unpacked(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        got = f"{len(batch)} entries" if isinstance(batch, tuple | list) else describe(batch)
        raise TrainingError("a supervised batch has inputs and targets", got=got,
                            expected="(x, y) or (x, y, sample weights)",
                            do="give fit x and y, or a loader that yields such tuples")  # fmt: skip
    x, y, *rest = batch
    return x, y, rest[0] if rest else None


def supervised(
    model: Callable[..., Any],
    loss: str | Callable[..., Any],
    metrics: Sequence[str | Callable[..., Any]] | Mapping[str, Any] = (),
    *,
    class_weight: Mapping[int, float] | Sequence[float] | np.ndarray | None = None,
) -> Supervised:
    """The objective is mean(weight · loss(model(params, x), y)) over a batch ``(x, y[, weight])``.

    Args:
        model: ``model(params, x) -> predictions``. Arguments named ``rng``, ``training`` and
            ``model_state`` are given to it; with the last it returns
            ``(predictions, new model_state)``.
        loss: a name of ``train.LOSSES`` or a function ``(predictions, y) -> values[b, ...]``. Those
            of several classes take logits, under Keras' names too: leave a softmax layer out.
        metrics: names of ``train.METRICS`` or functions like the loss; a mapping gives names.
        class_weight: a factor for every class, ``{label: factor}`` or an array; 1 for the others.

    Raises:
        TrainingError: a name is not known, two metrics have one, or class weights are neither.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_bp import train
        >>> line = train.supervised(lambda params, x: x @ params, "mse", ["mae"])
        >>> float(line(jnp.array([2.0]), (jnp.array([[1.0], [3.0]]), jnp.array([1.0, 4.0]))))
        2.5
    """
    found = {str(name): _find(m, METRICS, "metric") for name, m in _named(metrics).items()}
    return Supervised(model, _find(loss, LOSSES, "loss"), found, _factors(class_weight))


def _named(metrics: Any) -> Mapping[str, Any]:
    if isinstance(metrics, Mapping):
        return metrics
    metrics = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    names = [m if isinstance(m, str) else getattr(m, "__name__", repr(m)) for m in metrics]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TrainingError("two metrics have one name", got=repr(twice[0]),
                            expected="a name for each",
                            do="give a mapping {name: metric}")  # fmt: skip
    return dict(zip(names, metrics, strict=True))


def _find(given: Any, table: Mapping[str, Any], what: str) -> Callable[..., Any]:
    if callable(given):
        return given
    if not isinstance(given, str) or given not in table:
        raise TrainingError(
            f"no {what} has this name", got=repr(given),
            expected="one of " + ", ".join(sorted(table)),
            do=f"or give a function (predictions, y) -> values[b], as a {what}"
        )  # fmt: skip
    return table[given]


def _factors(class_weight: Any) -> np.ndarray | None:
    if class_weight is None:
        return None
    if isinstance(class_weight, Mapping):
        if not all(isinstance(label, int | np.integer) and label >= 0 for label in class_weight):
            raise _no_factors(f"labels {list(class_weight)}")
        factors = np.ones(max(class_weight, default=0) + 1)
        factors[list(class_weight)] = list(class_weight.values())
        return factors
    factors = np.asarray(class_weight)
    if factors.ndim != 1 or factors.dtype.kind not in "biuf":
        raise _no_factors(describe(factors))
    return factors


def _no_factors(got: str) -> TrainingError:
    return TrainingError(
        "class weights are no factor for every class", got=got,
        expected="{label: factor} with labels 0, 1, 2, ..., or an array f32[classes]"
    )  # fmt: skip
