"""A loss or a gradient that is not finite: which parameter, which step, which equation first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from functional_bp.errors import NonFiniteError, compose
from functional_bp.explain.explanation import explain
from functional_bp.train.gradients import Gradients
from functional_bp.train.objective import Context, as_objective
from functional_bp.train.state import TrainState


def nonfinite_error(
    loss: Callable[..., Any], gradients: Gradients, state: TrainState, batch: Any, where: str
) -> NonFiniteError:
    """The error for the step that comes after ``state``, on the batch that made it fail.

    Args:
        loss: the objective.
        gradients: those of the step.
        state: the last good state; the failing step starts from it.
        batch: the batch of that step.
        where: the step and the epoch in words.
    """
    found = jax.device_get(jax.jit(lambda s, b: gradients(s, b)[:2])(state, batch))
    value, params_bar = found
    rows = [
        f"{_name(path)} ({int(np.sum(~np.isfinite(leaf)))} of {leaf.size} entries)"
        for path, leaf in jax.tree.leaves_with_path(params_bar)
        if not np.all(np.isfinite(leaf))
    ]
    first = _first_equation(loss, state, batch)
    lines = [f"the loss is {float(value)}"]
    lines += [f"the gradient is not finite for {', '.join(rows[:6])}" + _rest(rows)] if rows else []
    text = compose(
        "training met a number that is not finite",
        where=where,
        got="; ".join(lines),
        expected="finite loss and gradients",
        do=("mend the equation below; " if first is not None else "")
        + "a smaller learning rate or clip_norm=1.0 helps where numbers grow,\n"
        "            and nonfinite='skip' leaves such steps out. The state is the last good one.",
    )
    if first is not None:
        text += "\n\n" + str(first)
    return NonFiniteError(text, first)


def _first_equation(loss: Callable[..., Any], state: TrainState, batch: Any) -> Any:
    """The first equation that makes it, forward or backward; None where the search fails."""
    objective = as_objective(loss)

    def value(params: Any, batch: Any) -> Any:
        context = Context(state.step_rng, state.model_state, True)
        return objective(params, batch, context).loss

    try:
        return explain(value, state.params, batch).first_nonfinite()
    except Exception:  # the diagnosis must not hide what it is to explain
        return None


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "params"


def _rest(rows: list[str]) -> str:
    return f" and {len(rows) - 6} more" if len(rows) > 6 else ""
