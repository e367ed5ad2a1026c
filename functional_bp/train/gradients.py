"""Loss and gradient of a batch, in one piece or over microbatches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from functional_bp.errors import TrainingError, compose, describe
from functional_bp.train.objective import Context, Objective, Output, batch_length
from functional_bp.train.precision import Precision
from functional_bp.train.state import TrainState, settled


class Pass(NamedTuple):
    """What one forward and one reverse sweep give.

    Attributes:
        loss: the value before the step.
        params_bar: the gradient, with the structure of the parameters.
        metrics: further scalars.
        model_state: after the batch.
        weight: how many examples the loss is a mean of.
        value_of: the loss of the batch at other parameters, for line searches.
    """

    loss: Any
    params_bar: Any
    metrics: dict[str, Any]
    model_state: Any
    weight: Any
    value_of: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """``gradients(state, batch) -> Pass``.

    Attributes:
        objective: what is minimised.
        value_and_grad: the transform that differentiates it.
        by_hand: ``(params, batch) -> params_bar`` in its place, or None.
        accumulate: into how many microbatches a batch is split.
        precision: of the computation.
    """

    objective: Objective
    value_and_grad: Callable[..., Any]
    by_hand: Callable[..., Any] | None
    accumulate: int
    precision: Precision

    def __call__(self, state: TrainState, batch: Any) -> Pass:
        """The gradient at the state's parameters."""
        if self.precision.scales and state.loss_scale is None:
            raise TrainingError(
                compose("float16 needs the scale of the loss in the state", got="loss_scale=None",
                        do="make the state with train.init(..., precision='float16')")
            )  # fmt: skip
        context = Context(state.step_rng, state.model_state, True, self.precision.cast)

        def value_of(params: Any) -> Any:
            return self.objective(params, batch, context).loss

        count = microbatch_count(batch_length(batch), self.accumulate)
        if count == 1:
            output, params_bar = self._differentiate(state, batch, context)
        else:
            output, params_bar = self._accumulated(state, batch, context, count)
        metrics = dict(output.metrics)
        return Pass(output.loss, params_bar, metrics, output.model_state, output.weight, value_of)

    def _differentiate(self, state: TrainState, batch: Any, context: Context) -> tuple[Output, Any]:
        scale = None if state.loss_scale is None else state.loss_scale.scale

        def scaled(params: Any) -> tuple[Any, Output]:
            output = self.objective(params, batch, context)
            return output.loss if scale is None else output.loss * scale, output

        if self.by_hand is not None:
            output = self.objective(state.params, batch, context)
            keywords = context.keywords_of(self.by_hand)
            params_bar = self.by_hand(state.params, batch, **keywords)
            return output, _fitting(params_bar, state.params)
        (_, output), params_bar = self.value_and_grad(scaled, has_aux=True)(state.params)
        if scale is not None:
            params_bar = jax.tree.map(lambda g: g / scale, params_bar)
        return output, _fitting(params_bar, state.params)

    def _accumulated(
        self, state: TrainState, batch: Any, context: Context, count: int
    ) -> tuple[Output, Any]:
        """The means over microbatches, Σ w · mean / Σ w with the number w of each one's examples.

        A loss that says how many examples it is a mean of (``Output.weight``: the tokens that are
        not padding) has so the gradient of the whole batch, however these are distributed.
        """

        def add(carry: Any, inputs: Any) -> Any:
            (sums, weight, model_state), (k, part) = carry, inputs
            here = context._replace(rng=jax.random.fold_in(context.rng, k), model_state=model_state)
            output, params_bar = self._differentiate(state, part, here)
            means = (output.loss, dict(output.metrics), params_bar)
            sums = jax.tree.map(lambda s, x: s + x * output.weight.astype(x.dtype), sums, means)
            after = settled("model_state", output.model_state, model_state)
            return (sums, weight + output.weight, after), None

        parts = _microbatches(batch, count)
        first = jax.tree.map(lambda x: x[0], parts)
        output, params_bar = jax.eval_shape(
            lambda part: self._differentiate(state, part, context), first
        )
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), (output.loss, dict(output.metrics), params_bar)
        )
        start = (zeros, jnp.float32(0), state.model_state)
        (sums, weight, model_state), _ = lax.scan(add, start, (jnp.arange(count), parts))
        divisor = jnp.where(weight == 0, 1, weight)  # no example at all: no gradient, no loss
        loss, metrics, params_bar = jax.tree.map(lambda x: x / divisor.astype(x.dtype), sums)
        return Output(loss, metrics, model_state, weight), params_bar


def _microbatches(batch: Any, count: int) -> Any:
    """Arrays ``[b, ...]`` cut to ``[count, b / count, ...]``; a number is in every microbatch.

    Example i is in microbatch i mod count: a batch that is split over devices along its first axis
    stays where it is that way.
    """
    length = batch_length(batch)

    def cut(path: Any, x: Any) -> Any:
        x = jnp.asarray(x)
        if not x.shape:
            return jnp.broadcast_to(x, (count,))
        if x.shape[0] != length:
            raise TrainingError(
                compose("a batch to split has arrays of two lengths",
                        where="batch" + jax.tree_util.keystr(path), got=describe(x),
                        expected=f"a first axis of {length}", do="leave accumulate out")
            )  # fmt: skip
        return jnp.moveaxis(x.reshape(length // count, count, *x.shape[1:]), 1, 0)

    return jax.tree.map_with_path(cut, batch)


def microbatch_count(length: int, accumulate: int) -> int:
    """The smallest divisor of the batch's length that is at least ``accumulate``."""
    if accumulate >= length:
        return max(length, 1)
    return next(k for k in range(accumulate, length + 1) if length % k == 0)


def _fitting(params_bar: Any, params: Any) -> Any:
    """The gradient, if it has the structure and the shapes of the parameters."""
    if jax.tree.structure(params_bar) != jax.tree.structure(params):
        raise TrainingError(
            compose("the gradient has not the structure of params",
                    got=str(jax.tree.structure(params_bar)),
                    expected=str(jax.tree.structure(params)))
        )  # fmt: skip
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(params_bar), strict=True)
    for (path, x), x_bar in pairs:
        if jnp.shape(x_bar) != x.shape:
            name = "params" + jax.tree_util.keystr(path)
            raise TrainingError(
                compose(f"the gradient of {name} has another shape", got=describe(x_bar),
                        expected=describe(x))
            )  # fmt: skip
    return jax.tree.map(lambda g, x: g.astype(x.dtype), params_bar, params)
