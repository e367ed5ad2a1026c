"""The loop of ``fit``: one compiled step a batch, and what stands around the steps."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from functional_bp.errors import NonFiniteError
from functional_bp.train.callbacks import Callbacks
from functional_bp.train.data import Source
from functional_bp.train.evaluate import Evaluator, Sums
from functional_bp.train.failure import nonfinite_error
from functional_bp.train.history import History
from functional_bp.train.layout import DataParallel
from functional_bp.train.objective import batch_length
from functional_bp.train.progress import progress
from functional_bp.train.run import Interrupts, Run, Started, Window
from functional_bp.train.saving import Saver
from functional_bp.train.state import TrainState
from functional_bp.train.step import Step


class Validation:
    """Held-out data and when to look at them."""

    def __init__(
        self, loss: Any, data: Source, every: int, layout: DataParallel | None = None
    ) -> None:
        self._evaluate, self._data, self._every = Evaluator(loss, layout), data, every

    def after(self, epoch: int, state: TrainState) -> dict[str, float]:
        """``{"val_loss": ..., ...}`` after the epoch, if it is one to look."""
        if (epoch + 1) % self._every:
            return {}
        means = self._evaluate(state.params, state.model_state, self._data.epoch(0))
        return {f"val_{name}": value for name, value in means.items()}


class Loop:
    """One run of training.

    Attributes:
        stepper: the step.
        source: the batches.
        present: the run, as callbacks see it.
        sums: of the numbers of the present epoch, on the device.
    """

    def __init__(
        self,
        stepper: Step,
        state: TrainState,
        source: Source,
        names: list[str],
        *,
        validation: Validation | None = None,
        callbacks: Callbacks | None = None,
        saver: Saver | None = None,
        layout: DataParallel | None = None,
    ) -> None:
        self.stepper, self.source, self._layout = stepper, source, layout
        self.present = Run(state, History(), int(state.step))
        self._names = [name for name in names if name != "nonfinite"]
        self._validation, self._saver = validation, saver
        self.callbacks = callbacks or Callbacks()
        self._interrupts, self._window, self._compilations = Interrupts(), Window(), 0
        self._advance = jax.jit(self._advanced, donate_argnums=(0, 1))
        self.sums = self._zeros()
        self._done = 0
        self._bad: Any = self.on_devices(jnp.int32(-1))

    def on_devices(self, tree: Any) -> Any:
        """A copy of small arrays on each device of the run."""
        tree = jax.tree.map(jnp.asarray, tree)
        return self._layout.replicate(tree) if self._layout else tree

    @property
    def compilations(self) -> int:
        """How many shapes of a batch the step was compiled for."""
        return self._compilations

    def _zeros(self) -> Any:
        return self.on_devices({**Sums.zeros(self._names), "skipped": jnp.int32(0)})

    def _advanced(self, state: Any, sums: Any, bad: Any, batch: Any) -> Any:
        """The next state, the epoch's sums, and the step that was not finite, or −1."""
        self._compilations += 1  # this body runs when it is traced
        stops = self.stepper.options.nonfinite == "stop"
        after, logs, weight = self.stepper.advance(state, batch, bad < 0 if stops else True)
        failed = logs.pop("nonfinite", None)
        if failed is None:
            return after, {**Sums.add(sums, logs, weight), "skipped": sums["skipped"]}, bad
        good = ~failed & (bad < 0)
        logs = {name: jnp.where(good, value, 0) for name, value in logs.items()}
        sums = {
            **Sums.add(sums, logs, jnp.where(good, weight, 0)),
            "skipped": sums["skipped"] + (failed & (bad < 0)),
        }
        if stops:
            bad = jnp.where((bad < 0) & failed, state.step, bad)
        return after, sums, bad

    def run(self, epochs: int, verbose: str | int) -> tuple[TrainState, History]:
        """Train until the last epoch, or until something ends the run."""
        run = self.present
        first, done = self._saver.restore(self) if self._saver else (0, 0)
        closing = contextlib.closing(self._saver) if self._saver else contextlib.nullcontext()
        with closing, self._interrupts.caught():
            read = lambda: Sums.means(self.sums)  # noqa: E731
            with progress(verbose, epochs, self.source.steps, read=read) as shown:
                self.callbacks.on_fit_begin(run)
                for run.epoch in range(first, epochs):
                    if run.stopped or not self._epoch(done, shown):
                        break
                    done = 0
                if run.stopped:
                    shown.note(f"stopped: {run.stopped}")
            self.callbacks.on_fit_end(run)
        run.history.stopped = run.stopped
        return run.state, run.history

    def _epoch(self, done: int, shown: Any) -> bool:
        """One epoch, the first ``done`` batches of which are behind; whether it was finished."""
        run, started = self.present, time.perf_counter()
        shown.epoch(run.epoch, start=done)
        self.callbacks.on_epoch_begin(run, run.epoch)
        self._done = done
        try:
            self._steps(shown)
        except Exception as error:
            self._rescue(error)
            raise
        batches = self._done
        self.settle()
        if self._interrupts.asked:
            run.stop("interrupted")
            if self._saver:
                self._saver.save(self, run.epoch, batches)
            return False
        skipped = int(self.sums["skipped"])
        logs = Sums.means(self.sums)
        if skipped:
            logs["skipped_steps"] = skipped
        if self._validation is not None:
            shown.validate()
            logs.update(self._validation.after(run.epoch, run.state))
        self.sums = self._zeros()
        seconds = time.perf_counter() - started
        self.callbacks.on_epoch_end(run, run.epoch, logs)
        run.history.record(run.epoch, logs, step=run.step, seconds=seconds)
        shown.end_epoch(logs)
        if self._saver:
            self._saver.after_epoch(self, logs)
        return True

    def _steps(self, shown: Any) -> None:
        """Run through the rest of an epoch; ``_done`` counts the batches of it that are behind."""
        run, interrupts, window, saver = self.present, self._interrupts, self._window, self._saver
        reading, stepping = self.source.epoch(run.epoch, self._done), self.callbacks.stepping
        while not (run.stopped or interrupts.asked):
            due = saver is not None and saver.is_due(run.step)
            place = self.source.state() if due else None
            interrupts.waiting = True
            try:
                batch = next(reading, None)
            except KeyboardInterrupt:
                interrupts.asked = True
                break
            finally:
                interrupts.waiting = False
            if batch is None:
                break
            if saver is not None and due:
                saver.save(self, run.epoch, self._done, place)
            placed = self._layout.split(batch) if self._layout else batch
            state, self.sums, self._bad = self._advance(run.state, self.sums, self._bad, placed)
            run.state = state
            started = Started(run.step, self._bad, placed, self._done)
            self._check(window.add(started))
            run.step += 1
            self._done += 1
            shown.step(self._done, batch_length(batch))
            for callback in stepping:
                callback.on_step_end(run, run.step)

    def _rescue(self, error: Exception) -> None:
        """What a person's loader or callback raised takes no work with it that was done.

        The state is saved where the run saves; it and the history are attached to the error.
        """
        run = self.present
        if isinstance(error, NonFiniteError) or any(x.is_deleted() for x in _arrays(run.state)):
            return
        told = f"training ended in epoch {run.epoch + 1}, after step {run.step}: the state and the "
        told += "history until then are error.state and error.history"
        with contextlib.suppress(Exception):  # the first error is the one to be told
            self.settle()
            if self._saver and self.source.state() is None:
                self._saver.save(self, run.epoch, self._done)
                told += f"; the same call goes on from there ({self._saver.checkpoints.directory})"
        run.history.stopped = f"{type(error).__name__} in epoch {run.epoch + 1}"
        with contextlib.suppress(AttributeError):  # an exception with slots
            vars(error).update(state=run.state, history=run.history)
            error.add_note(told)

    def settle(self) -> None:
        """Wait for the device, and end the run if a step was not finite.

        Raises:
            NonFiniteError: one was not.
        """
        self._check(self._window.drain())

    def _check(self, failed: Started | None) -> None:
        if failed is None:
            return
        run, where = self.present, f"step {failed.step}, in epoch {self.present.epoch + 1}"
        error = nonfinite_error(
            self.stepper.objective, self.stepper.gradients, run.state, failed.batch, where
        )
        run.step = failed.step
        run.stop(str(error).splitlines()[0])
        self._window = Window()
        if self._saver:
            self._saver.save(self, run.epoch, failed.batches)
        error.state, error.history = run.state, run.history
        run.history.stopped = run.stopped
        raise error


def _arrays(tree: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
