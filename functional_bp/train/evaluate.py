"""Loss, metrics and predictions are computed over data of any size, batch by batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import TrainingError, describe
from functional_bp.layouts.layout import Layout
from functional_bp.train.data import source
from functional_bp.train.devices import Placement, shared_layout
from functional_bp.train.objective import (
    CallContext,
    Output,
    Supervised,
    as_objective,
    batch_length,
)
from functional_bp.train.state import TrainState


class Sums:
    """Weighted sums of loss and metrics stay on the device; a mean is read once."""

    @staticmethod
    def zeros(logs: Any) -> dict[str, Any]:
        """All is zero before the first batch, for logs of these names."""
        return {"weight": jnp.float32(0), "sums": {name: jnp.float32(0) for name in logs}}

    @staticmethod
    def add(sums: dict[str, Any], logs: dict[str, Any], weight: Any) -> dict[str, Any]:
        """One batch more is added, whose numbers are means of ``weight`` examples."""
        values = {k: v + (logs[k] * weight).astype(v.dtype) for k, v in sums["sums"].items()}
        return {"weight": sums["weight"] + weight.astype(jnp.float32), "sums": values}

    @staticmethod
    def means(sums: dict[str, Any]) -> dict[str, float]:
        """The means are read as Python numbers, the loss first; this waits for the device."""
        sums = jax.device_get(sums)
        weight = float(sums["weight"]) or float("nan")
        names = sorted(sums["sums"], key=lambda name: name != "loss")
        return {name: float(sums["sums"][name]) / weight for name in names}


class Evaluator:
    """An evaluator is the compiled evaluation of one objective."""

    def __init__(self, loss: Callable[..., Any], layout: Layout | None = None) -> None:
        self._objective = as_objective(loss)
        self._placement = layout and Placement(layout, self._objective)
        self._add = jax.jit(self._advance, donate_argnums=0)

    def _output(self, params: Any, model_state: Any, batch: Any) -> Output:
        return self._objective(params, batch, CallContext(model_state=model_state))

    def _advance(self, sums: Any, params: Any, model_state: Any, batch: Any) -> Any:
        if self._placement:
            params = self._placement.in_use(params)
        output = self._output(params, model_state, batch)
        return Sums.add(sums, {"loss": output.loss, **output.metrics}, output.weight)

    def __call__(
        self, params: Any, model_state: Any, batches: Any, limit: int | None = None
    ) -> dict[str, float]:
        """The means are over the batches, over at most ``limit`` of them."""
        sums = None
        for batch in itertools.islice(batches, limit):
            if sums is None:
                output = jax.eval_shape(self._output, params, model_state, batch)
                sums = Sums.zeros(["loss", *output.metrics])
                if self._placement:
                    self._placement.bind(params, batch, model_state)
                    sums = self._placement.replicate(sums)
            if self._placement:
                batch = self._placement.split(batch)
            sums = self._add(sums, params, model_state, batch)
        if sums is None:
            raise TrainingError("there is no batch to evaluate", got="an empty iterator")
        return Sums.means(sums)


@functools.lru_cache(maxsize=16)
def _evaluator(loss: Callable[..., Any], layout: Layout | None) -> Evaluator:
    return Evaluator(loss, layout)


def evaluate(
    loss: Callable[..., Any],
    state: TrainState | Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    layout: Layout | None = None,
) -> dict[str, float]:
    """The loss and the metrics are averaged over data: ``{"loss": ..., "accuracy": ...}``.

    Args:
        loss: an objective, as for ``fit``; a model is called with ``training=False``.
        state: a TrainState, or the parameters alone.
        x: inputs, or a pytree of arrays that the loss takes as a batch, or a loader of batches.
        y: targets.
        sample_weight: a factor of every example's loss.
        batch_size: how many examples at once.
        steps: at most so many batches.
        layout: that of training, so that each device gets its rows of a batch.

    Raises:
        TrainingError: the data are empty or do not fit together.
    """
    params, model_state = _parts(state)
    data = gather(x, y, sample_weight)
    layout = layout or shared_layout(params)
    batches = source(data, batch_size=batch_size, shuffle=False, what="the data",
                     by_rows=layout is not None and layout.is_shared)  # fmt: skip
    return _evaluator(loss, layout)(params, model_state, batches.epoch(0), steps)


def gather(x: Any, y: Any, sample_weight: Any) -> Any:
    """The data become one pytree: x alone, ``(x, y)`` or ``(x, y, sample_weight)``.

    Raises:
        TrainingError: weights without targets.
    """
    if y is None:
        if sample_weight is not None:
            raise TrainingError("sample weights need targets", got="sample_weight without y",
                                expected="x, y, sample_weight")  # fmt: skip
        return x
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def _parts(state: Any) -> tuple[Any, Any]:
    if isinstance(state, TrainState):
        return state.params, state.model_state
    return state, None


@functools.lru_cache(maxsize=16)
def _predictor(model: Callable[..., Any], layout: Layout | None) -> Callable[..., Any]:
    supervised = model if isinstance(model, Supervised) else Supervised(model, model, {}, None)
    return jax.jit(supervised.predict, out_shardings=layout and layout.whole)


def predict(
    model: Callable[..., Any],
    state: TrainState | Any,
    x: Any,
    *,
    batch_size: int = 32,
    layout: Layout | None = None,
):
    """The model's predictions for all of x are computed batch by batch.

    Args:
        model: ``model(params, x)``, or the result of ``train.supervised``.
        state: a TrainState, or the parameters alone.
        x: an array or a pytree of arrays with one first axis, or a loader of batches of them.
        batch_size: how many examples at once.
        layout: that of training, so that each device gets its rows of a batch.

    Returns:
        NumPy arrays with the same first axis.

    Raises:
        TrainingError: there are no inputs, or the predictions have not the inputs' first axis.
    """
    params, model_state = _parts(state)
    found = []
    layout = layout or shared_layout(params)
    placement = layout and Placement(layout)
    batches = source(x, batch_size=batch_size, shuffle=False, what="the data",
                     by_rows=layout is not None and layout.is_shared)  # fmt: skip
    for batch in batches.epoch(0):
        batch = placement.split(batch) if placement else batch
        predictions = _predictor(model, layout)(params, batch, model_state)
        for leaf in jax.tree.leaves(predictions):
            if not leaf.shape or leaf.shape[0] != batch_length(batch):
                raise TrainingError(
                    "predictions do not belong to inputs one by one", got=describe(leaf),
                    expected=f"a first axis of {batch_length(batch)}, the inputs'"
                )  # fmt: skip
        found.append(predictions)
    if not found:
        raise TrainingError("there is nothing to predict", got="no batch of inputs")
    found = jax.device_get(found)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
