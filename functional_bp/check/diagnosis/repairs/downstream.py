"""How the judged output depends on one equation's result: as a matrix, where it is affine in it.

A backward pass is mostly affine in each of its values. There an edit of one equation costs no
more than the equation itself and a product with a matrix, and thousands can be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from functional_bp.check.diagnosis.repairs.edits.edit import Edit
from functional_bp.check.diagnosis.repairs.program import Change, Equation, Program, Values

PATIENCE = 24  # edits of one equation before its matrix is worth its price
MOST = 64  # entries of a result; each costs a run of what lies downstream
AFFINE = 1e-9  # relative to the change


@dataclass(frozen=True)
class Downstream:
    """The judged output around one equation's result.

    Attributes:
        equation: whose result it is.
        values: of every slot, before an edit of the equation.
        present: the judged output then.
        slope: the derivative of the judged output in the entries of the result.
    """

    equation: Equation
    values: Values
    present: np.ndarray
    slope: np.ndarray

    def output(self, edit: Edit, constant: float) -> np.ndarray | None:
        """The judged output under an edit of the equation; None if only a run can tell."""
        before = self.values[self.equation.key]
        operands = [self.values[slot] for slot in self.equation.operands]
        made = edit.compute(operands, self.values, constant)
        if isinstance(made, list) or np.shape(made) != np.shape(before):
            return None
        step = np.ravel(np.asarray(made) - before)
        if step.dtype.kind != "f" or not np.isfinite(step).all():
            return None
        return self.present + self.slope @ step


class Matrices:
    """The equations' matrices, each made when enough edits of its equation were tried."""

    def __init__(self, program: Program, vector: Callable[[Sequence[Any]], np.ndarray]) -> None:
        self.program, self.vector = program, vector
        self.equations = {e.key: e for e in program.equations if len(e.results) == 1}
        self.under: Mapping[int, Change] | None = None
        self.start: Values = {}
        self.waiting: dict[int, int] = {}
        self.made: dict[int, Downstream | None] = {}

    def of(self, key: int, values: Values, under: Mapping[int, Change]) -> Downstream | None:
        """The matrix of an equation once other changes are made, if it is known by now."""
        if under is not self.under:
            self.under, self.start = under, {}
            self.waiting, self.made = {}, {}
        if key in self.made:
            return self.made[key]
        self.waiting[key] = self.waiting.get(key, 0) + 1
        if key not in self.equations or self.waiting[key] < PATIENCE:
            return None
        if not self.start:
            self.start = self.program.rerun(values, under) if under else values
        try:
            self.made[key] = self._matrix(key, under)
        except Exception:  # what cannot be run on other values is run as a whole each time
            self.made[key] = None
        return self.made[key]

    def _matrix(self, key: int, under: Mapping[int, Change]) -> Downstream | None:
        before = self.start[key]
        size = np.size(before)
        if getattr(before, "dtype", np.dtype(int)).kind != "f" or not 0 < size <= MOST:
            return None

        def out(result: np.ndarray) -> np.ndarray:
            changes = {**under, key: lambda operands, values: result}
            return self.vector(self.program.outs(self.program.rerun(self.start, changes)))

        present = self.vector(self.program.outs(self.start))
        unit = 1.0 + float(np.max(np.abs(before)))
        steps = unit * np.eye(size).reshape(size, *np.shape(before))
        slope = np.stack([(out(before + step) - present) / unit for step in steps], axis=1)
        if not np.isfinite(present).all() or not np.isfinite(slope).all():
            return None
        rng = np.random.default_rng(0)
        for scale in (4 * unit, -unit, 0.01 * unit):
            step = scale * rng.standard_normal(np.shape(before))
            found, expected = out(before + step) - present, slope @ step.ravel()
            if np.linalg.norm(found - expected) > AFFINE * np.linalg.norm(expected):
                return None
        return Downstream(self.equations[key], self.start, present, slope)
