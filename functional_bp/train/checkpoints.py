"""Checkpoints are atomic, asynchronous, checked byte for byte; the last and the best are kept.

``save`` copies the arrays to host memory and returns; a thread has Orbax write them. A step may
donate its state at once, and an interrupted or killed process leaves every checkpoint before it
whole. The thread is of this package, since Orbax's own asynchrony loses a save where the program
ends behind it, and forgets to delete what Ctrl-C came between.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from functional_bp.errors import CheckpointError, TrainingError, warn
from functional_bp.train.leaves import (
    compare,
    facts,
    filled,
    in_host_memory,
    names,
    restored,
    skeleton,
)  # fmt: skip
from functional_bp.train.state import TrainState
from functional_bp.train.storage import BrokenError, Folder, Saved, require_orbax


class Background:
    """A thread does one piece of work at a time, also where the program ends before it is done.

    Ctrl-C never lands in it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """The work begins; the one before it has been waited for."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        _finish_at_exit()
        _at_work.add(self)
        self._thread = threading.Thread(target=run, name="functional_bp checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """This returns when it is done; raises what it raised, once."""
        if self._thread is not None:
            if self._thread.ident is not None:  # else Ctrl-C came before it began
                self._thread.join()  # Ctrl-C here leaves it to be waited for again
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


_at_work: weakref.WeakSet[Background] = weakref.WeakSet()


@functools.cache
def _finish_at_exit() -> None:
    """What is at work when the program ends is waited for; registered once.

    Orbax takes threads of pools, which Python refuses as soon as it begins to end. What ``atexit``
    calls comes after that; what ``threading`` calls, as those pools use it themselves, before.
    """
    getattr(threading, "_register_atexit", atexit.register)(_finish)


def _finish() -> None:
    for background in list(_at_work):
        try:
            background.wait()
        except BaseException:
            print("a checkpoint could not be written", file=sys.stderr)
            traceback.print_exc()


class Restored(NamedTuple):
    """A checkpoint held this.

    Attributes:
        state: the state, laid out as the one that was asked for.
        loop: what the loop had noted, as JSON holds it.
        extra: further arrays, in nested dictionaries, lists and tuples.
        step: of the checkpoint.
    """

    state: TrainState
    loop: dict[str, Any]
    extra: Any
    step: int


class Checkpoints:
    """A folder holds checkpoints; give it to ``fit``, or save and restore by hand.

    Args:
        directory: the folder; made by the first save if it is not there.
        every_steps: ``fit`` saves after every so many steps, too.
        every_epochs: ``fit`` saves after every so many epochs; None: not by epochs.
        keep: how many of the last checkpoints are kept; None: all.
        best: the number whose best checkpoint is kept beside them, "val_loss" for instance.
        mode: whether "min" or "max" of it is best.
        asynchronous: write while training goes on.

    Raises:
        TrainingError: an option makes no sense, or Orbax is not installed.
        CheckpointError: the directory is a file.

    Example:
        >>> import optax, tempfile
        >>> from functional_bp import train
        >>> state = train.init({"w": 1.0}, optax.sgd(0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with train.Checkpoints(folder) as checkpoints:
        ...         checkpoints.save(0, state)
        ...         float(checkpoints.restore(state).state.params["w"])
        1.0
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every_steps: int | None = None,
        every_epochs: int | None = 1,
        keep: int | None = 3,
        best: str | None = "val_loss",
        mode: str = "min",
        asynchronous: bool = True,
    ) -> None:
        counts = {"every_steps": every_steps, "every_epochs": every_epochs, "keep": keep}
        for name, count in counts.items():
            if count is not None and (type(count) is not int or count < 1):
                raise TrainingError(f"{name} is no count", got=repr(count),
                                    expected="1 or more, or None")  # fmt: skip
        if mode not in ("min", "max"):
            raise TrainingError("mode is neither", got=repr(mode), expected="'min' or 'max'")
        if "://" in str(directory):
            raise TrainingError(
                "checkpoints lie in a folder of this machine", got=str(directory),
                do="save there, and copy the folder; a copy can be restored from"
            )  # fmt: skip
        require_orbax()
        self.directory = Path(directory).expanduser().absolute()
        self.every_steps, self.every_epochs = every_steps, every_epochs
        self._keep, self._best, self._sign = keep, best, 1 if mode == "min" else -1
        self._asynchronous = asynchronous
        self._folder = Folder(self.directory)
        self._background = Background()

    def save(
        self,
        step: int,
        state: TrainState,
        loop: Mapping[str, Any] | None = None,
        extra: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """The arrays are copied before this returns, and written behind it.

        Args:
            step: the name of the checkpoint; one of the same step is replaced.
            state: the state.
            loop: what JSON can hold.
            extra: arrays in nested dictionaries, lists and tuples.
            metrics: the numbers among which ``best`` is.

        Raises:
            CheckpointError: a leaf or ``loop`` cannot be saved, or the save before this one failed.
        """
        if not isinstance(step, int | np.integer) or step < 0:
            raise CheckpointError("a checkpoint is named by its step", got=repr(step),
                                  expected="0 or more")  # fmt: skip
        self.wait()
        leaves = [(jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree.leaves_with_path(state)]
        in_state, bones = len(leaves), skeleton("extra", extra, leaves)
        described = [facts(path, leaf) for path, leaf in leaves]
        content = {
            "step": int(step),
            "state": described[:in_state],
            "extra": described[in_state:],
            "skeleton": bones,
            "loop": _as_json(dict(loop or {})),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        }
        copies = in_host_memory([leaf for _, leaf in leaves])
        pairs = zip(names(described), copies, strict=True)
        named = {name: copy for name, copy in pairs if name and copy is not None}
        write = partial(self._folder.write, int(step), named, content, self._kept)
        self._background.start(write)
        if not self._asynchronous:
            self.wait()

    def steps(self) -> list[int]:
        """The steps of all checkpoints come in the order they were saved in, the newest last."""
        self.wait()
        return [entry.step for entry in self._folder.entries()]

    def latest(self) -> int | None:
        """The newest checkpoint is of this step; None where there is none."""
        return next(reversed(self.steps()), None)

    def best(self) -> int | None:
        """The best checkpoint is of this step; None where none has the number.

        One whose manifest cannot be read is passed over; a number which is not finite is no best.
        """
        self.wait()
        entry = self._best_entry()
        return entry and entry.step

    def restore(
        self, like: TrainState, *, step: int | str | None = None, fallback: bool = False
    ) -> Restored:
        """A checkpoint is read, its every byte compared with the checksums of when it was saved.

        Args:
            like: a state of the structure, shapes and dtypes that are expected. Every array is
                placed on devices as the one of ``like``, whatever mesh it was saved from.
            step: of the checkpoint, or "best"; by default the newest.
            fallback: where it is not whole, take the newest one that is, and warn.

        Raises:
            CheckpointError: there is none, it is not whole, or it is of another state.
        """
        self.wait()
        best = self._best_entry() if step == "best" else None
        others = [*([best] if best else []), *reversed(self._folder.entries())]
        failures: list[BrokenError] = []
        for entry in dict.fromkeys([self._chosen(step), *others]):
            try:
                found = self._read(entry, like)
            except BrokenError as error:
                if not fallback:
                    raise
                failures.append(error)
                continue
            if failures:
                taken = f"taken instead: the checkpoint of step {found.step}"
                warn(f"{failures[0]}\n{taken}")
            return found
        raise CheckpointError("no checkpoint here is whole", where=str(self.directory),
                              got="\n".join(map(str, failures))) from failures[0]  # fmt: skip

    def wait(self) -> None:
        """This returns when everything is written.

        Raises:
            CheckpointError: it could not be, as on a full disk.
        """
        try:
            self._background.wait()
        except Exception as error:
            raise CheckpointError(
                "a checkpoint could not be written", where=str(self.directory),
                got=f"{type(error).__name__}: {error}",
                expected="room and permission to write; those saved before are whole"
            ) from error  # fmt: skip

    def close(self) -> None:
        """This waits; nothing else is held."""
        self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _kept(self) -> set[Saved]:
        """The last ones, the best one, and whatever cannot be read."""
        entries, best = self._folder.entries(), self._best_entry()
        last = entries if self._keep is None else entries[-self._keep :]
        return {*last, *self._folder.unread(), *([best] if best else [])}

    def _chosen(self, step: int | str | None) -> Saved:
        entries = self._folder.entries()
        if not entries:
            raise self._folder.empty()
        if step is None:
            return entries[-1]
        if step == "best":
            # One that cannot be read may have been it: its error says so, here and not in best().
            unread = [entry for entry in entries if not self._folder.is_known(entry)]
            entry = unread[0] if unread else self._best_entry()
            if entry is not None:
                return entry
            got = f"none of the steps {[entry.step for entry in entries]} with a finite number"
            raise CheckpointError(f"there is no best checkpoint by {self._best!r}",
                                  where=str(self.directory), got=got,
                                  do="give validation data, or name a step")  # fmt: skip
        for entry in entries:
            if entry.step == step:
                return entry
        raise CheckpointError(f"there is no checkpoint of step {step!r}", where=str(self.directory),
                              got=f"steps {[entry.step for entry in entries]}",
                              expected="one of them")  # fmt: skip

    def _best_entry(self) -> Saved | None:
        found = []
        for entry in self._folder.entries() if self._best else ():
            if self._folder.is_known(entry):
                value = self._folder.manifest(entry)["metrics"].get(self._best, math.nan)
                if math.isfinite(value):
                    found.append((self._sign * value, entry))  # of equal ones the first
        return min(found)[-1] if found else None

    def _read(self, entry: Saved, like: TrainState) -> Restored:
        content = self._folder.manifest(entry)
        described, in_state = [*content["state"], *content["extra"]], len(content["state"])
        wanted = [
            (facts(jax.tree_util.keystr(path), leaf), leaf)
            for path, leaf in jax.tree.leaves_with_path(like)
        ]
        compare(entry.step, described[:in_state], [fact for fact, _ in wanted])
        stored = self._folder.arrays(entry, content, [name for name in names(described) if name])
        likes = [leaf for _, leaf in wanted] + [None] * len(content["extra"])
        leaves = [
            restored(found, stored[name] if name else None, shape_of)
            for found, name, shape_of in zip(described, names(described), likes, strict=True)
        ]
        return Restored(
            jax.tree.unflatten(jax.tree.structure(like), leaves[:in_state]),
            content["loop"],
            filled(content["skeleton"], leaves),
            entry.step,
        )


def _as_json(loop: dict[str, Any]) -> Any:
    """As it is now; what is noted later is not of this checkpoint."""
    try:
        return json.loads(json.dumps(loop))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "JSON cannot hold what a checkpoint is to note of the loop", got=str(error),
            expected="dicts, lists, strings, numbers of Python, None",
            do="float(...) of a scalar; arrays go into extra"
        ) from error  # fmt: skip
