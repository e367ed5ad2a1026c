"""Other inputs than the given are searched, in every dtype that people use.

First by their classes, then uphill: one search drives the inputs across the thresholds that the
code compares with, the other climbs the disagreement of claim and reference. In each dtype the
claim has to be as precise as a careful implementation: autodiff of the reference in the same dtype;
the truth is float64.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp.engine.sweeps import evaluate
from functional_bp.gradcheck import input_classes
from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.evaluation import Evaluation, Point, Result
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import (
    BEYOND_A_THRESHOLD,
    CLIMBED_TO,
    InputClass,
    Trait,
)
from functional_bp.gradcheck.judging import Judgement, Ruling
from functional_bp.gradcheck.subject import Arrays, all_finite, distance, nudged, single
from functional_bp.graph import interpret
from functional_bp.graph.interpret import unit_of
from functional_bp.graph.nested import called, inner_graphs

BETWEEN = {"lt", "le", "gt", "ge", "max", "min"}
AT_ZERO = {"abs", "sign"}
STEPS = 25
BEYOND = (0.05, 0.5)  # how far past a threshold, in units of the way to it


class Branches:
    """Branches are a graph's comparisons; they know which have been seen both ways.

    Where code compares (``where(p > 100, …)``, ``minimum``, ``clip``, ``abs``) a gradient may be
    wrong on the one side alone. The comparisons stand in the graph; the margin of each, left −
    right, is a function of the inputs, so that its gradient says how to bring it to the other side.

    Args:
        evaluation: the precision to run in.
        jaxpr, consts: the graph of claim and reference, over actives, fixed leaves and cotangents.
    """

    def __init__(self, evaluation: Evaluation, jaxpr: Jaxpr, consts: Sequence[Any]) -> None:
        self.evaluation = evaluation

        def extremes(*point: Arrays) -> Any:
            margins = _margins(jaxpr, consts, jax.tree.leaves(point))
            finite = [(jnp.where(jnp.isfinite(m), m, jnp.nan)).ravel() for m in margins]
            return (
                jnp.stack([jnp.nanmin(m) for m in finite]),
                jnp.stack([jnp.nanmax(m) for m in finite]),
            )

        def towards(actives: Arrays, fixed: Arrays, bars: Arrays, up: Any, down: Any) -> Any:
            lows, highs = extremes(actives, fixed, bars)
            pick = lambda weights, values: jnp.sum(jnp.where(weights != 0, values, 0.0))
            return pick(up, highs) - pick(down, lows)

        self._extremes = jax.jit(extremes)
        self._towards = jax.jit(jax.value_and_grad(towards))
        self.above = self.below = np.zeros(0, bool)
        self.was_cut_short = False  # by the clock

    def see(self, point: Point) -> None:
        """Note on which sides of its comparisons a point lies."""
        lows, highs = self._run(self._extremes, *point)
        if not self.above.size:
            self.above = self.below = np.zeros(lows.shape, bool)
        self.above, self.below = self.above | (highs > 0), self.below | (lows < 0)

    @property
    def counts(self) -> tuple[int, int]:
        """Tell how many comparisons have been seen both ways, and how many there are."""
        return int(np.sum(self.above & self.below)), len(self.above)

    def across(self, start: Point, until: float) -> Iterator[Point]:
        """Search points on the side of a comparison that no point was on, if there are any."""
        for k in range(len(self.above)):
            if self.above[k] == self.below[k]:
                continue
            if self._is_up(until):
                return
            wanted = np.zeros(len(self.above))
            wanted[k] = 1.0
            up, down = (wanted, 0 * wanted) if self.below[k] else (0 * wanted, wanted)
            yield from self._cross(start, up, down, until)

    def _cross(self, start: Point, up: Any, down: Any, until: float) -> Iterator[Point]:
        actives, goals, way = start.actives, list(BEYOND), None
        for _ in range(STEPS):
            height, slopes = self._run(self._towards, actives, *start[1:], up, down)
            height = float(height)
            if way is None:
                way = max(-height, 1e-6)
            while goals and height >= goals[0] * way:
                goals.pop(0)
                yield start._replace(actives=actives)
            if not goals or not np.isfinite(height) or self._is_up(until):
                return
            moved = _step(actives, slopes, 1.2 * goals[0] * way - height)
            if moved is None:
                return
            actives = moved

    def _is_up(self, until: float) -> bool:
        self.was_cut_short = time.monotonic() > until
        return self.was_cut_short

    def _run(self, fun: Any, *args: Any) -> Any:
        with self.evaluation.precision():
            return jax.tree.map(np.asarray, fun(*args))


def holds_comparison(jaxpr: Jaxpr) -> bool:
    """Tell whether a real value is compared with another, where ``Branches`` looks."""
    for eqn in jaxpr.eqns:
        if _compared(eqn):
            return True
        if called(eqn) is not None and holds_comparison(inner_graphs(eqn)[0].jaxpr):
            return True
    return False


def _compared(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name not in (*BETWEEN, *AT_ZERO, "clamp"):
        return False
    avals: list[Any] = [atom.aval for atom in eqn.invars]
    return all(np.issubdtype(aval.dtype, np.floating) for aval in avals)


def _margins(jaxpr: Jaxpr, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """left − right of every comparison, in the order in which they run."""
    margins: list[Any] = []

    def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        if _compared(eqn):
            if eqn.primitive.name in BETWEEN:
                margins.append(operands[0] - operands[1])
            elif eqn.primitive.name == "clamp":
                margins.extend(operands[1] - bound for bound in (operands[0], operands[2]))
            else:
                margins.append(operands[0])
        if called(eqn) is not None:
            inner = inner_graphs(eqn)[0]
            return interpret.interpret(inner.jaxpr, inner.consts, operands, step)
        return evaluate(eqn, operands)

    interpret.interpret(jaxpr, consts, arrays, step)
    return margins


def _step(actives: Arrays, slopes: Arrays, missing: float) -> Arrays | None:
    """A Newton step towards a height, in units of each entry's size, half of it at the most."""
    sizes = [np.abs(x) + 0.1 * np.mean(np.abs(x)) + 1e-9 for x in actives]
    ways = [s**2 * np.conj(g) for s, g in zip(sizes, slopes)]
    gain = float(sum(np.sum(np.abs(s * g) ** 2) for s, g in zip(sizes, slopes)))
    if not np.isfinite(gain) or gain < 1e-200:
        return None
    rate = missing / gain
    longest = max(float(np.max(np.abs(rate * w) / s, initial=0.0)) for w, s in zip(ways, sizes))
    rate *= min(1.0, 0.5 / (longest + 1e-300))
    return tuple(single(x + rate * w).astype(x.dtype) for x, w in zip(actives, ways))


ASCENT_STEPS = 12
SHRINK_SECONDS = 1.0
ASCENT_SECONDS = 1.5
BRANCH_SECONDS = 1.5
ROW = "other inputs"


def searched_inputs(context: CheckContext) -> None:
    """Judge the claim on every class of inputs; the first on which it is wrong is a finding."""
    only = None
    if context.iterative:
        only = Trait.CAREFUL
        context.note("a while_loop decides how long it runs: other inputs are tried near the given")
    elif context.is_large or context.quick:
        only = Trait.FEW
    values = interpret.thresholds(context.graph) if context.graph is not None else []
    came_out: Counter[Ruling] = Counter()
    branches = _branches(context)
    for kind, actives, fixed in input_classes.candidates(
        context.point.actives, context.point.fixed, values, context.rng, only,
        arguments=context.subject.names, ranges=context.integer_ranges,
    ):  # fmt: skip
        if context.time_left < 0:
            context.reasons.append("the time was up before every class of inputs was tried")
            break
        point = Point(actives, fixed, context.new_bars())
        judgement = _judge(context, point)
        outcome = Ruling.OUTSIDE if judgement is None else judgement.outcome
        came_out[outcome] += 1
        if branches is not None and outcome is Ruling.RIGHT:
            branches.see(point)
        elif outcome is Ruling.KINK:
            context.kinks.append(kind.title)
        elif judgement is not None and outcome is Ruling.WRONG:
            _found(context, point, judgement, kind)
            return
    if branches is not None and _crossed(context, branches):
        return
    climbed = None if context.quick else _ascend(context)
    if climbed is not None:
        _found(context, *climbed, CLIMBED_TO)
        return
    outside, unresolved = came_out[Ruling.OUTSIDE], came_out[Ruling.UNRESOLVED]
    tried = came_out.total()
    said = f"{tried} classes of inputs"
    said += f", {outside} outside the domain" if outside else ""
    said += f", {unresolved} unresolved" if unresolved else ""
    if branches is not None and branches.counts[1]:
        said += "; {} of {} comparisons seen both ways".format(*branches.counts)
    is_tried = tried > outside + unresolved
    context.row(ROW, Outcome.RIGHT if is_tried else Outcome.UNRESOLVED, said)


def _judge(context: CheckContext, point: Point, *, given: bool = False) -> Judgement | None:
    """The judgement, None where the forward pass raises on these inputs."""
    # Integers may be out of range, a shape may depend on values: that is not in the domain.
    with Guard("the claim on inputs that nobody has tried"):
        found = context.judge.judge(point, given=given)
        if found.outcome is not Ruling.WRONG or given:
            return found
        if not context.is_settled(point):
            reason = "an iteration of the forward pass has not converged there"
            return replace(found, outcome=Ruling.OUTSIDE, reason=reason)
        if _is_lost_outside(context, point, found):
            name = context.subject.names[found.leaf]
            context.note(
                f"the cotangent of {name} is not finite for signs that the given inputs do not "
                "have (zeros, negative numbers): no error if they are outside the domain"
            )
            return replace(found, outcome=Ruling.OUTSIDE)
        return found
    return None


def _branches(context: CheckContext) -> Branches | None:
    """The comparisons in the claim's graph, None where no search drives inputs across them."""
    leaves_out = context.quick or context.is_large or context.iterative
    if context.graph is None or leaves_out or not holds_comparison(context.graph):
        return None
    return Branches(context.full, context.graph, context.consts)


def _crossed(context: CheckContext, branches: Branches) -> bool:
    """Judge the claim beyond the thresholds that no class of inputs crossed."""
    until = min(time.monotonic() + BRANCH_SECONDS, context.deadline)
    for point in branches.across(context.point, until):
        judgement = _judge(context, point)
        if judgement is not None and judgement.outcome is Ruling.WRONG:
            _found(context, point, judgement, BEYOND_A_THRESHOLD)
            return True
        if judgement is not None and judgement.outcome is Ruling.RIGHT:
            branches.see(point)
    if branches.was_cut_short:
        context.cut_short("the search beyond the thresholds in the code")
    return False


def _is_lost_outside(context: CheckContext, point: Point, judgement: Judgement) -> bool:
    """Whether the claim is merely not finite, at inputs of a sign that no given input has.

    At zero, the edge of the domain, an infinity may be the limit of the derivative, NaN is none:
    a forward pass that asks for the sign means zero to be met.
    """
    claimed = judgement.result.claimed[judgement.leaf]
    lost = ~np.isfinite(claimed)
    if context.asks_for_sign and np.isnan(claimed).any():
        if not context.leaves_domain(point, closed=True):
            return False
    tells_entries_apart = judgement.result.true is not None  # differences' mask is a direction's
    is_wrong_elsewhere = np.any(judgement.masks[judgement.leaf] & ~lost) and tells_entries_apart
    return bool(lost.any()) and not is_wrong_elsewhere and context.leaves_domain(point)


def _found(context: CheckContext, point: Point, judgement: Judgement, inputs: InputClass) -> None:
    smallest, _ = shrink(context, point, judgement)
    kind = Kind.DECLARATION if context.is_declared else None
    lost = judgement.masks[judgement.leaf] & ~np.isfinite(judgement.result.claimed[judgement.leaf])
    if lost.any():
        kind = Kind.OVERFLOW if Trait.OVERFLOWS in inputs.traits else Kind.NOT_FINITE
    context.find(point, judgement, inputs=inputs, kind=kind, smallest=smallest)
    context.row(ROW, Outcome.WRONG, f"inputs: {inputs.title}")


def shrink(
    context: CheckContext, point: Point, judgement: Judgement, *, given: bool = False
) -> tuple[Point, Judgement]:
    """Search a simpler point at which the claim is still wrong for the same argument.

    Entries become 0 or 1 or lose digits as long as the claim stays wrong; the cotangent becomes
    that of a single output entry.
    """
    until = time.monotonic() + SHRINK_SECONDS
    if judgement.result.true is None or context.is_large or context.subject.only_here:
        return point, judgement
    for simpler in _simpler_points(point, judgement.masks):
        if time.monotonic() > until:
            context.cut_short("the search for a smaller input that fails")
            break
        candidate = simpler(point)
        if candidate is None:
            continue
        found = _judge(context, candidate, given=given)
        if found is None or found.outcome is not Ruling.WRONG:
            continue
        if found.leaf == judgement.leaf:
            point, judgement = candidate, found
    return point, judgement


def _simpler_points(
    point: Point, masks: tuple[np.ndarray, ...]
) -> Iterator[Callable[[Point], Point | None]]:
    """Ways to make a point simpler; each returns None where it changes nothing."""

    def changed(k: int, change: Callable[[np.ndarray], np.ndarray]) -> Any:
        def step(at: Point) -> Point | None:
            x = at.actives[k]
            new = change(x).astype(x.dtype)
            return None if np.array_equal(new, x) else at.with_active(k, new)

        return step

    for k, mask in enumerate(masks):
        same = np.shape(mask) == np.shape(point.actives[k])
        for value in (0.0, 1.0):
            yield changed(k, lambda x, v=value: np.full_like(x, v))
            if same and mask.any() and not mask.all():
                yield changed(k, lambda x, v=value, m=mask: np.where(m, x, v))
        for digits in (0, 1, 3):
            yield changed(k, lambda x, d=digits: single(np.round(x, d)))
    if sum(bar.size for bar in point.bars) > 1:
        yield lambda at: at._replace(bars=tuple(map(np.ones_like, at.bars)))


def _ascend(context: CheckContext) -> tuple[Point, Judgement] | None:
    """Climb |claimed − true| / |true| from the given inputs; None where it stays within limits.

    It needs a disagreement to climb: where claim and reference agree to the last digits all around
    there is no slope.
    """
    is_searched = context.has_reference and context.subject.traceable
    if not is_searched or context.is_large or context.iterative:
        return None
    start = context.point
    result = context.full.both(start)
    assert result.true is not None
    largest = lambda arrays: max(float(np.max(np.abs(a), initial=0.0)) for a in arrays)
    gap = largest([c - t for c, t in zip(result.claimed, result.true)])
    if not 1e-13 * largest(result.true) < gap:
        return None

    def disagreement(actives: Arrays, fixed: Arrays, bars: Arrays) -> Any:
        _, claimed, _, true = context.full.pair(actives, fixed, bars)
        apart = sum(jnp.sum(jnp.abs(c - t) ** 2) for c, t in zip(claimed, true))
        scale = sum(jnp.sum(jnp.abs(t) ** 2) for t in true)
        return jnp.log(apart + 1e-300) - jnp.log(scale + 1e-300)

    def moved(x: Any, slopes: np.ndarray, rate: float) -> Any:
        way = rate * (1 + np.abs(x)) * np.conj(slopes) / (np.max(np.abs(slopes)) + 1e-300)
        return single(x + way).astype(x.dtype)

    until = min(time.monotonic() + ASCENT_SECONDS, context.deadline)
    with Guard("the claim, differentiated twice"), context.full.precision():
        uphill = jax.jit(jax.grad(disagreement))
        point = start
        for step in range(ASCENT_STEPS):
            if time.monotonic() > until:
                context.cut_short("the climb on the disagreement")
                return None
            slopes = [np.asarray(s) for s in uphill(*point)]
            if not all_finite(slopes):
                return None
            rate = 0.3 * (1 + step / 4)
            actives = tuple(moved(x, s, rate) for x, s in zip(point.actives, slopes))
            point = point._replace(actives=actives)
            found = _judge(context, point)
            if found is not None and found.outcome is Ruling.WRONG:
                return point, found
    return None


# Dtypes

CARELESS = {"coarse": 10, "fine": 30}  # times the error that conditioning or autodiff explains
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
EXTREME_INPUTS = "extreme inputs in float32"


def precision(context: CheckContext) -> None:
    """Compare float32, bfloat16 and float16 with float64, and extreme inputs in float32."""
    subject = context.subject
    if context.full.bits == 32:
        return
    given = [np.dtype(x.dtype) for x in subject.actives]
    if any(d.kind == "c" for d in given):
        context.row("dtypes", Outcome.LEFT_OUT, "complex arguments")
        return
    finest = min(unit_of(d) for d in given)
    for dtype in DTYPES:
        if unit_of(dtype) >= finest and not (context.iterative and dtype != jnp.float32):
            _in_dtype(context, np.dtype(dtype))
            if any(f.kind in (Kind.PRECISION, Kind.OVERFLOW) for f in context.findings):
                return
    if finest <= unit_of(jnp.float32):
        _extremes(context)


def _in_dtype(context: CheckContext, dtype: np.dtype) -> None:
    label, against = f"{dtype.name} against float64", "autodiff in the same dtype"
    rounded = context.point.cast(lambda a: _round(a, dtype))
    if not all_finite(rounded.actives):
        context.row(label, Outcome.LEFT_OUT, "the inputs are not representable")
        return
    low = context.low if dtype == np.float32 else None
    low = low or Evaluation(context.subject, 32, dtype)
    both = None
    with Guard(f"the claim in {dtype.name}") as ran:
        both = low.both(rounded.cast(low.cast)), context.full.both(rounded)
    if both is None:
        context.row(label, Outcome.LEFT_OUT, f"raises {ran.raised}")
        return
    coarse, fine = both
    assert coarse.true is not None and fine.true is not None
    if context.iterative and not all_finite(coarse.outs):
        context.row(label, Outcome.LEFT_OUT, "a loop does not end")
        context.note(f"in {dtype.name} a while_loop of the forward pass does not end: is its "
                   "tolerance finer than that dtype resolves?")  # fmt: skip
        return
    unit = unit_of(dtype)
    moved = [_movement(context, rounded, fine, unit / 4) for _ in range(2)]
    factor = CARELESS["fine" if unit < 1e-4 else "coarse"]
    worst = (0.0, 0.0)
    for k, name in enumerate(context.subject.names):
        ours = distance(coarse.claimed[k], fine.claimed[k])
        theirs = distance(coarse.true[k], fine.true[k])
        explained = max(m[k] for m in moved)
        if not np.isfinite(theirs):
            continue
        limit = factor * max(theirs, explained, unit)
        worst = max(worst, (ours / limit, limit)) if np.isfinite(ours) else worst
        if not ours <= limit:
            finite = np.isfinite(ours)
            what = f"has the relative error {ours:.1e}" if finite else "is not finite"
            message = (
                f"right in float64, but in {dtype.name} the cotangent of {name} {what}; plain "
                f"autodiff of the reference has {theirs:.1e}, rounding the inputs alone "
                f"{explained:.1e}"
            )
            kind = Kind.PRECISION if finite else Kind.OVERFLOW
            finding = Finding(kind, message, argument=name, stage=label, relative_error=ours)
            context.wrong(finding, label, against, error=ours, limit=limit)
            return
    context.row(label, Outcome.RIGHT, against, error=worst[0] * worst[1], limit=worst[1])


def _movement(context: CheckContext, point: Point, here: Result, unit: float) -> list[float]:
    """How far rounding inputs and cotangents moves each cotangent of the reference, relative."""
    moved = context.full.both(point.cast(lambda a: nudged(context.rng, a, unit)))
    assert moved.true is not None and here.true is not None
    return [distance(a, b) for a, b in zip(moved.true, here.true)]


def _round(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype).astype(x.dtype)


def _extremes(context: CheckContext) -> None:
    """float32 on large and tiny inputs: finite where the truth and autodiff are."""
    low = context.low
    if low is None or context.iterative:
        return
    tried = 0
    for kind, actives, fixed in input_classes.candidates(
        context.point.actives, context.point.fixed, (), context.rng, input_classes.Trait.EXTREME
    ):
        point = Point(tuple(single(a).astype(a.dtype) for a in actives), fixed, context.point.bars)
        if context.leaves_domain(point):
            continue
        both = None
        with Guard("the claim on extreme inputs"):
            both = low.both(point.cast(single)), context.full.both(point)
        if both is None:  # they are not in the domain
            continue
        coarse, fine = both
        assert coarse.true is not None and fine.true is not None and coarse.true_outs is not None
        if not all_finite((*coarse.true_outs, *coarse.outs)):
            continue
        tried += 1
        for k, argument in enumerate(context.subject.names):
            truth = np.isfinite(coarse.true[k]) & np.isfinite(fine.true[k])
            lost = truth & ~np.isfinite(coarse.claimed[k])
            if lost.any():
                finding = Finding(
                    Kind.OVERFLOW,
                    f"in float32 the cotangent of {argument} is not finite in {int(lost.sum())}"
                    f" of {lost.size} entries where autodiff and the truth are (inputs: "
                    f"{kind.title}): an intermediate value overflows or underflows",
                    argument=argument,
                    stage=EXTREME_INPUTS,
                    inputs=kind.title,
                    wrong_entries=int(lost.sum()),
                    size=int(lost.size),
                    example=context.example(point),
                )
                context.wrong(finding, EXTREME_INPUTS, "autodiff in float32")
                return
    context.row(EXTREME_INPUTS, Outcome.RIGHT, f"autodiff in float32, {tried} classes")
