"""``fit`` trains: batches in, one compiled step each, until the stopping criterion is met.

What it is given is looked at before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from functional_bp.engine import transforms
from functional_bp.errors import BackpropError, TrainingError, describe
from functional_bp.layouts.layout import Layout
from functional_bp.train.callbacks import Callback, Callbacks
from functional_bp.train.checkpoints import Checkpoints
from functional_bp.train.data import (
    Batches,
    check_count,
    check_labels,
    check_like,
    named_arrays,
    source,
    split,
)  # fmt: skip
from functional_bp.train.devices import Placement, check_shares, over_devices, require_same_arrays
from functional_bp.train.evaluate import Evaluator, gather
from functional_bp.train.history import History
from functional_bp.train.loop import Saver, TrainingLoop
from functional_bp.train.objective import CallContext, Supervised, cross_entropy
from functional_bp.train.state import TrainState, init
from functional_bp.train.step import Step, step


def _admit(
    data: Any, validation_data: Any, validation_split: float, **options: Any
) -> tuple[Batches, Batches | None]:
    """The training batches, and the held-out ones or None.

    Raises:
        TrainingError: both kinds of held-out data are given.
        DataError: the data are empty or do not fit together.
    """
    if validation_split and validation_data is not None:
        raise TrainingError("held-out data are given twice",
                            got=f"validation_data and validation_split={validation_split}",
                            expected="one of them")  # fmt: skip
    if validation_split:
        data, validation_data = split(data, validation_split)
    training = source(data, **options)
    if validation_data is None:
        return training, None
    unshuffled = {**options, "shuffle": False, "drop_last": False, "steps": None}
    held_out = source(validation_data, what="the validation data", **unshuffled)
    check_like(held_out.first(), training.first())
    return training, held_out


def _check_step(
    stepper: Step, loss: Callable[..., Any], state: TrainState, data: Batches, held_out: Any
) -> dict[str, Any]:
    """The abstract values of the step's logs, from tracing it on the first batch.

    Raises:
        TrainingError: the loss cannot be computed on the first batch, or a label is out of range.
    """
    batch = data.first()
    try:
        if isinstance(loss, Supervised):
            _check_labels(loss, state, batch, data, held_out)
        _, logs, _ = jax.eval_shape(stepper.advance, state, batch)
    except (TypeError, ValueError) as error:
        if isinstance(error, BackpropError):
            raise
        arrays = named_arrays(batch).items()
        raise TrainingError(
            "the loss cannot be computed on the first batch",
            got=", ".join(f"{name} {describe(array)}" for name, array in arrays),
            expected="shapes and dtypes that the model takes",
            do="see the error above, which names the operation"
        ) from error  # fmt: skip
    return logs


def _check_labels(
    loss: Supervised, state: TrainState, batch: Any, data: Batches, held_out: Batches | None
) -> None:
    """Labels of every array of the data, in the range of the model's scores."""
    if loss.loss is not cross_entropy:
        return

    def apply(state: TrainState, x: Any) -> Any:
        context = CallContext(rng=state.step_rng, model_state=state.model_state, training=True)
        return loss.apply(state.params, x, context)

    scores, _ = jax.eval_shape(apply, state, batch[0])
    for part, what in ((data, "the training data"), (held_out, "the validation data")):
        if part is not None:
            labels = (part.first() if part.arrays is None else part.arrays)[1]
            check_labels(labels, scores.shape[-1], what)


def _saver(
    checkpoints: str | Path | Checkpoints | None,
    resume: bool | str,
    identity: dict[str, Any],
) -> Saver | None:
    """What saves the run, or None.

    Raises:
        TrainingError: the folder holds checkpoints, and ``resume`` is False; or it is something
            else than True, False or "fallback".
    """
    if resume not in (True, False, "fallback"):
        raise TrainingError("resume cannot be this", got=repr(resume),
                            expected="True, False or 'fallback'")  # fmt: skip
    if checkpoints is None:
        return None
    folder = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints)
    if not resume and folder.latest() is not None:
        raise TrainingError(
            "the folder holds checkpoints already", got=str(folder.directory),
            expected="an empty folder, with resume=False",
            do="give another folder, or resume=True to go on from the last of them"
        )  # fmt: skip
    return Saver(folder, identity, fallback=resume == "fallback")


def _validation(
    loss: Callable[..., Any], data: Batches, every: int, placement: Placement | None
) -> Callable[[int, TrainState], dict[str, float]]:
    """The means ``{"val_loss": ..., ...}`` after every so many epochs, none after the others."""
    evaluate = Evaluator(loss, placement and placement.layout)

    def after(epoch: int, state: TrainState) -> dict[str, float]:
        if (epoch + 1) % every:
            return {}
        means = evaluate(state.params, state.model_state, data.epoch(0))
        return {f"val_{name}": value for name, value in means.items()}

    return after


def _layout(layout: Layout | None, devices: int | Sequence[Any] | None) -> Layout | None:
    """The one that is given, or that of the devices; of all devices of several processes.

    Raises:
        TrainingError: both are given.
    """
    if layout is not None and devices is not None:
        raise TrainingError("the devices are given twice", got=f"layout and devices={devices!r}",
                            expected="one of them")  # fmt: skip
    if devices is None and jax.process_count() > 1:
        devices = jax.devices()
    return layout or (None if devices is None else over_devices(devices))


def fit(
    loss: Callable[..., Any],
    params: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    batch_size: int = 32,
    validation_data: Any = None,
    validation_split: float = 0.0,
    validation_freq: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    verbose: str | int = "auto",
    checkpoints: str | Path | Checkpoints | None = None,
    resume: bool | str = True,
    model_state: Any = None,
    devices: int | Sequence[Any] | None = None,
    layout: Layout | None = None,
    plan: Any = None,
    value_and_grad: Callable[..., Any] = transforms.value_and_grad,
    gradient: Callable[..., Any] | None = None,
    accumulate: int = 1,
    allow_coupled: bool = False,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    precision: str | None = None,
    nonfinite: str | None = "stop",
    memory: int | float | str | None = None,
) -> tuple[TrainState, History]:
    """A model is trained; the last state and the numbers of every epoch are returned.

    Args:
        loss: ``train.supervised(model, loss, metrics)``, or any function ``loss(params, batch)``;
            see ``train.step``.
        params: the first parameters, a function of a random key that makes them, or a
            ``TrainState`` to go on from. They are copied.
        x: inputs, an array or a pytree of arrays with one first axis; or a pytree of arrays that
            the loss takes as a batch; or an iterable of batches (a loader of Grain or PyTorch, a
            function that returns an iterator).
        y: targets; the batch is then ``(x, y)``.
        sample_weight: a factor of every example's loss; the batch is ``(x, y, sample_weight)``.
        optimizer: any gradient transformation of optax.
        epochs: how many in all, those before a resumed checkpoint included.
        steps_per_epoch: end an epoch after so many batches, and go on there in the next; by
            default it ends with the data.
        batch_size: examples a step, of arrays. The last batch of an epoch may be smaller: the step
            is compiled for it once more. ``drop_last`` leaves it out.
        validation_data: as ``x``, or a tuple ``(x, y)`` or ``(x, y, sample_weight)``.
        validation_split: the share at the end of the arrays that is kept for validation.
        validation_freq: validate after every so many epochs.
        shuffle: draw a new order of the arrays' examples for every epoch, from ``seed`` and the
            number of the epoch alone.
        drop_last: leave a last partial batch out.
        seed: of the order of the examples, and of the random key of the state.
        callbacks: see ``train.callbacks``.
        verbose: "auto"; 0 silent, 1 a bar, 2 a line for every epoch.
        checkpoints: a folder, or ``train.Checkpoints``. A run that finds a checkpoint there goes
            on from it, and ends in the state, bit for bit, that it had reached uninterrupted.
        resume: False refuses a folder that holds checkpoints already. "fallback" takes the newest
            checkpoint that is whole where the newest one is not, with a warning; True refuses.
        model_state: the first state that the model keeps beside its parameters.
        devices: train on so many devices, or on these: each takes a slice of every batch. With
            several processes (``shard.connect``), by default on all devices of all: arrays are
            given whole to every process, which reads its rows; a loader gives a process's part.
        layout: of ``shard.layout``, in the place of ``devices``: divide other dimensions too, and
            the parameters; see ``train.step``.
        plan: of ``shard.plan`` for this loss and optimizer, in the place of ``layout`` and of all
            options of the step: its step is taken.
        value_and_grad: the transform that differentiates.
        gradient: a gradient derived by hand in its place; see ``train.step``.
        accumulate: microbatches a step.
        allow_coupled: accumulate, even where that changes the loss; see ``train.step``.
        clip_norm: the largest norm of the gradient.
        clip_value: the largest entry of the gradient.
        precision: "bfloat16" or "float16" for the computation.
        nonfinite: "stop" ends the run at the first step whose loss or gradient is not finite,
            "skip" leaves such steps out, None does not look.
        memory: what the compiled step may need; see ``train.step``.

    Returns:
        The state after the last step, and the history: ``history["loss"]`` and the metrics hold a
        number for every epoch, ``history["val_loss"]`` those of validation.

    Raises:
        TrainingError: data, options and state do not fit; before anything is compiled.
        NonFiniteError: a number was not finite. The message names parameter, step and the first
            equation; ``error.state`` and ``error.history`` are those of the last good step.
        CheckpointError: the folder's checkpoint is of another run, or broken.
        Any error of the data or of a callback, with ``error.state`` and ``error.history`` of the
            last step, which is saved where the run saves.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax
        >>> from functional_bp import train
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> line = train.supervised(lambda p, x: p["w"] * x + p["b"], "mse")
        >>> state, history = train.fit(line, {"w": 0.0, "b": 0.0}, x, 3 * x - 1,
        ...                            optimizer=optax.sgd(0.3), epochs=40, verbose=0)
        >>> print(f"{state.params['w']:.3f} {state.params['b']:.3f}")
        3.000 -1.000
    """
    layout = _layout(layout, devices) if plan is None else plan.layout
    stepper = plan.step if plan is not None else step(
        loss, optimizer, value_and_grad=value_and_grad, gradient=gradient, accumulate=accumulate,
        allow_coupled=allow_coupled, clip_norm=clip_norm, clip_value=clip_value,
        precision=precision, nonfinite=nonfinite, memory=memory, layout=layout,
    )  # fmt: skip
    check_count("epochs", epochs)
    check_count("validation_freq", validation_freq)
    data, held_out = _admit(
        gather(x, y, sample_weight), validation_data, validation_split,
        batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last,
        steps=steps_per_epoch, by_rows=layout is not None and layout.is_shared,
    )  # fmt: skip
    if layout is not None:
        check_shares(layout, batch_size)
    data.check_passes(epochs)
    if held_out is not None:
        held_out.check_passes(epochs // validation_freq)
    if layout is not None and not callable(params):
        require_same_arrays("the first states", params)
    make: Callable[..., TrainState] = partial(
        init, params, optimizer, seed=seed, model_state=model_state, precision=precision
    )
    first = params if isinstance(params, TrainState) else jax.eval_shape(make)
    logs = _check_step(stepper, loss, first, data, held_out)
    placement = stepper.placement  # bound to the loss by now
    if isinstance(params, TrainState):
        state = jax.tree.map(jnp.copy, params)
        state = placement.state(state) if placement else state
    else:
        state = make(layout=placement and placement.layout)
    identity = {
        "batch_size": batch_size, "shuffle": shuffle, "seed": seed, "drop_last": drop_last,
        "examples": data.examples, "steps_per_epoch": data.steps,
    }  # fmt: skip
    loop = TrainingLoop(
        stepper,
        state,
        data,
        list(logs),
        validation=_validation(loss, held_out, validation_freq, placement) if held_out else None,
        callbacks=Callbacks(callbacks),
        saver=_saver(checkpoints, resume, identity),
    )
    return loop.run(epochs, verbose)
