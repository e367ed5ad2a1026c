"""Plain JAX with optax, ``train.step``, and the epochs of ``train.fit``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.trainers import RATE, Trainer, cycle
from benchmarks.trainers.tasks import Task
from functional_bp import train


def plain(task: Task) -> Trainer:
    """``jax.value_and_grad`` and optax in one jit, parameters and optimizer's state donated."""
    optimizer = optax.adam(RATE)

    def loss(params: Any, x: Any, y: Any) -> Any:
        values = optax.losses.softmax_cross_entropy_with_integer_labels(task.model(params, x), y)
        return jnp.mean(values)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, x: Any, y: Any) -> Any:
        value, params_bar = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = optimizer.update(params_bar, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = jax.tree.map(jnp.copy, task.params)
    opt_state, batch = optimizer.init(params), cycle(jax.device_put(task.batches()))

    def take(count: int) -> float:
        nonlocal params, opt_state
        value: Any = None
        for _ in range(count):
            params, opt_state, value = step(params, opt_state, *batch())
        jax.block_until_ready(params)
        return float(value)

    return take


def step(task: Task) -> Trainer:
    """``train.step``: ``bp.value_and_grad`` and optax."""
    stepper = train.step(train.supervised(task.model, "cross_entropy"), optax.adam(RATE))
    state = train.init(task.params, stepper.optimizer)
    batch = cycle(jax.device_put(task.batches()))

    def take(count: int) -> float:
        nonlocal state
        logs: Any = None
        for _ in range(count):
            state, logs = stepper(state, batch())
        jax.block_until_ready(state.params)
        return float(logs["loss"])

    return take


class Between(train.Callback):
    """Does something else after every epoch, outside of the epoch's seconds."""

    def __init__(self, after_epoch: Callable[[], None]) -> None:
        self._after_epoch = after_epoch

    def on_epoch_end(self, run: Any, epoch: int, logs: Any) -> None:
        """An epoch is done, and its seconds are recorded."""
        self._after_epoch()


def fit_epochs(task: Task, steps: int, epochs: int, after_epoch: Callable[[], None]) -> list[float]:
    """Seconds of every epoch of ``train.fit`` on arrays, each of so many steps.

    With its defaults: shuffled, every loss and gradient looked at, sums of the loss kept.
    """
    return _fit(task, task.tiled(steps), epochs, after_epoch, batch_size=task.batch_size)


def fit_ready(task: Task, steps: int, epochs: int, after_epoch: Callable[[], None]) -> list[float]:
    """The same with batches that are on the device already, so that none is cut and copied."""
    return _fit(task, (_ready(task, steps),), epochs, after_epoch)


def fit_unchecked(
    task: Task, steps: int, epochs: int, after_epoch: Callable[[], None]
) -> list[float]:
    """The same with such batches, and no loss or gradient looked at."""
    return _fit(task, (_ready(task, steps),), epochs, after_epoch, nonfinite=None)


def _ready(task: Task, steps: int) -> list[Any]:
    batch = cycle(jax.device_put(task.batches()))
    return [batch() for _ in range(steps)]


def _fit(
    task: Task, data: Any, epochs: int, after_epoch: Callable[[], None], **options: Any
) -> list[float]:
    _, history = train.fit(
        train.supervised(task.model, "cross_entropy"), task.params, *data,
        optimizer=optax.adam(RATE), epochs=epochs, verbose=0, callbacks=[Between(after_epoch)],
        **options,
    )  # fmt: skip
    return [row["seconds"] for row in history.rows]
