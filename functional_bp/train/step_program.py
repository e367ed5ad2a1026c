"""The program of a training step is compiled, within a memory budget where there is one.

The budget is one of the whole program: arguments, what is donated, optimizer and metrics. What of
the loss is made again in the reverse sweep is chosen by compiling the step itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from functional_bp.errors import TrainingError
from functional_bp.memory.allocation import CompiledProgram, program_of
from functional_bp.memory.budgets import BudgetError, Recomputation, share_of
from functional_bp.memory.footprint import FootprintError, abstract
from functional_bp.memory.recompute import Chooser, within
from functional_bp.memory.schedule import Schedule

Budget = int | float | str


class StepProgram:
    """A function that takes a step is called as ``jax.jit`` of it would be.

    Attributes:
        compilations: it was compiled for so many shapes, dtypes and layouts of its arguments.
        choices: within a budget, what is made again for each of these.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        donated: Sequence[int],
        budget: Budget | None = None,
        name: str = "the loss",
    ) -> None:
        """It is compiled when it is called.

        Args:
            run: takes the arguments, and ``choose=``, for the loss to be ``rescheduled`` by.
            donated: the positions of arguments whose buffers are reused.
            budget: that the program is to keep, as of ``step``; None for none.
            name: of the loss.
        """
        self._run, self._donated, self._budget, self._name = run, tuple(donated), budget, name
        self.compilations = 0
        self.choices: dict[Any, Recomputation] = {}
        self._chosen: dict[Any, Any] = {}
        self._plain = self._jitted(None)

    def _jitted(self, choose: Chooser | None) -> Any:
        @functools.wraps(self._run)
        def run(*args: Any) -> Any:
            self.compilations += choose is None  # this body runs when it is traced
            return self._run(*args, choose=choose)

        return jax.jit(run, donate_argnums=self._donated)

    def __call__(self, *args: Any) -> Any:
        """The step is taken."""
        return self._plain(*args) if self._budget is None else self._within(args)(*args)

    def lower(self, *args: Any) -> Any:
        """It is lowered for arguments or their shapes, as ``jax.jit``'s is."""
        return (self._plain if self._budget is None else self._within(args)).lower(*args)

    def _within(self, args: Any) -> Any:
        """The compiled function that keeps the budget for arguments of these shapes."""
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple(map(_layout, leaves))
        if key not in self._chosen:
            self._chosen[key], self.choices[key] = self._search(jax.tree.map(abstract, args))
            self.compilations += 1
        return self._chosen[key]

    def _search(self, shapes: Any) -> tuple[Any, Recomputation]:
        tried: dict[Any, Any] = {}

        def trace(choose: Chooser) -> None:
            jax.eval_shape(lambda *args: self._run(*args, choose=choose), *shapes)

        def program(schedule: Schedule) -> CompiledProgram:
            tried[schedule] = self._jitted(lambda _: schedule)
            return program_of(tried[schedule].lower(*shapes).compile())

        try:
            choice = within(self._budget, trace, program)
        except BudgetError as error:
            raise self._too_small(error) from None
        return tried[choice.schedule], choice

    def _too_small(self, error: BudgetError) -> BudgetError:
        told = BudgetError(
            f"a training step of {self._name} needs more memory than its budget",
            got=error.got,
            expected=error.expected,
            do=f"{error.do}; or take the batch in more parts: a larger accumulate=",
        )
        told.least, told.compilations = error.least, error.compilations
        return told


def _layout(leaf: Any) -> tuple[Any, ...]:
    """What a program is compiled for, of an argument: shape, dtype, and where it lies."""
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", type(leaf))
    is_placed = not isinstance(leaf, Tracer) and getattr(leaf, "committed", True)
    return shape, dtype, getattr(leaf, "sharding", None) if is_placed else None


def checked_budget(budget: Budget | None) -> Budget | None:
    """The budget as it is.

    Raises:
        TrainingError: it is none.
    """
    try:
        if budget is not None:
            share_of(budget)
    except FootprintError as error:
        raise TrainingError(
            "memory cannot be this", got=error.got,
            expected='bytes of a device, a text such as "2 GiB", or a fraction below 1'
        ) from None  # fmt: skip
    return budget
