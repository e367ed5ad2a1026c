"""Edits are tried on the first sample of a program, and verified on the others.

A backward pass is mostly affine in each of its values. There the judged output depends on one
equation's result as on a matrix: an edit costs no more than the equation itself and a product with
the matrix, and thousands can be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis.repair.locations import Edit
from functional_bp.gradcheck.diagnosis.repair.program import (
    Change,
    Changes,
    Instruction,
    Program,
    Values,
)
from functional_bp.gradcheck.diagnosis.repair.rewrites import Renamed, Twin
from functional_bp.gradcheck.findings import Kind
from functional_bp.gradcheck.guard import Guard

# The matrix of an equation.

PATIENCE = 24  # edits of one equation before its matrix is worth its price
MOST = 64  # entries of a result; each costs a run of what lies downstream
AFFINE_TOLERANCE = 1e-9  # relative to the change


@dataclass(frozen=True)
class Downstream:
    """The judged output depends on one equation's result as on a matrix.

    Attributes:
        equation: whose result it is.
        values: of every slot, before an edit of the equation.
        present: the judged output then.
        slope: the derivative of the judged output in the entries of the result.
    """

    equation: Instruction
    values: Values
    present: np.ndarray
    slope: np.ndarray

    def output(self, edit: Edit, constant: float) -> np.ndarray | None:
        """The judged output under an edit of the equation is this; None if only a run can tell."""
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
    """The equations' matrices are made when enough edits of an equation were tried."""

    def __init__(self, program: Program, vector: Callable[[Sequence[Any]], np.ndarray]) -> None:
        self.program, self.vector = program, vector
        self.equations = {e.key: e for e in program.equations if len(e.results) == 1}
        self.under: Changes | None = None
        self.start: Values = {}
        self.waiting: dict[int, int] = {}
        self.made: dict[int, Downstream | None] = {}

    def of(self, key: int, values: Values, under: Changes) -> Downstream | None:
        """The matrix of an equation once other changes are made is this, if it is known by now."""
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
        self.made[key] = None
        with Guard("a program on other values", may_misfit=True):  # else it is run as a whole
            self.made[key] = self._matrix(key, under)
        return self.made[key]

    def _matrix(self, key: int, under: Changes) -> Downstream | None:
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
            if np.linalg.norm(found - expected) > AFFINE_TOLERANCE * np.linalg.norm(expected):
                return None
        return Downstream(self.equations[key], self.start, present, slope)


MOST_ATTEMPTS = 30_000  # edits that are tried one at a time
EXACT = 1e-7  # relative error of an output that counts as right
NEAR = 1e-5  # the same where the edit took away all but a ten-thousandth of the error
AFFINE = 1e-6  # a remainder that shows that the constant solved for explains the whole error
GIVEN = {1.0: (-1.0, 2.0, 0.5, 0.0), 0.0: (1.0, -1.0)}  # by what changes nothing: constants tried


@dataclass(frozen=True)
class ProgramRun:
    """On one sample, every value of the program is known, and the outputs as they should be."""

    values: Values
    wanted: Sequence[np.ndarray]


@dataclass(frozen=True)
class Tried:
    """An edit changes the judged output on the first sample, and leaves an error."""

    edit: Edit
    change: np.ndarray
    error: float  # what is left, relative to the error without the edit


class Validator:
    """The validator tries edits on the first sample and verifies them on the others."""

    def __init__(
        self,
        program: Program,
        draw: Callable[[int], tuple[Sequence[Any], Sequence[np.ndarray]]],
        judged: int,
        limit: TimeLimit,
        samples: int = 3,
        twins: Mapping[int, Sequence[Twin]] | None = None,
    ) -> None:
        self.program, self.judged, self.limit = program, judged, limit
        self.twins = twins or {}
        self._draw, self._count = draw, samples
        self._points: list[ProgramRun] = []
        first = self.point(0)
        outs = program.outs(first.values)
        self.errors = [_distance(out, want) for out, want in zip(outs, first.wanted)]
        self.wrong = [
            i
            for i, (error, want) in enumerate(zip(self.errors, first.wanted))
            if i == judged or not error <= EXACT * _norm(want)
        ]
        self.present = self.vector(outs)
        self.missing = self.vector(first.wanted) - self.present
        finite = np.isfinite(self.missing)
        self.seen = np.flatnonzero(finite)
        self.size = float(np.linalg.norm(self.missing[self.seen]))
        self.matrices = Matrices(program, self.vector)
        self.tried: list[Tried] = []
        self.attempts, self.most = 0, MOST_ATTEMPTS

    @property
    def late(self) -> bool:
        """Whether enough has been tried, or the time is up."""
        return self.attempts >= self.most or self.limit.is_reached

    def changes(self, *edits: Edit, constant: float = 0.0) -> dict[int, Change]:
        """The edits take the form that a program applies, each in every turn of a loop."""
        made: dict[int, Change] = {}
        for edit in edits:
            made[edit.site] = partial(_applied, edit, constant)
            for twin in self.twins.get(edit.site, ()):
                if edit.by_turn is not None or twin.equation.name != "slice":
                    made[twin.key] = partial(_applied, edit, constant, twin=twin)
        return made

    def vector(self, outs: Sequence[Any]) -> np.ndarray:
        """The judged output stands in a row; complex numbers are two real ones."""
        out: Any = np.ravel(outs[self.judged])
        return np.concatenate([out.real, out.imag]) if out.dtype.kind == "c" else out

    def point(self, number: int) -> ProgramRun:
        """A sample is drawn when it is first needed."""
        while len(self._points) <= number:
            inputs, wanted = self._draw(len(self._points))
            self._points.append(ProgramRun(self.program.run(inputs), wanted))
        return self._points[number]

    def outs(self, changes: Changes, number: int = 0) -> list[Any]:
        """The changes give these outputs; raises what NumPy raises where they do not fit."""
        values = self.program.rerun(self.point(number).values, changes)
        return self.program.outs(values)

    def is_right(self, outs: Sequence[Any], number: int = 0, whole: bool = False) -> bool:
        """Whether the judged output is right and none that was right is broken.

        ``whole`` asks that every output is right.
        """
        wanted = self.point(number).wanted
        for i, (out, want) in enumerate(zip(outs, wanted)):
            if i in self.wrong and i != self.judged and not whole:
                continue
            if np.shape(out) != np.shape(want):
                return False
            distance, size = _distance(out, want), _norm(want)
            before = self.errors[i] if i in self.wrong and number == 0 else np.inf
            better = number > 0 or distance <= 1e-4 * before or not np.isfinite(before)
            if distance > 1e-2 * before and distance > 1e-13 * size:
                return False  # an error below the limit is one all the same
            if not (distance <= EXACT * size or (better and distance <= NEAR * size)):
                return False
        return True

    def attempt(self, edit: Edit, under: Changes, *, keep: bool = True) -> Edit | None:
        """The edit, its constant solved for, makes the first sample right; else None."""
        self.attempts += 1
        with Guard("an edited program", may_misfit=True):  # whatever does not fit is no repair
            if edit.settle is not None:
                return self._solve(edit, under, keep)
            if keep and (out := self._predicted(edit, under)) is not None:
                if not under:
                    self._note(edit, out - self.present)
                if not self._is_near(out):
                    return None
            outs = self.outs({**under, **self.changes(edit)})
            wanted = self.point(0).wanted[self.judged]
            out = np.asarray(outs[self.judged])
            if out.shape != wanted.shape or out.dtype.kind != wanted.dtype.kind:
                return None
            if keep and not under and self._matrix(edit, under) is None:
                self._note(edit, self.vector(outs) - self.present)
            return edit if self.is_right(outs) else None
        return None

    def _matrix(self, edit: Edit, under: Changes) -> Downstream | None:
        """How the judged output depends on the edited equation, where that is known."""
        if self.twins.get(edit.site):
            return None
        return self.matrices.of(edit.site, self.point(0).values, under)

    def _predicted(self, edit: Edit, under: Changes, constant: float = 0.0) -> np.ndarray | None:
        """The judged output under an edit, without a run."""
        found = self._matrix(edit, under)
        return None if found is None else found.output(edit, constant)

    def _is_near(self, out: np.ndarray) -> bool:
        """Whether the judged output comes near to what is wanted, so that a run is worth it."""
        wanted = self.present[self.seen] + self.missing[self.seen]
        return bool(np.linalg.norm(out[self.seen] - wanted) <= 10 * NEAR * np.linalg.norm(wanted))

    def _note(self, edit: Edit, change: np.ndarray) -> None:
        if self.size == 0 or len(self.tried) > 6000:
            return
        change = change[self.seen]
        if not np.all(np.isfinite(change)) or not change.any():
            return
        left = float(np.linalg.norm(self.missing[self.seen] - change)) / self.size
        self.tried.append(Tried(edit, change, left))

    def _solve(self, edit: Edit, under: Changes, keep: bool) -> Edit | None:
        start, settle = edit.start, edit.settle
        assert start is not None and settle is not None
        changed = 1.0 if start in GIVEN else max(abs(start), 1.0) * 0.5

        def out(c: float) -> np.ndarray:
            found = self._predicted(edit, under, c)
            if found is not None:
                return found
            return self.vector(self.outs({**under, **self.changes(edit, constant=c)}))

        present = out(start) if under else self.present
        missing = self.vector(self.point(0).wanted) - present
        slope = (out(start + changed) - present) / changed
        known = np.isfinite(slope) & np.isfinite(missing)
        slope, left = np.where(known, slope, 0.0), np.where(known, missing, 0.0)
        square = float(slope @ slope)
        if square == 0 or not known.any():
            return None
        step = float(slope @ left) / square
        rest = float(np.linalg.norm(left - step * slope))
        if keep and not under:
            self._note(edit, np.where(known, slope, 0.0))
        if rest <= AFFINE * float(np.linalg.norm(left)):
            found = self._settled(settle, start + step, under)
            if found is not None or self._is_affine(out, present, slope, start, changed):
                return found
            return self._settled(settle, self._newton(out, start), under)  # as for a divisor
        if start in GIVEN and edit.kind != Kind.WRONG_CONSTANT:
            if square and rest > 0.999999 * float(np.linalg.norm(left)) and edit.start == 0.0:
                return None
            if self._is_affine(out, present, slope, start, changed):
                return None
            for c in GIVEN[start]:
                found = self._settled(settle, c, under)
                if found is not None:
                    return found
            return None
        if self._is_affine(out, present, slope, start, changed):
            return None
        return self._settled(settle, self._newton(out, start), under)

    def _is_affine(
        self, out: Callable[[float], np.ndarray], present: Any, slope: Any, start: float, h: float
    ) -> bool:
        """Whether a second step shows the same slope, so that no constant can help."""
        other = np.nan_to_num(out(start - h) - present)
        return bool(np.linalg.norm(other + h * slope) <= 1e-9 * np.linalg.norm(h * slope))

    def _newton(self, out: Callable[[float], np.ndarray], start: float) -> float:
        wanted, c = self.vector(self.point(0).wanted), start
        for _ in range(12):
            h = 1e-5 * max(abs(c), 1e-3)
            present = out(c)
            slope = np.nan_to_num((out(c + h) - out(c - h)) / (2 * h))
            square = float(slope @ slope)
            if square == 0:
                break
            step = float(slope @ np.nan_to_num(wanted - present)) / square
            c += step
            if abs(step) <= 1e-12 * max(abs(c), 1e-12):
                break
        return c

    def _settled(
        self, settle: Callable[[float], Edit | None], c: float, under: Changes
    ) -> Edit | None:
        found = settle(c)
        return None if found is None else self.attempt(found, under, keep=False)

    def holds(self, changes: Changes, whole: bool = False) -> bool:
        """Whether the changes make every sample right."""
        with Guard("an edited program on fresh samples", may_misfit=True):
            return all(
                self.is_right(self.outs(changes, number), number, whole)
                for number in range(self._count)
            )
        return False


def _applied(
    edit: Edit, constant: float, operands: Any, values: Any, twin: Twin | None = None
) -> Any:
    if twin is not None and edit.by_turn is not None:
        return edit.by_turn(twin.equation, operands)
    seen: Any = values if twin is None else Renamed(values, twin.renaming)
    return edit.compute(operands, seen, constant)


def unsettled(edit: Edit, step: float) -> Edit | None:
    """The constant of an edit was solved for beside another edit's; None if no one meant it."""
    assert edit.settle is not None and edit.start is not None
    return edit.settle(edit.start + step)


def _norm(x: Any) -> float:
    x = np.ravel(x)
    return float(np.linalg.norm(x[np.isfinite(x)])) if x.size else 0.0


def _distance(out: Any, want: Any) -> float:
    """‖out − want‖ over the entries whose true value is finite; infinite where out is not."""
    if np.shape(out) != np.shape(want):
        return np.inf
    known = np.isfinite(want)
    gap = np.where(known, out, 0.0) - np.where(known, want, 0.0)
    size = float(np.linalg.norm(np.ravel(gap)))
    return size if np.isfinite(size) else np.inf
