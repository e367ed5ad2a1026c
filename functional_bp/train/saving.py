"""What a checkpoint of a run holds beside the state, and how a run goes on from it."""

from __future__ import annotations

from typing import Any

import jax

from functional_bp.errors import CheckpointError, compose
from functional_bp.train.checkpoints import Checkpoints
from functional_bp.train.history import History
from functional_bp.train.state import TrainState


class Saver:
    """Saves a loop when it is time to, and restores one.

    Attributes:
        checkpoints: the folder.
        identity: what a run must share with the one that it goes on from.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        identity: dict[str, Any],
        owned: bool,
        fallback: bool = False,
    ) -> None:
        self.checkpoints, self.identity, self._owned = checkpoints, identity, owned
        self._fallback, self._saved = fallback, -1

    def is_due(self, step: int) -> bool:
        """Whether to save in the middle of an epoch, before this step is taken.

        Before a step, not after the last one: behind the end of an epoch there is none, and the
        epoch's own checkpoint, which knows the validation, has that step's name.
        """
        every = self.checkpoints.every_steps
        return every is not None and step % every == 0 and step not in (0, self._saved)

    def after_epoch(self, loop: Any, logs: dict[str, float]) -> None:
        """Save after every ``every_epochs`` epochs."""
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
        """Save a loop that has done ``batches`` batches of the epoch; once for every step.

        Args:
            loop: the loop.
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
        """Put the loop where its last checkpoint was; returns the epoch and its batches done.

        Raises:
            CheckpointError: the checkpoint is of a run with other data or options, or broken.
        """
        if self.checkpoints.latest() is None:
            return 0, 0
        found = self.checkpoints.restore(loop.present.state, fallback=self._fallback)
        record, run = found.loop, loop.present
        if "identity" not in record:
            raise CheckpointError(
                compose(f"the checkpoint of step {found.step} was not saved by fit",
                        where=str(self.checkpoints.directory),
                        do="give the state of checkpoints.restore(...) as params, and another "
                        "folder")
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
                compose(
                    f"the checkpoint of step {step} is of a run with other data or options",
                    got=", ".join(f"{k}={self.identity[k]}" for k in changed),
                    expected=", ".join(f"{k}={before.get(k)}" for k in changed),
                    do="give the same data and options to go on from it, or another folder; to "
                    "begin a\n            new run at its state, give checkpoints.restore(...)"
                    ".state as params",
                )
            )

    def close(self) -> None:
        """Wait until all is written."""
        self.checkpoints.wait()
        if self._owned:
            self.checkpoints.close()


def _as_parts(state: TrainState, leaves: list[Any]) -> Any:
    """Arrays that a callback kept of a state, as parts of one; the leaves if they are none."""
    parts = {"params": state.params}
    if state.model_state is not None:
        parts["model_state"] = state.model_state
    like, structure = jax.tree.flatten(parts)
    if [(x.shape, x.dtype) for x in like] != [(x.shape, x.dtype) for x in leaves]:
        return leaves
    return structure.unflatten(
        [jax.device_put(x, y.sharding) for x, y in zip(leaves, like, strict=True)]
    )
