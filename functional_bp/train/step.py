"""A jit-compiled step is a forward sweep, a reverse sweep, and W ← W − η · gradient by optax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType

from functional_bp.engine import transforms
from functional_bp.errors import TrainingError, describe
from functional_bp.graph import names
from functional_bp.layouts.layout import Layout
from functional_bp.memory.attribution import OPTIMIZER_SCOPE
from functional_bp.memory.budgets import Recomputation
from functional_bp.memory.recompute import Chooser, rescheduled
from functional_bp.train.accumulation import law_of, share_of
from functional_bp.train.devices import Placement
from functional_bp.train.objective import (
    CallContext,
    Objective,
    Output,
    Supervised,
    as_objective,
    batch_length,
)
from functional_bp.train.state import LossScale, Precision, TrainState, settled
from functional_bp.train.step_program import Budget, StepProgram, checked_budget


class Pass(NamedTuple):
    """One forward and one reverse sweep give this.

    Attributes:
        output: of the objective, at the parameters before the step.
        params_bar: the gradient, with the structure of the parameters.
        value_of: the loss of the batch at other parameters, for line searches.
    """

    output: Output
    params_bar: Any
    value_of: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Loss and gradient of a batch are computed in one piece or over microbatches.

    Attributes:
        objective: what is minimised.
        value_and_grad: the transform that differentiates it.
        by_hand: ``(params, batch) -> params_bar`` in its place, or None.
        accumulate: into how many microbatches a batch is split.
        precision: of the computation.
        choose: says what of the loss is made again in the reverse sweep; None: nothing.
        allow_coupled: microbatches may change the loss.
        placement: of the parameters, which are gathered where they are used; None: as they are.
    """

    objective: Objective
    value_and_grad: Callable[..., Any]
    by_hand: Callable[..., Any] | None
    accumulate: int
    precision: Precision
    allow_coupled: bool = False
    choose: Chooser | None = None
    placement: Placement | None = None

    def __call__(self, state: TrainState, batch: Any) -> Pass:
        """The gradient is taken at the state's parameters."""
        if self.precision.scales and state.loss_scale is None:
            raise TrainingError(
                "float16 needs the scale of the loss in the state", got="loss_scale=None",
                do="make the state with train.init(..., precision='float16')"
            )  # fmt: skip
        context = CallContext(state.step_rng, state.model_state, True, self.precision.cast)

        def value_of(params: Any) -> Any:
            return self.objective(params, batch, context).loss

        count = microbatch_count(batch_length(batch), self.accumulate)
        if count == 1:
            output, params_bar = self._differentiate(state, batch, context)
        else:
            output, params_bar = self._accumulated(state, batch, context, count)
        return Pass(output, params_bar, value_of)

    def _differentiate(
        self, state: TrainState, batch: Any, context: CallContext
    ) -> tuple[Output, Any]:
        scale = None if state.loss_scale is None else state.loss_scale.scale

        def scaled(params: Any) -> tuple[Any, Output]:
            if self.placement is not None:
                params = self.placement.in_use(params)
            output = self.objective(params, batch, context)
            return output.loss if scale is None else output.loss * scale, output

        if self.by_hand is not None:
            output = self.objective(state.params, batch, context)
            keywords = context.keywords_of(self.by_hand)
            params_bar = self.by_hand(state.params, batch, **keywords)
            return output, _fitting(params_bar, state.params)
        fun = scaled if self.choose is None else rescheduled(scaled, self.choose, has_aux=True)
        (_, output), params_bar = self.value_and_grad(fun, has_aux=True)(state.params)
        if scale is not None:
            params_bar = jax.tree.map(lambda g: g / scale, params_bar)
        return output, _fitting(params_bar, state.params)

    def _accumulated(
        self, state: TrainState, batch: Any, context: CallContext, count: int
    ) -> tuple[Output, Any]:
        """The means over microbatches, Σ w · mean / Σ w with the number w of each one's examples.

        A loss that says how many examples it is a mean of (``Output.weight``: the tokens that are
        not padding), or shows it in its graph (``shard.batch_law``), has so the gradient of the
        whole batch, however these are distributed.
        """
        law = law_of(self.objective, state.params, batch, context, self.allow_coupled)
        scaled = lambda tree, by: jax.tree.map(lambda x: x * by.astype(x.dtype), tree)

        def add(carry: Any, inputs: Any) -> Any:
            (sums, weight, model_state), (k, part) = carry, inputs
            here = context._replace(rng=jax.random.fold_in(context.rng, k), model_state=model_state)
            output, params_bar = self._differentiate(state, part, here)
            share = share_of(law, state.params, part, output.weight)
            found = (
                scaled((output.loss, params_bar), share),
                scaled(dict(output.metrics), output.weight),
            )
            sums = jax.tree.map(jnp.add, sums, found)
            after = settled("model_state", output.model_state, model_state)
            return (sums, weight + output.weight, after), None

        parts = _microbatches(batch, count)
        first = jax.tree.map(lambda x: x[0], parts)
        output, params_bar = jax.eval_shape(
            lambda part: self._differentiate(state, part, context), first
        )
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), ((output.loss, params_bar), dict(output.metrics))
        )
        start = (zeros, jnp.float32(0), state.model_state)
        (sums, weight, model_state), _ = lax.scan(add, start, (jnp.arange(count), parts))
        whole = share_of(law, state.params, batch, weight)
        loss, params_bar = divided(sums[0], whole)
        metrics = divided(sums[1], weight)
        return Output(loss, metrics, model_state, weight), params_bar


def divided(tree: Any, by: Any) -> Any:
    """Every number is divided by one; by none, where that is 0: there was no example at all."""
    by = jnp.where(by == 0, 1, by)
    return jax.tree.map(lambda x: x / by.astype(x.dtype), tree)


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
            raise TrainingError("a batch to split has arrays of two lengths",
                                where="batch" + jax.tree_util.keystr(path), got=describe(x),
                                expected=f"a first axis of {length}",
                                do="leave accumulate out")  # fmt: skip
        return jnp.moveaxis(x.reshape(length // count, count, *x.shape[1:]), 1, 0)

    return jax.tree.map_with_path(cut, batch)


def microbatch_count(length: int, accumulate: int) -> int:
    """The count is the smallest divisor of the batch's length of at least ``accumulate``."""
    if accumulate >= length:
        return max(length, 1)
    return next(k for k in range(accumulate, length + 1) if length % k == 0)


def _fitting(params_bar: Any, params: Any) -> Any:
    """The gradient, if it has the structure and the shapes of the parameters."""
    if jax.tree.structure(params_bar) != jax.tree.structure(params):
        raise TrainingError("the gradient has not the structure of params",
                            got=str(jax.tree.structure(params_bar)),
                            expected=str(jax.tree.structure(params)))  # fmt: skip
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(params_bar), strict=True)
    for (path, x), x_bar in pairs:
        if jnp.shape(x_bar) != x.shape:
            name = "params" + jax.tree_util.keystr(path)
            raise TrainingError(f"the gradient of {name} has another shape", got=describe(x_bar),
                                expected=describe(x))  # fmt: skip
    return jax.tree.map(lambda g, x: g.astype(x.dtype), params_bar, params)


NONFINITE = (None, "skip", "stop")
SCALE = 2.0**-64  # 2⁶⁴ finite numbers, scaled by it, have a finite sum
LARGE = 4096  # entries, from which on a product is worth its call


class StepOptions(NamedTuple):
    """A step does this beside the gradient and the optimizer; see ``step``."""

    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Precision = Precision()
    nonfinite: str | None = None
    donate: bool = True
    memory: Budget | None = None
    layout: Layout | None = None


class Step:
    """``step(state, batch) -> (state, logs)`` is jit-compiled; ``train.step`` makes it.

    Attributes:
        objective: the loss as it was given.
        optimizer: the gradient transformation.
        options: the rest.
        placement: of state and batches by the layout; None where they stay where they are.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        gradients: Gradients,
        options: StepOptions,
    ) -> None:
        self.objective, self.optimizer, self.options = loss, optimizer, options
        self.__name__ = names.function_name(loss.model if isinstance(loss, Supervised) else loss)
        self.gradients = gradients
        layout = options.layout
        self.placement = layout and Placement(layout, gradients.objective)
        self._update = optax.with_extra_args_support(optimizer).update
        self._program = self.program(self._run, (0,) if options.donate else ())

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step is taken.

        Args:
            state: its buffers are donated: use the returned one from now on.
            batch: what the loss takes as its second argument.

        Returns:
            The next state, and ``logs``: "loss" before the step and the metrics, f32[] each;
            "grad_norm" with ``clip_norm``, and "nonfinite" with ``nonfinite`` or float16.
        """
        return self._program(*self._placed(state, batch))

    def __str__(self) -> str:
        name, budget = f"a training step of {self.__name__}", self.options.memory
        if budget is None:
            return name
        told = [f"{name} {choice}" for choice in self.choices.values()]
        return "\n".join(told) or f"{name}, to be compiled within {budget!r}: not called yet"

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The same step, uncompiled: of it, shapes can be told without a search."""
        return self._run

    @property
    def compilations(self) -> int:
        """It was compiled for so many shapes, dtypes and layouts of state and batch."""
        return self._program.compilations

    @property
    def choices(self) -> Mapping[Any, Recomputation]:
        """This is made again to keep to the budget, for each of these; printed, it says so."""
        return self._program.choices

    def lower(self, state: TrainState, batch: Any) -> Any:
        """The step is lowered for a state and a batch, or their shapes, as ``jax.jit``'s is."""
        return self._program.lower(*self._placed(state, batch))

    def _placed(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        if self.placement is None or not isinstance(state, TrainState):
            return state, batch
        self.placement.bind(state.params, batch, state.model_state)
        return self.placement.state(state), self.placement.split(batch)

    def program(self, run: Callable[..., Any], donated: Sequence[int]) -> StepProgram:
        """A function that advances by this step is compiled, within the step's budget.

        Args:
            run: passes its ``choose=`` on to ``advance``.
            donated: the positions of the arguments whose buffers are reused.
        """
        return StepProgram(run, donated, self.options.memory, self.__name__)

    def _run(
        self, state: TrainState, batch: Any, choose: Chooser | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        after, logs, _ = self.advance(state, batch, choose=choose)
        return after, logs

    def advance(
        self, state: TrainState, batch: Any, bound: Any = True, choose: Chooser | None = None
    ) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
        """The same step is taken uncompiled, to stand inside another ``jit``.

        Args:
            state: the state.
            batch: the batch.
            bound: where False, the state comes back as it is (for a caller that has stopped).
            choose: says what of the loss is made again in the reverse sweep.

        Returns:
            The next state, the logs, and how many examples they are means of.
        """
        if not isinstance(state, TrainState):
            raise TrainingError("a step begins with a state", got=describe(state),
                                expected="a TrainState",
                                do="make it with train.init(params, optimizer)")  # fmt: skip
        if self.placement is not None:
            self.placement.bind(state.params, batch, state.model_state)
        gradients = dataclasses.replace(self.gradients, choose=choose, placement=self.placement)
        found = gradients(state, batch)
        if self.placement is not None:
            found = found._replace(params_bar=self.placement.constrained(found.params_bar))
        output = found.output
        logs = {"loss": output.loss, **output.metrics}
        params_bar = self._clipped(found.params_bar, logs)
        scale, taken, counted = state.loss_scale, bound, bound
        if self.options.nonfinite or scale is not None:
            finite = is_finite(found, self.placement is not None)
            taken = finite & bound
            bad = logs["nonfinite"] = _is_hopeless(output.loss, finite, scale)
            if self.options.nonfinite == "stop":
                counted = ~bad & bound
            scale = None if scale is None else scale.after(finite)

        def update() -> dict[str, Any]:
            with jax.named_scope(OPTIMIZER_SCOPE):
                params, opt_state = self._updated(state, found, params_bar)
            after = {"params": params, "opt_state": opt_state, "model_state": output.model_state}
            return {name: settled(name, after[name], before[name]) for name in after}

        before = {name: getattr(state, name) for name in ("params", "opt_state", "model_state")}
        after = update() if taken is True else lax.cond(taken, update, lambda: before)
        step, scale = _where(counted, (state.step + 1, scale), (state.step, state.loss_scale))
        after_step = state.replace(step=step, loss_scale=scale, **after)
        if self.placement is not None:  # as the donated state lay
            after_step = self.placement.constrained(after_step)
        return after_step, logs, output.weight

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
                value=found.output.loss, grad=params_bar, value_fn=found.value_of,
            )  # fmt: skip
        except Exception as error:
            own = jax.tree.structure(jax.eval_shape(self.optimizer.init, state.params))
            if own == jax.tree.structure(state.opt_state):
                raise
            raise TrainingError(
                "the state belongs to another optimizer",
                got=str(jax.tree.structure(state.opt_state)), expected=str(own),
                do="make it with train.init(params, optimizer) of the step's optimizer"
            ) from error  # fmt: skip
        return optax.apply_updates(state.params, updates), opt_state


def is_finite(found: Pass, is_divided: bool = False) -> jax.Array:
    """It is true if loss and every entry of the gradient are finite.

    A sum is finite if its terms are, scaled so far down that it cannot overflow; adding floats
    takes a processor half the time of testing each of them.
    """
    finite = jnp.isfinite(found.output.loss)
    for leaf in jax.tree.leaves(found.params_bar):
        finite &= jnp.isfinite(_scaled_sum(leaf, is_divided))
    return finite


def _scaled_sum(leaf: jax.Array, is_divided: bool) -> jax.Array:
    """The sum of the entries, scaled down.

    On a CPU a large matrix is first multiplied by a vector: that reads it once and adds in all
    lanes, where a sum alone adds one number after the other. What devices divide is not reshaped.
    """

    def plain(leaf: jax.Array) -> jax.Array:
        return jnp.sum(leaf * SCALE)

    def by_product(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(-1, leaf.shape[-1])
        return plain(jnp.full(len(rows), SCALE, rows.dtype) @ rows)

    is_divided |= AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types
    is_large = leaf.ndim > 1 and leaf.size >= LARGE and leaf.dtype in (jnp.float32, jnp.float64)
    if is_divided or not is_large:
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
    memory: Budget | None = None,
    allow_coupled: bool = False,
    layout: Layout | None = None,
) -> Step:
    """A training step is made and jit-compiled: ``step(state, batch) -> (state, logs)``.

    Args:
        loss: ``loss(params, batch)``, or ``train.supervised(model, loss)``. It returns a scalar,
            the scalar and a dictionary of metrics, or a ``train.Output``; arguments named ``rng``,
            ``model_state`` and ``training`` are given to it.
        optimizer: any gradient transformation of optax, line searches included.
        value_and_grad: the transform that differentiates, ``jax.value_and_grad`` for instance.
        gradient: a gradient derived by hand, ``gradient(params, batch) -> params_bar``, in place
            of a transform's.
        accumulate: split a batch into so many microbatches, one after the other, and put their
            gradients together as the loss's law of the batch has it (``shard.batch_law``): to
            their mean, their sum, or Σ w g / w of the whole. A batch that it does not divide is
            split into more.
        clip_norm: scale the gradient down to this Euclidean norm over all parameters.
        clip_value: clip every entry of the gradient to ±clip_value.
        precision: "bfloat16" or "float16": compute the model in it, keep parameters and gradients
            in float32; float16 with a loss scale of its own (``train.init`` must be told too).
        nonfinite: "skip" leaves parameters and optimizer as they are where the loss or an entry
            of the gradient is not finite; "stop" does not count such a step, either, so that the
            state stays the last good one.
        donate: reuse the state's buffers for the next state.
        memory: what the compiled step may need, on each device: bytes, or a text such as "2 GiB",
            state, batch, optimizer and metrics included; a fraction below 1 is one of the
            temporaries that it needs without. Parts of the loss are made again in the reverse sweep
            to keep to it (``bp.recompute``), at the fewest operations found: ``print(step)`` says
            which, and ``bp.footprint(step, state, batch)`` what fills it. Several programs are
            compiled for each shape of a batch.
        allow_coupled: accumulate, even where the loss couples the examples of a batch (batch
            normalisation, in-batch negatives), so that microbatches minimise another loss.
        layout: which devices hold what, of ``shard.layout``. State and batches are put there, if
            they are not yet (``train.init(..., layout=layout)`` makes them there); each device
            gets its rows. Loss, gradient and state are those of one device, to rounding.

    Raises:
        TrainingError: an option's value makes no sense; when called, if microbatches would change
            the loss.
        LayoutError: when called first, if the layout does not divide a dimension of the loss.
        BudgetError: when called, before anything runs, if the step cannot be had within
            ``memory``; the message says what the least is, and what fills it.

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
    if memory is not None and gradient is not None:
        raise _unusable("memory", memory, "None, where the gradient is derived by hand")
    options = StepOptions(
        accumulate, clip_norm, clip_value, Precision.of(precision), nonfinite, donate,
        checked_budget(memory), layout,
    )  # fmt: skip
    gradients = Gradients(
        as_objective(loss), value_and_grad, gradient, accumulate, options.precision, allow_coupled
    )
    return Step(loss, optimizer, gradients, options)


def _unusable(name: str, value: Any, expected: str) -> TrainingError:
    return TrainingError(f"{name} cannot be this", got=repr(value), expected=expected)
