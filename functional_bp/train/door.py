"""What ``fit`` is given is looked at before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from functional_bp.errors import BackpropError, TrainingError, compose, describe
from functional_bp.train.checkpoints import Checkpoints
from functional_bp.train.data import checks
from functional_bp.train.data.loaders import LoaderBatches
from functional_bp.train.data.source import Source, source, split
from functional_bp.train.losses import cross_entropy
from functional_bp.train.objective import Context, Supervised
from functional_bp.train.saving import Saver
from functional_bp.train.state import TrainState
from functional_bp.train.step import Step


def check_counts(**counts: Any) -> None:
    """Whole numbers of at least 1.

    Raises:
        DataError: one is none.
    """
    for name, value in counts.items():
        checks.check_count(name, value)


def admit(
    data: Any, validation_data: Any, validation_split: float, **options: Any
) -> tuple[Source, Source | None]:
    """The training batches, and the held-out ones or None.

    Raises:
        TrainingError: both kinds of held-out data are given.
        DataError: the data are empty or do not fit together.
    """
    if validation_split and validation_data is not None:
        raise TrainingError(
            compose("held-out data are given twice",
                    got=f"validation_data and validation_split={validation_split}",
                    expected="one of them")
        )  # fmt: skip
    if validation_split:
        data, validation_data = split(data, validation_split)
    training = source(data, **options)
    if validation_data is None:
        return training, None
    unshuffled = {**options, "shuffle": False, "drop_last": False, "steps": None}
    held_out = source(validation_data, what="the validation data", **unshuffled)
    checks.check_like(held_out.first(), training.first())
    return training, held_out


def check_passes(data: Source, held_out: Source | None, epochs: int, every: int) -> None:
    """Refuse iterators that end before the run does.

    Raises:
        DataError: one of them can be passed over once only.
    """
    for part, count in ((data, epochs), (held_out, epochs // every)):
        if isinstance(part, LoaderBatches):
            part.check_passes(count)


def check_step(
    stepper: Step, loss: Callable[..., Any], state: TrainState, data: Source, held_out: Any
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
    except BackpropError:
        raise
    except (TypeError, ValueError) as error:
        arrays = checks.named_arrays(batch)
        raise TrainingError(
            compose(
                "the loss cannot be computed on the first batch",
                got=", ".join(f"{name} {describe(array)}" for name, array in arrays.items()),
                expected="shapes and dtypes that the model takes",
                do="see the error above, which names the operation",
            )
        ) from error
    return logs


def _check_labels(
    loss: Supervised, state: TrainState, batch: Any, data: Source, held_out: Source | None
) -> None:
    """Labels of every array of the data, in the range of the model's scores."""
    if loss.loss is not cross_entropy:
        return
    context = Context(rng=state.step_rng, model_state=state.model_state, training=True)
    scores, _ = jax.eval_shape(lambda p, x: loss.apply(p, x, context), state.params, batch[0])
    for part, what in ((data, "the training data"), (held_out, "the validation data")):
        if part is not None:
            arrays = getattr(part, "arrays", None)
            labels = np.asarray((part.first() if arrays is None else arrays)[1])
            checks.check_labels(labels, scores.shape[-1], what=what)


def saver(
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
        raise TrainingError(
            compose("resume cannot be this", got=repr(resume),
                    expected="True, False or 'fallback'")
        )  # fmt: skip
    if checkpoints is None:
        return None
    owned = not isinstance(checkpoints, Checkpoints)
    folder = Checkpoints(checkpoints) if not isinstance(checkpoints, Checkpoints) else checkpoints
    if not resume and folder.latest() is not None:
        raise TrainingError(
            compose("the folder holds checkpoints already", got=str(folder.directory),
                    expected="an empty folder, with resume=False",
                    do="give another folder, or resume=True to go on from the last of them")
        )  # fmt: skip
    return Saver(folder, identity, owned, fallback=resume == "fallback")
