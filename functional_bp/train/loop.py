"""The loop of ``fit`` takes one compiled step a batch, and does what stands around the steps.

It validates, saves and goes on from what was saved, is interrupted between two steps only, and says
of a loss or a gradient that is not finite which parameter, which step and which equation was first.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp import processes
from functional_bp.errors import CheckpointError, NonFiniteError
from functional_bp.explanation.explanation import explain
from functional_bp.gradcheck.guard import Guard
from functional_bp.train.callbacks import Callbacks, TrainingRun
from functional_bp.train.checkpoints import SHARED, Checkpoints
from functional_bp.train.data import Batches
from functional_bp.train.devices import Placement, gathered, place, shared_layout
from functional_bp.train.evaluate import Sums
from functional_bp.train.history import History
from functional_bp.train.objective import CallContext, as_objective, batch_length
from functional_bp.train.progress import progress
from functional_bp.train.state import TrainState
from functional_bp.train.step import Gradients, Step


class Interrupts:
    """Ctrl-C ends a run between two steps, where nothing is half done; a second one at once.

    A step's buffers are donated: an exception between the call of a step and the assignment of
    its result would lose both the old state and the new one.
    """

    def __init__(self) -> None:
        self.asked = False
        self.waiting = False  # for data: nothing is half done, and it may last

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked or self.waiting:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """It listens while the block runs; only a main thread can, and what is ignored stays so.

        Of several processes, each would end at another step; there Ctrl-C ends all at once.
        """
        is_main = threading.current_thread() is threading.main_thread()
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if not is_main or is_ignored or jax.process_count() > 1:
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Started(NamedTuple):
    """A step was started, of which it is not known yet whether its numbers are finite.

    Attributes:
        step: its number, the state's before it.
        bad: on the device: the first step that was not finite, or −1.
        batch: what it was given.
        batches: how many of the epoch were done before it.
    """

    step: int
    bad: jax.Array
    batch: Any
    batches: int


class Window:
    """The last steps are remembered until they are known to be finite.

    Whether a step was good is read from the device some steps later, when it is ready, so that
    the device is never waited for; reading it also keeps Python from running far ahead.
    """

    LENGTH = 8  # steps between two readings

    def __init__(self) -> None:
        self._steps: deque[Started] = deque()

    def add(self, started: Started) -> Started | None:
        """A step is noted; returns one known to be bad, or None."""
        self._steps.append(started)
        return self._read(self.LENGTH) if len(self._steps) >= 2 * self.LENGTH else None

    def drain(self) -> Started | None:
        """All steps are waited for; returns the one that was bad, or None."""
        return self._read(len(self._steps)) if self._steps else None

    def _read(self, count: int) -> Started | None:
        bad = int(self._steps[count - 1].bad)
        if bad >= 0:
            return next(started for started in self._steps if started.step == bad)
        for _ in range(count):
            self._steps.popleft()
        return None


class Saver:
    """A saver saves a loop when it is time to, and restores one.

    Attributes:
        checkpoints: the folder.
        identity: what a run must share with the one that it goes on from.
    """

    def __init__(self, checkpoints: Checkpoints, identity: dict[str, Any], fallback: bool) -> None:
        self.checkpoints, self.identity = checkpoints, identity
        self._fallback, self._saved = fallback, -1

    def is_due(self, step: int) -> bool:
        """It is true where a save is due in the middle of an epoch, before this step is taken.

        Before a step, not after the last one: behind the end of an epoch there is none, and the
        epoch's own checkpoint, which knows the validation, has that step's name.
        """
        every = self.checkpoints.every_steps
        return every is not None and step % every == 0 and step not in (0, self._saved)

    def after_epoch(self, loop: Any, logs: dict[str, float]) -> None:
        """An epoch has ended: save, if it is the ``every_epochs``-th."""
        every, epoch = self.checkpoints.every_epochs, loop.present.epoch
        if every and (epoch + 1) % every == 0:
            self.save(loop, epoch + 1, 0, metrics=logs)

    def save(
        self,
        loop: Any,
        epoch: int,
        batches: int,
        place: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """A loop is saved, once for every step.

        Args:
            loop: it goes on with batch ``batches`` of the epoch.
            epoch: with which it is to go on.
            batches: of that epoch that are behind.
            place: of the source behind them, where it can tell.
            metrics: of the epoch before, at its end.
        """
        loop.settle()
        run = loop.present
        if run.step == self._saved:
            return
        self._saved = run.step
        record = {
            "identity": self.identity,
            "epoch": epoch,
            "batches": batches,
            "place": place,
            "history": run.history.to_dict(),
            "callbacks": loop.callbacks.state_dict(),
            "stopped": run.stopped if metrics else None,  # by a callback, for good
        }
        arrays = {
            "sums": loop.sums,
            "callbacks": {n: jax.tree.leaves(t) for n, t in loop.callbacks.arrays().items()},
        }
        self.checkpoints.save(run.step, run.state, record, arrays, metrics)

    def restore(self, loop: Any) -> tuple[int, int]:
        """The loop is put where its last checkpoint was; returns the epoch and its batches done.

        Raises:
            CheckpointError: the checkpoint is of a run with other data or options, or broken.
        """
        latest = self.checkpoints.latest()
        processes.require_same("the newest checkpoints", f"step {latest}", SHARED)
        if latest is None:
            return 0, 0
        found = self.checkpoints.restore(loop.present.state, fallback=self._fallback)
        record, run = found.loop, loop.present
        if "identity" not in record:
            raise CheckpointError(
                f"the checkpoint of step {found.step} was not saved by fit",
                where=str(self.checkpoints.directory),
                do="give the state of checkpoints.restore(...) as params, and another folder"
            )  # fmt: skip
        self._check_identity(record["identity"], found.step)
        run.state, run.step = found.state, int(found.state.step)
        run.history = History.from_dict(record["history"])
        run.stopped = record["stopped"]
        loop.sums = loop.on_devices(found.extra["sums"])
        loop.source.restore(record["place"])
        loop.callbacks.load_state_dict(record["callbacks"])
        kept = found.extra["callbacks"]
        loop.callbacks.load_arrays({n: _as_parts(run.state, leaves) for n, leaves in kept.items()})
        self._saved = found.step
        return record["epoch"], record["batches"]

    def _check_identity(self, before: dict[str, Any], step: int) -> None:
        changed = [k for k in self.identity if before.get(k) != self.identity[k]]
        if changed:
            raise CheckpointError(
                f"the checkpoint of step {step} is of a run with other data or options",
                got=", ".join(f"{k}={self.identity[k]}" for k in changed),
                expected=", ".join(f"{k}={before.get(k)}" for k in changed),
                do="give the same data and options to go on from it, or another folder; to "
                "begin a\n            new run at its state, give checkpoints.restore(...)"
                ".state as params"
            )  # fmt: skip


def _as_parts(state: TrainState, leaves: list[Any]) -> Any:
    """Arrays that a callback kept of a state, as parts of one; the leaves if they are none."""
    parts = {"params": state.params}
    if state.model_state is not None:
        parts["model_state"] = state.model_state
    like, structure = jax.tree.flatten(parts)
    if [(x.shape, x.dtype) for x in like] != [(x.shape, x.dtype) for x in leaves]:
        return leaves
    return structure.unflatten([place(x, y.sharding) for x, y in zip(leaves, like, strict=True)])


MOST_ROWS = 6  # parameters that a message lists


def nonfinite_error(
    loss: Callable[..., Any], gradients: Gradients, state: TrainState, batch: Any, where: str
) -> NonFiniteError:
    """This is the error for the step that failed on a batch, from the last good state."""
    found = jax.jit(lambda s, b: gradients(s, b)[:2])(state, batch)
    value, params_bar = jax.device_get((found[0].loss, found[1]))
    rows = [
        f"{jax.tree_util.keystr(path, simple=True, separator='.') or 'params'} "
        f"({int(np.sum(~np.isfinite(leaf)))} of {leaf.size} entries)"
        for path, leaf in jax.tree.leaves_with_path(params_bar)
        if not np.all(np.isfinite(leaf))
    ]
    got = f"the loss is {float(value)}"
    if rows:
        more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
        got += f"; the gradient is not finite for {', '.join(rows[:MOST_ROWS])}{more}"
    first = _first_equation(loss, state, batch)
    return NonFiniteError(
        "training met a number that is not finite", first, where=where, got=got,
        expected="finite loss and gradients",
        do=("mend the equation below; " if first is not None else "")
        + "a smaller learning rate or clip_norm=1.0 helps where numbers grow,\n"
        "            and nonfinite='skip' leaves such steps out. The state is the last good one."
    )  # fmt: skip


def _first_equation(loss: Callable[..., Any], state: TrainState, batch: Any) -> Any:
    """The first equation that makes it, forward or backward; None where the search fails."""
    objective = as_objective(loss)
    if (layout := shared_layout(state)) is not None:
        state, batch = gathered((state, batch), layout)

    def value(params: Any, batch: Any) -> Any:
        context = CallContext(state.step_rng, state.model_state, True)
        return objective(params, batch, context).loss

    with Guard("the search for the first equation"):  # it must not hide what it is to explain
        return explain(value, state.params, batch).first_nonfinite()


class TrainingLoop:
    """A training loop is one run of ``fit``.

    Attributes:
        stepper: the step.
        source: the batches.
        present: the run, as callbacks see it.
        sums: of the numbers of the present epoch, on the device.
        program: the compiled step, with these sums.
    """

    def __init__(
        self,
        stepper: Step,
        state: TrainState,
        source: Batches,
        names: list[str],
        *,
        validation: Callable[[int, TrainState], dict[str, float]] | None,
        callbacks: Callbacks,
        saver: Saver | None,
    ) -> None:
        self.stepper, self.source = stepper, source
        self._placement: Placement | None = stepper.placement
        self.present = TrainingRun(state, History(), int(state.step))
        self._names = [name for name in names if name != "nonfinite"]
        self._validation, self._saver, self.callbacks = validation, saver, callbacks
        self._interrupts, self._window = Interrupts(), Window()
        self.program = stepper.program(self._advanced, donated=(0, 1))
        self.sums = self._zeros()
        self._done = 0
        self._compared: set[Any] = set()
        self._bad: Any = self.on_devices(jnp.int32(-1))

    def on_devices(self, tree: Any) -> Any:
        """Each device of the run gets a copy of small arrays."""
        tree = jax.tree.map(jnp.asarray, tree)
        return self._placement.replicate(tree) if self._placement else tree

    def _zeros(self) -> Any:
        return self.on_devices({**Sums.zeros(self._names), "skipped": jnp.int32(0)})

    def _advanced(self, state: Any, sums: Any, bad: Any, batch: Any, choose: Any = None) -> Any:
        """The next state, the epoch's sums, and the step that was not finite, or −1."""
        stops = self.stepper.options.nonfinite == "stop"
        bound = bad < 0 if stops else True
        after, logs, weight = self.stepper.advance(state, batch, bound, choose)
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
        """It trains until the last epoch, or until something ends the run."""
        run = self.present
        first, done = self._saver.restore(self) if self._saver else (0, 0)
        writing = self._saver.checkpoints if self._saver else contextlib.nullcontext()
        with writing, self._interrupts.caught():
            read = lambda: Sums.means(self.sums)
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
            logs.update(self._validation(run.epoch, run.state))
        self.sums = self._zeros()
        seconds = time.perf_counter() - started
        self.callbacks.on_epoch_end(run, run.epoch, logs)
        self._stop_together()
        run.history.record(run.epoch, logs, step=run.step, seconds=seconds)
        shown.end_epoch(logs)
        if self._saver:
            self._saver.after_epoch(self, logs)
        return True

    def _steps(self, shown: Any) -> None:
        """Run through the rest of an epoch; ``_done`` counts the batches of it that are behind."""
        run, interrupts, window, saver = self.present, self._interrupts, self._window, self._saver
        reading = self.source.epoch(run.epoch, self._done)
        stepping = bool(self.callbacks.stepping)
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
            placed = self._placement.split(batch) if self._placement else batch
            self._compare(placed)
            state, self.sums, self._bad = self.program(run.state, self.sums, self._bad, placed)
            run.state = state
            started = Started(run.step, self._bad, placed, self._done)
            self._check(window.add(started))
            run.step += 1
            self._done += 1
            shown.step(self._done, batch_length(placed))
            if stepping:
                self.callbacks.on_step_end(run, run.step)
                self._stop_together()

    def _compare(self, batch: Any) -> None:
        """Several processes are about to run the same step, or say so: it would wait for ever."""
        if jax.process_count() == 1:
            return
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
        if shapes not in self._compared:
            self._compared.add(shapes)
            lowered = self.program.lower(self.present.state, self.sums, self._bad, batch)
            processes.require_same_program("the training steps", lowered)

    def _stop_together(self) -> None:
        """What one process stops, as by its clock, all stop."""
        reasons = processes.exchange("the end of a step", self.present.stopped or "")
        self.present.stopped = next(filter(None, reasons), None)

    def _rescue(self, error: Exception) -> None:
        """What a person's loader or callback raised takes no work with it that was done.

        The state is saved where the run saves; it and the history are attached to the error.
        """
        run = self.present
        arrays = [x for x in jax.tree.leaves(run.state) if isinstance(x, jax.Array)]
        if isinstance(error, NonFiniteError) or any(x.is_deleted() for x in arrays):
            return
        told = f"training ended in epoch {run.epoch + 1}, after step {run.step}: the state and the "
        told += "history until then are error.state and error.history"
        with Guard("saving after an error"):  # the first error is the one to be told
            self.settle()
            if self._saver and self.source.state() is None and jax.process_count() == 1:
                self._saver.save(self, run.epoch, self._done)
                told += f"; the same call goes on from there ({self._saver.checkpoints.directory})"
        run.history.stopped = f"{type(error).__name__} in epoch {run.epoch + 1}"
        with contextlib.suppress(AttributeError):  # an exception with slots
            vars(error).update(state=run.state, history=run.history)
            error.add_note(told)

    def settle(self) -> None:
        """The device is waited for, and the run ends if a step was not finite.

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
        run.stop(error.what)
        self._window = Window()
        if self._saver:
            self._saver.save(self, run.epoch, failed.batches)
        error.state, error.history = run.state, run.history
        run.history.stopped = run.stopped
        raise error
