"""One jit-compiled step: forward sweep, reverse sweep, W ← W − η · gradient as optax has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType

from functional_bp import transforms
from functional_bp.errors import TrainingError, compose, describe
from functional_bp.train.gradients import Gradients, Pass
from functional_bp.train.objective import as_objective
from functional_bp.train.precision import LossScale, Precision
from functional_bp.train.state import TrainState, settled

NONFINITE = (None, "skip", "stop")
SCALE = 2.0**-64  # 2⁶⁴ finite numbers, scaled by it, have a finite sum
LARGE = 4096  # entries, from which on a product is worth its call


class Options(NamedTuple):
    """What a step does beside the gradient and the optimizer; see ``step``."""

    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Precision = Precision()
    nonfinite: str | None = None
    donate: bool = True


class Step:
    """A jit-compiled step, ``step(state, batch) -> (state, logs)``; made by ``train.step``.

    Attributes:
        objective: the loss as it was given.
        optimizer: the gradient transformation.
        options: the rest.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        gradients: Gradients,
        options: Options,
    ) -> None:
        self.objective, self.optimizer, self.options = loss, optimizer, options
        self.gradients = gradients
        self._update = optax.with_extra_args_support(optimizer).update
        self._compilations = 0
        self._compiled = jax.jit(self._counted, donate_argnums=0 if options.donate else ())

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step.

        Args:
            state: its buffers are donated: use the returned one from now on.
            batch: what the loss takes as its second argument.

        Returns:
            The next state, and ``logs``: "loss" before the step and the metrics, f32[] each;
            "grad_norm" with ``clip_norm``, and "nonfinite" with ``nonfinite`` or float16.
        """
        return self._compiled(state, batch)

    @property
    def compilations(self) -> int:
        """For how many shapes, dtypes and layouts of state and batch the step was compiled."""
        return self._compilations

    def _counted(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        after, logs, _ = self.advance(state, batch)
        self._compilations += 1  # this body runs when it is traced
        return after, logs

    def advance(
        self, state: TrainState, batch: Any, bound: Any = True
    ) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
        """The same step uncompiled, to stand inside another ``jit``.

        Args:
            state: the state.
            batch: the batch.
            bound: where False, the state comes back as it is (for a caller that has stopped).

        Returns:
            The next state, the logs, and how many examples they are means of.
        """
        if not isinstance(state, TrainState):
            raise TrainingError(
                compose("a step begins with a state", got=describe(state),
                        expected="a TrainState", do="make it with train.init(params, optimizer)")
            )  # fmt: skip
        found = self.gradients(state, batch)
        logs = {"loss": found.loss, **found.metrics}
        params_bar = self._clipped(found.params_bar, logs)
        scale, taken, counted = state.loss_scale, bound, bound
        if self.options.nonfinite or scale is not None:
            finite = is_finite(found)
            taken = finite & bound
            bad = logs["nonfinite"] = _is_hopeless(found.loss, finite, scale)
            if self.options.nonfinite == "stop":
                counted = ~bad & bound
            scale = None if scale is None else scale.after(finite)

        def update() -> dict[str, Any]:
            params, opt_state = self._updated(state, found, params_bar)
            after = {"params": params, "opt_state": opt_state, "model_state": found.model_state}
            return {name: settled(name, after[name], before[name]) for name in after}

        before = {name: getattr(state, name) for name in ("params", "opt_state", "model_state")}
        after = update() if taken is True else lax.cond(taken, update, lambda: before)
        step, scale = _where(counted, (state.step + 1, scale), (state.step, state.loss_scale))
        after_step = state.replace(step=step, loss_scale=scale, **after)
        return after_step, logs, found.weight

    def _clipped(self, params_bar: Any, logs: dict[str, Any]) -> Any:
        """The gradient within the bounds of the options; its norm goes into the logs."""
        value, norm = self.options.clip_value, self.options.clip_norm
        if value is not None:
            params_bar = jax.tree.map(lambda g: _clip(g, value), params_bar)
        if norm is not None:
            found = logs["grad_norm"] = optax.tree.norm(params_bar)
            shrink = jnp.minimum(1.0, norm / jnp.maximum(found, 1e-30))
            params_bar = jax.tree.map(lambda g: g * shrink.astype(g.dtype), params_bar)
        return params_bar

    def _updated(self, state: TrainState, found: Pass, params_bar: Any) -> tuple[Any, Any]:
        """The parameters and the optimizer's state after its update.

        The gradient of a complex z = x + iy is ∂L/∂x − i ∂L/∂y, as ``jax.grad`` has it; the loss
        falls along its conjugate, and optimizers are given that.
        """
        params_bar = jax.tree.map(jnp.conj, params_bar)
        try:
            updates, opt_state = self._update(
                params_bar, state.opt_state, state.params,
                value=found.loss, grad=params_bar, value_fn=found.value_of,
            )  # fmt: skip
        except Exception as error:
            own = jax.tree.structure(jax.eval_shape(self.optimizer.init, state.params))
            if own == jax.tree.structure(state.opt_state):
                raise
            raise TrainingError(
                compose("the state belongs to another optimizer",
                        got=str(jax.tree.structure(state.opt_state)), expected=str(own),
                        do="make it with train.init(params, optimizer) of the step's optimizer")
            ) from error  # fmt: skip
        return optax.apply_updates(state.params, updates), opt_state


def is_finite(found: Pass) -> jax.Array:
    """Whether loss and every entry of the gradient are.

    A sum is finite if its terms are, scaled so far down that it cannot overflow; adding floats
    takes a processor half the time of testing each of them.
    """
    finite = jnp.isfinite(found.loss)
    for leaf in jax.tree.leaves(found.params_bar):
        finite &= jnp.isfinite(_scaled_sum(leaf))
    return finite


def _scaled_sum(leaf: jax.Array) -> jax.Array:
    """The sum of the entries, scaled down.

    On a CPU a large matrix is first multiplied by a vector: that reads it once and adds in all
    lanes, where a sum alone adds one number after the other.
    """

    def plain(leaf: jax.Array) -> jax.Array:
        return jnp.sum(leaf * SCALE)

    def by_product(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(-1, leaf.shape[-1])
        return plain(jnp.full(len(rows), SCALE, rows.dtype) @ rows)

    is_explicit = AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types
    is_large = leaf.ndim > 1 and leaf.size >= LARGE and leaf.dtype in (jnp.float32, jnp.float64)
    if is_explicit or not is_large:
        return plain(leaf)
    return lax.platform_dependent(leaf, cpu=by_product, default=plain)


def _is_hopeless(loss: jax.Array, finite: jax.Array, scale: LossScale | None) -> jax.Array:
    """Whether a step failed for good: an overflow that a smaller loss scale ends is none."""
    if scale is None:
        return ~finite
    return ~jnp.isfinite(loss) | (~finite & (scale.scale <= 1))


def _clip(x: jax.Array, bound: float) -> jax.Array:
    """Every entry within ±bound; real and imaginary part each, of a complex one."""
    if jnp.iscomplexobj(x):
        return lax.complex(_clip(x.real, bound), _clip(x.imag, bound))
    return jnp.clip(x, -bound, bound)


def _where(condition: Any, new: Any, old: Any) -> Any:
    """The new tree where the condition holds; no selection if it is True beforehand."""
    if condition is True:
        return new
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    value_and_grad: Callable[..., Any] = transforms.value_and_grad,
    gradient: Callable[..., Any] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    precision: str | None = None,
    nonfinite: str | None = None,
    donate: bool = True,
) -> Step:
    """A jit-compiled training step, ``step(state, batch) -> (state, logs)``.

    Args:
        loss: ``loss(params, batch)``, or ``train.supervised(model, loss)``. It returns a scalar,
            the scalar and a dictionary of metrics, or a ``train.Output``; arguments named ``rng``,
            ``model_state`` and ``training`` are given to it.
        optimizer: any gradient transformation of optax, line searches included.
        value_and_grad: the transform that differentiates, ``jax.value_and_grad`` for instance.
        gradient: a gradient derived by hand, ``gradient(params, batch) -> params_bar``, in place
            of a transform's.
        accumulate: split a batch into so many microbatches, one after the other, and take the
            mean of their gradients. A batch that it does not divide is split into more.
        clip_norm: scale the gradient down to this Euclidean norm over all parameters.
        clip_value: clip every entry of the gradient to ±clip_value.
        precision: "bfloat16" or "float16": compute the model in it, keep parameters and gradients
            in float32; float16 with a loss scale of its own (``train.init`` must be told too).
        nonfinite: "skip" leaves parameters and optimizer as they are where the loss or an entry
            of the gradient is not finite; "stop" does not count such a step, either, so that the
            state stays the last good one.
        donate: reuse the state's buffers for the next state.

    Raises:
        TrainingError: an option's value makes no sense.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from functional_bp import train
        >>> optimizer = optax.sgd(0.1)
        >>> state = train.init(jnp.float32(3.0), optimizer)
        >>> step = train.step(lambda w, x: (w - x) ** 2, optimizer)
        >>> state, logs = step(state, jnp.float32(1.0))
        >>> float(logs["loss"]), round(float(state.params), 4)
        (4.0, 2.6)
    """
    if not isinstance(accumulate, int) or accumulate < 1:
        raise _unusable("accumulate", accumulate, "a whole number of microbatches, at least 1")
    for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if value is not None and not value > 0:
            raise _unusable(name, value, "a number above 0, or None")
    if nonfinite not in NONFINITE:
        raise _unusable("nonfinite", nonfinite, "None, 'skip' or 'stop'")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise _unusable(
            "optimizer", optimizer, "a gradient transformation of optax, optax.adam(1e-3)"
        )
    options = Options(accumulate, clip_norm, clip_value, Precision.of(precision), nonfinite, donate)
    gradients = Gradients(
        as_objective(loss), value_and_grad, gradient, accumulate, options.precision
    )
    return Step(loss, optimizer, gradients, options)


def _unusable(name: str, value: Any, expected: str) -> TrainingError:
    return TrainingError(compose(f"{name} cannot be this", got=repr(value), expected=expected))
