"""A context holds one check in progress: where it starts, its judge, and what it has found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp import _jax
from functional_bp.errors import ClaimError
from functional_bp.gradcheck.claims import looks_at_values, run_each_time
from functional_bp.gradcheck.clock import TimeUp, now
from functional_bp.gradcheck.diagnosis.diagnose import diagnose
from functional_bp.gradcheck.evaluation import Evaluation, Point, to_numpy
from functional_bp.gradcheck.findings import Finding, Kind, Outcome, Row, worst_entries
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import (
    CLASSES,
    GIVEN,
    NEAR,
    IndexRange,
    InputClass,
    Integers,
    Trait,
    draw,
    index_ranges,
)
from functional_bp.gradcheck.judging import (
    DifferenceJudge,
    Judgement,
    Limits,
    ReferenceJudge,
    numeric_cotangents,
)
from functional_bp.gradcheck.subject import (
    Disagreement,
    Sample,
    Subject,
    distance,
    farthest,
    normal,
    single,
)
from functional_bp.graph import interpret

LARGE = 50_000  # elements; above, fewer inputs are searched and second order is left out
FRESH_TRIES = 6  # draws of a further failing sample
NEARLY_RIGHT = 1e-2  # relative error below which a claim is close to the truth
SETTLED = 1e-9  # relative; an iteration that one more step changes by less has converged


class CheckContext:
    """A context holds what the stages of a check share.

    Args:
        subject: the claim.
        seed: of every random draw.
        quick: the given inputs and a short search alone.
        seconds: the time after which no further stage begins.
        is_declared: the truth is what ``expect=`` declares, not the derivative.
    """

    def __init__(
        self, subject: Subject, *, seed: int, quick: bool, seconds: float, is_declared: bool
    ) -> None:
        self.subject, self.quick, self.is_declared = subject, quick, is_declared
        self.deadline = time.monotonic() + seconds
        self.overtime = overtime(seconds)
        self.rng = np.random.default_rng([seed, 20240607])
        self.findings: list[Finding] = []
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.reasons: list[str] = []
        self.kinks: list[str] = []  # classes of inputs on which the claim differs in convention
        self.size = sum(int(np.size(x)) for x in subject.actives)
        self.is_large = self.size > LARGE
        self.full, self.low, self.point = self._start()
        self.first_call = self._first_call()  # before the claim is traced, lest it remember that
        if subject.traceable and looks_at_values(subject):
            self.subject = subject = run_each_time(subject)
            self.full, self.low, self.point = self._start()
        self.graph, self.consts = self._graph()
        self.integer_ranges = self._integer_ranges()
        self.iterative = self.graph is not None and interpret.has_while(self.graph)
        self.limits = Limits(self.full, self.low, self.rng)
        self.has_reference = subject.reference is not None
        self.judge: ReferenceJudge | DifferenceJudge = (
            ReferenceJudge(self.full, self.limits, self.rng, iterative=self.iterative,
                           declared=is_declared)
            if self.has_reference
            else DifferenceJudge(self.full, self.limits, self.rng, iterative=self.iterative)
        )  # fmt: skip

    def _start(self) -> tuple[Evaluation, Evaluation | None, Point]:
        """The widest precision that the subject's forward pass runs in, and the given point."""
        subject, first = self.subject, None
        for bits in (64, 32):
            full = Evaluation(subject, bits)
            actives = tuple(full.cast(np.asarray(x)) for x in subject.actives)
            fixed = tuple(_widened(x, full) for x in subject.fixed)
            outs = None
            with Guard(f"the forward pass in float{bits}") as ran:
                outs = full.outs(actives, fixed)
            if outs is None:
                first = first or ran
                continue
            if not outs:
                raise ClaimError(
                    f"{subject.name} returns nothing that has a cotangent",
                    expected="at least one real or complex array",
                )
            if first is not None:
                self.notes.append(f"judged in float32: in float64 the function raises "
                                  f"{first.raised} (a hard-wired dtype?)")  # fmt: skip
            bars = tuple(_draw_bar(self.rng, o) for o in outs)
            low = Evaluation(subject, 32) if bits == 64 and subject.traceable else None
            return full, low, Point(actives, fixed, bars)
        assert first is not None
        raise ClaimError(
            f"{subject.name} cannot be called with the given arguments",
            got=f"{first.raised}: {first.message}",
            expected="arguments that the forward pass takes",
        ) from first.error

    def _first_call(self) -> Any:
        """The cotangents of the very first call; None where it raises (``structure`` tells how)."""
        if self.quick:
            return None
        with Guard("the first call"):
            return to_numpy(self.subject.pull(*self.native)[1])
        return None

    def _graph(self) -> tuple[Any, Sequence[Any]]:
        """The graph of claim and reference and its constants, None where there is no such thing."""
        subject = self.subject
        if not subject.traceable:
            return None, ()
        with Guard("the claim, traced"):
            return self.full.graph(self.point)
        return self._forward  # the stages themselves judge a claim that cannot be traced

    def _integer_ranges(self) -> list[IndexRange | None]:
        """For each leaf that is not judged, the integers that make sense there, if it indexes."""
        forward = self.forward_graph if self.subject.fixed else None
        found: dict[int, IndexRange] = {} if forward is None else index_ranges(forward)
        first = len(self.subject.actives)
        return [found.get(first + k) for k in range(len(self.subject.fixed))]

    @cached_property
    def forward_graph(self) -> Any:
        """Return the jaxpr of the forward pass, or of the reference if any; None if untraceable."""
        if not self.subject.traceable:
            return None
        return self._forward[0]

    @cached_property
    def _forward(self) -> tuple[Any, Sequence[Any]]:
        fun = self.subject.reference or self.subject.value
        with self.full.precision():
            closed = jax.make_jaxpr(fun)(self.point.actives, self.point.fixed)
        return _jax.open_jaxpr(closed)

    @property
    def time_left(self) -> float:
        """Return the seconds until no further stage begins."""
        return self.deadline - time.monotonic()

    @property
    def patience(self) -> float:
        """Return the seconds until what is under way is interrupted."""
        return self.time_left + self.overtime

    @property
    def native(self) -> Point:
        """Return the given arguments in their own dtypes, cotangents in those of the outputs."""
        subject = self.subject
        if not subject.traceable:
            return self.point
        outs = jax.eval_shape(subject.value, subject.actives, subject.fixed)
        rng = np.random.default_rng(7)
        bars = tuple(jnp.asarray(normal(rng, np.zeros(o.shape), o.dtype)) for o in outs)
        return Point(subject.actives, subject.fixed, bars)

    def is_settled(self, point: Point) -> bool:
        """Tell whether the forward pass's iterations have converged, if they have as given."""
        if self.graph is None or not interpret.holds_iteration(self.graph):
            return True
        with self.full.precision():
            here, there = (
                farthest(to_numpy(self._longer(*at.actives, *at.fixed)),
                         self.full.outs(at.actives, at.fixed))
                for at in (self.point, point)
            )  # fmt: skip
        return here > SETTLED or there <= SETTLED

    @cached_property
    def _longer(self) -> Callable[..., Any]:
        """The forward pass with its iterations a step longer, on a flat list of leaves."""
        fun, count = self.subject.reference or self.subject.value, len(self.subject.actives)
        return jax.jit(interpret.one_step_more(lambda *xs: fun(xs[:count], xs[count:])))

    def leaves_domain(self, point: Point, *, closed: bool = False) -> bool:
        """Tell whether an argument changes sign although all its given entries are of one sign.

        Arguments that are given as positive (or negative) throughout are taken to be meant so.
        ``closed`` takes zero for a part of the domain.
        """
        within = np.greater_equal if closed else np.greater
        return any(
            x.size and x.dtype.kind != "c" and np.all(s * x > 0) and not np.all(within(s * new, 0))
            for x, new in zip(self.point.actives, point.actives)
            for s in (1, -1)
        )

    @cached_property
    def asks_for_sign(self) -> bool:
        """Tell whether the forward pass compares a value with zero."""
        return self.forward_graph is not None and interpret.asks_for_sign(self.forward_graph)

    def new_bars(self, outs: Any = None) -> tuple[np.ndarray, ...]:
        """Draw random cotangents of the outputs, exact in float32."""
        return tuple(_draw_bar(self.rng, b) for b in (outs or self.point.bars))

    def row(self, checked: str, outcome: Outcome, against: str = "", **numbers: Any) -> None:
        """Add a line to the report's table."""
        self.rows.append(Row(checked, outcome, against=against, **numbers))

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def wrong(self, finding: Finding, checked: str, against: str = "", **numbers: Any) -> None:
        """Add a finding, and the line of the table that it belongs to."""
        self.findings.append(finding)
        self.row(checked, Outcome.WRONG, against, **numbers)

    def cut_short(self, what: str) -> None:
        """Note that a search ended because its time was up."""
        self.note(f"{what} was cut short: its time was up")

    def find(
        self,
        point: Point,
        judgement: Judgement,
        *,
        inputs: InputClass = GIVEN,
        kind: Kind | None = None,
        message: str = "",
        smallest: Point | None = None,
        seconds: float = 4.0,
    ) -> None:
        """Add the finding that a wrong judgement stands for, with its diagnosis.

        Args:
            point: where the claim is wrong.
            judgement: how.
            inputs: the class of inputs.
            kind: the kind where it is known already; else the diagnosis names it.
            message: what is known already, in words.
            smallest: a simpler point at which it is wrong as well.
            seconds: the time that the diagnosis may take.
        """
        leaf, result = judgement.leaf, judgement.result
        true = result.true or numeric_cotangents(self.full, point)
        diagnosis = Finding(Kind.OTHER, "")
        masks = judgement.masks
        if true is not None:
            if result.true is None:
                masks = tuple(
                    np.abs(c - t) > 1e-6 * (np.abs(t) + np.max(np.abs(t), initial=0.0))
                    for c, t in zip(result.claimed, true)
                )
            diagnosis = self._diagnose(point, judgement, true, masks, inputs, seconds)
        name = self.subject.names[leaf]
        known = [kind or diagnosis.kind, Kind.OTHER]
        also = [diagnosis.kind, *diagnosis.also]
        if inputs is not GIVEN:
            also.append(Kind.REPEATS if Trait.REPEATS in inputs.traits else Kind.REGION)
        entries: dict[str, Any] = {}
        if true is not None:
            entries = {
                "relative_error": distance(result.claimed[leaf], true[leaf]),
                "wrong_entries": int(masks[leaf].sum()),
                "size": int(masks[leaf].size),
                "entries": worst_entries(result.claimed[leaf], true[leaf]),
            }
        told = " ".join(part for part in (message, diagnosis.message) if part)
        self.findings.append(
            replace(
                diagnosis,
                kind=kind or diagnosis.kind,
                message=told or _unexplained(entries.get("relative_error", 1.0)),
                argument=name,
                inputs=inputs.title,
                also=tuple(k for k in dict.fromkeys(also) if k not in known),
                example=self.example(smallest or point),
                **entries,
            )
        )

    def example(self, point: Point) -> dict[str, np.ndarray]:
        """Return the arguments at a point by name, in the dtypes they were given in if they fit."""
        subject = self.subject
        named = zip(
            (*subject.names, *subject.fixed_names),
            (*subject.actives, *subject.fixed),
            (*point.actives, *point.fixed),
        )
        found: dict[str, np.ndarray] = {}
        for name, given, x in named:
            if jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
                continue
            narrow = np.asarray(x).astype(given.dtype)
            fits = np.array_equal(
                narrow.astype(np.asarray(x).dtype), x, equal_nan=narrow.dtype.kind in "fc"
            )
            found[name] = narrow if fits else np.asarray(x)
        return found

    def _diagnose(
        self, point: Point, judgement: Judgement, true: Any, masks: Any, inputs: InputClass,
        seconds: float,
    ) -> Finding:  # fmt: skip
        result = judgement.result
        given = Sample(
            point.actives, point.fixed, point.bars, result.outs, result.claimed, tuple(true)
        )
        disagreement = Disagreement(
            self.subject, judgement.leaf, given, masks, self._fresh(point, inputs),
            self._residuals(point),
        )  # fmt: skip
        until = now() + min(seconds, max(0.5, self.time_left))
        try:
            with Guard("the diagnosis") as ran:  # it must never change a verdict
                found = diagnose(disagreement, until)
                if found.cut_short:
                    self.cut_short("the diagnosis")
                return found
            error: BaseException | None = ran.error
        except TimeUp as time_up:
            error = time_up
        return Finding(Kind.OTHER, f"(the diagnosis raised {type(error).__name__}: {error})")

    def _fresh(self, point: Point, inputs: InputClass) -> Callable[[], Sample]:
        """Draws further samples of a class of inputs: that class, made of inputs near the given."""
        is_known = inputs in CLASSES
        given = self.point.actives if is_known else point.actives

        def fresh() -> Sample:
            if self.subject.only_here:
                raise ValueError("the claim holds at the given inputs alone")
            for _ in range(FRESH_TRIES):
                kept = Integers.KEPT
                actives, fixed = draw(NEAR, given, point.fixed, self.rng, integers=kept)
                if is_known:
                    actives, _ = draw(inputs, actives, fixed, self.rng, integers=kept)
                moved = Point(actives, fixed, self.new_bars())
                result = self.full.both(moved)
                true = result.true or numeric_cotangents(self.full, moved)
                if true is None or not all(np.all(np.isfinite(t)) for t in true):
                    continue
                return Sample(actives, fixed, moved.bars, result.outs, result.claimed, tuple(true))
            raise ValueError("no further sample could be drawn")

        return fresh

    def _residuals(self, point: Point) -> dict[str, np.ndarray]:
        kept = self.subject.residuals
        if kept is None:
            return {}
        found = None
        with Guard("the forward pass by itself"), self.full.precision():
            found = kept(tuple(map(jnp.asarray, point.actives)), point.fixed)
        items = dict(found).items() if isinstance(found, dict) else []
        return {n: np.asarray(v) for n, v in items if hasattr(v, "dtype")}


def overtime(seconds: float) -> float:
    """Tell how long what is under way when a check's time is up may go on."""
    return max(10.0, seconds / 2)


def _draw_bar(rng: np.random.Generator, out: Any) -> np.ndarray:
    dtype = np.complex128 if np.asarray(out).dtype.kind == "c" else np.float64
    return single(normal(rng, out, dtype)).astype(dtype)


def _widened(x: Any, full: Evaluation) -> Any:
    """A fixed leaf in the precision of the evaluation; integers and keys as they are."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return full.cast(np.asarray(x))
    return x


def _unexplained(relative_error: float) -> str:
    """What is said where no search has found anything."""
    said = "no simple edit or pattern explains the difference"
    if relative_error < NEARLY_RIGHT:
        said += (
            "; it is small, as where the derivative of another approximation of the function is "
            "taken, or a constant has too few digits"
        )
    return said
