"""At the given inputs a claim has to be a pullback: of the right shapes, repeatable and linear.

These stages need no reference. A pullback is linear in the cotangent, x̄(c ȳ) = c x̄(ȳ), and the sum
of what each output alone gives, so that each one's cotangent is also taken alone. A rule with
symbolic zeros (``custom_vjp(…, symbolic_zeros=True)``, an operation) is told which arguments are
differentiated and which outputs have a cotangent, and may take another path for each; so there each
argument, and each output, is taken alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.sweeps import unbroadcast
from functional_bp.errors import describe
from functional_bp.gradcheck import input_classes
from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.diagnosis.localize import line_of_cotangent
from functional_bp.gradcheck.evaluation import Point, to_numpy
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import Integers
from functional_bp.gradcheck.judging import Ruling
from functional_bp.gradcheck.subject import Arrays, all_finite, distance, double, farthest, nudged
from functional_bp.graph import interpret
from functional_bp.graph.interpret import unit_of

JIT_TOLERANCE = 2e-3  # relative, in float32: compilers reorder sums
STRUCTURE, REPEATED = "structure", "repeated calls"  # what findings and rows here are called
RETURNED = "number, shapes and dtypes of cotangents"


def shapes(context: CheckContext) -> None:
    """Look whether the claim runs, and its cotangents have the arguments' shapes and dtypes."""
    subject, native, found = context.subject, context.native, None
    with Guard("the claim, by its shapes") as ran:
        pull = partial(jax.eval_shape, subject.pull) if subject.traceable else subject.pull
        _, found = pull(*native)
    if found is None:
        _cannot_run(context, ran, native)
    else:
        _compare_shapes(context, native, found, dtypes=subject.traceable)
    outcome = Outcome.WRONG if context.findings else Outcome.RIGHT
    context.row(RETURNED, outcome, "the arguments")


def _cannot_run(context: CheckContext, ran: Guard, native: Point) -> None:
    """The claim raises: a wrong number or shape of cotangents, or an error of its own."""
    subject, found = context.subject, None
    if subject.backward is not None and subject.residuals is not None:
        with Guard("the backward pass, by its shapes"):
            kept = jax.eval_shape(subject.residuals, native.actives, native.fixed)
            found = jax.eval_shape(subject.backward, kept, native.fixed, native.bars)
    if found is not None and _compare_shapes(context, native, found, dtypes=False):
        return
    # No line of the person's raised: JAX or a check refuses what their backward pass has returned.
    refused = isinstance(ran.error, TypeError | ValueError) and not ran.ran_persons_code
    context.findings.append(
        Finding(
            Kind.STRUCTURE if refused else Kind.ERROR,
            f"the backward pass raises {ran.raised}: {ran.message or ran.raised}",
            stage=STRUCTURE,
            where=ran.place,
        )
    )


def _compare_shapes(context: CheckContext, native: Point, found: Any, *, dtypes: bool) -> bool:
    """Add what is wrong with the cotangents' shapes, and dtypes; returns whether anything is."""
    before = len(context.findings)
    for name, x, bar in zip(context.subject.names, native.actives, found):
        if np.shape(bar) != np.shape(x):
            context.findings.append(_wrong_shape(context, name, x, bar))
        elif dtypes and bar.dtype != x.dtype:
            message = (
                f"the cotangent of {name} is {describe(bar)}, the argument {describe(x)}; JAX "
                "accepts that silently, and what is computed from it changes precision"
            )
            context.findings.append(Finding(Kind.DTYPE, message, argument=name, stage=STRUCTURE))
    return len(context.findings) > before


def _wrong_shape(context: CheckContext, name: str, x: Any, bar: Any) -> Finding:
    shape, wanted = tuple(np.shape(bar)), tuple(np.shape(x))
    message = f"the cotangent of {name} has shape {shape}, the argument {wanted}"
    kind = Kind.STRUCTURE
    lead = len(shape) - len(wanted)
    if lead >= 0 and all(n in (1, m) for n, m in zip(wanted, shape[lead:])):
        axes = (*range(lead), *(lead + i for i, n in enumerate(wanted) if n != shape[lead + i]))
        axis = axes[0] if len(axes) == 1 else axes
        message += (
            f"; {name} was broadcast over axis {axis} in the forward pass, so its cotangent is "
            f"summed there: .sum({axis}{', keepdims=True' if not lead else ''})"
        )
        if _summed_is_right(context, name):
            kind = Kind.MISSING_SUM
        else:
            message += " (and its values are wrong besides)"
    where = line_of_cotangent(context.subject, name)
    return Finding(kind, message, argument=name, stage=STRUCTURE, where=where)


def _summed_is_right(context: CheckContext, name: str) -> bool:
    """Whether the wrongly shaped cotangent, summed over the broadcast axes, is the true one."""
    subject, point, reference = context.subject, context.point, context.subject.reference
    if subject.backward is None or subject.residuals is None or reference is None:
        return True
    k = subject.names.index(name)
    with Guard("the cotangent of the wrong shape"), context.full.precision():
        kept = subject.residuals(point.actives, point.fixed)
        bar = subject.backward(kept, point.fixed, point.bars)[k]
        _, pullback = jax.vjp(lambda *xs: reference(xs, point.fixed), *point.actives)
        true = pullback(point.bars)[k]
        summed = unbroadcast(bar, np.shape(point.actives[k]))
        return summed is not None and farthest([summed], [true]) < 1e-6
    return False


def repeated_calls(context: CheckContext) -> None:
    """Look whether equal calls give equal results, with others in between, and under jit."""
    subject, native = context.subject, context.native
    runs = [context.first_call, *(to_numpy(subject.pull(*native)[1]) for _ in range(2))]
    first, second = farthest(runs[0], runs[1]), farthest(runs[1], runs[2])
    if not _equal(runs[0], runs[1]) or not _equal(runs[1], runs[2]):
        stays = _equal(runs[1], runs[2]) or first > 1e3 * second
        kind = Kind.HIDDEN_STATE if stays else Kind.NOT_DETERMINISTIC
        message = (
            f"the second call gives another gradient than the first (relative {first:.1e}) and "
            "then stays: something is remembered between calls"
            if stays
            else "three equal calls give three different gradients (relative "
            f"{max(first, second):.1e}): something is drawn at random or counted"
        )
        context.wrong(Finding(kind, message, stage=REPEATED), REPEATED, "the first call")
        return
    gap = _interleaved(context, native, runs[0])
    if gap > 1e-5:
        message = (
            "the backward pass of one call changes once another call's forward pass has run "
            f"(relative {gap:.1e}): residuals are kept in a place that calls share"
        )
        context.wrong(
            Finding(Kind.HIDDEN_STATE, message, stage=REPEATED), REPEATED, "the first call"
        )
    else:
        context.row(REPEATED, Outcome.RIGHT, "the first call", error=0.0)
    if subject.traceable:
        _jit(context, native, runs[0])


def _interleaved(context: CheckContext, native: Point, alone: tuple[np.ndarray, ...]) -> float:
    """How far another call's forward pass in between changes a backward pass, relative."""
    subject, gap = context.subject, 0.0
    if subject.residuals is not None and subject.backward is not None:
        with Guard("the forward pass by itself"):
            kept = subject.residuals(native.actives, native.fixed)
            other = tuple((0.7 * x).astype(x.dtype) for x in native.actives)
            subject.residuals(other, native.fixed)
            gap = farthest(to_numpy(subject.backward(kept, native.fixed, native.bars)), alone)
    return gap if np.isfinite(gap) else 0.0


def _other_inputs(context: CheckContext, native: Point) -> Point:
    """Other arguments of the same shapes and dtypes: numbers, indices, keys."""
    actives, fixed = input_classes.draw(
        input_classes.NEAR,
        tuple(np.asarray(x) for x in native.actives),
        tuple(map(input_classes.other_key, native.fixed)),
        np.random.default_rng(11),
        context.integer_ranges,
        Integers.DRAWN,
    )
    cast = lambda new, old: jnp.asarray(new).astype(old.dtype)
    return Point(tuple(map(cast, actives, native.actives)), tuple(map(cast, fixed, native.fixed)),
                 native.bars)  # fmt: skip


def _remembers(
    context: CheckContext, native: Point, compiled: Callable[..., Any], limit: float
) -> float | None:
    """How far a call without jit, after calls with other inputs, is from the same one under jit."""
    other = _other_inputs(context, native)
    with Guard("a call with other inputs"):  # they may be outside the domain
        alone, after = to_numpy(compiled(*other)), to_numpy(context.subject.pull(*other)[1])
        if all_finite((*alone, *after)):
            gap = farthest(after, alone)
            if gap > limit and gap > 30 * _movement(context, limit / 1e4, other):
                return gap
    return None


def _jit(context: CheckContext, native: Point, eager: tuple[np.ndarray, ...]) -> None:
    subject, against = context.subject, "the same call without jit"
    compiled = jax.jit(lambda *parts: subject.pull(*parts)[1])
    gap = farthest(to_numpy(compiled(*native)), eager)
    coarsest = max([1e-7, *(unit_of(x.dtype) for x in native.actives)])
    limit = JIT_TOLERANCE if coarsest < 1e-5 else 0.2
    if gap > limit and np.isfinite(gap):
        limit = max(limit, 30 * _movement(context, coarsest))
    if gap > limit and all_finite(eager):
        message = (
            f"jit changes the gradient (relative {gap:.1e}): the code tells tracers from "
            "arrays, or compares values in Python"
        )
        context.wrong(
            Finding(Kind.JIT, message, stage="jit"), "jit", against, error=gap, limit=limit
        )
        return
    context.row("jit", Outcome.RIGHT, against, error=gap, limit=limit)
    apart = _remembers(context, native, compiled, limit)
    if apart is not None:
        message = (
            "on other inputs of the same shapes the gradient is not theirs "
            f"(relative {apart:.1e} from the same call under jit): something of the first "
            "call's is kept for the later ones"
        )
        finding = Finding(Kind.HIDDEN_STATE, message, stage=REPEATED)
        context.wrong(finding, "calls with other inputs", "the same call under jit", error=apart)


def _movement(context: CheckContext, unit: float, point: Point | None = None) -> float:
    """How far rounding to a coarser dtype alone moves the gradient, relative."""
    point = context.point if point is None else point.cast(double)
    here = context.full.both(point)
    moved = context.full.both(point.cast(lambda a: nudged(context.rng, a, unit)))
    return farthest(moved.true or moved.claimed, here.true or here.claimed)


def _equal(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


# Linearity

# Powers of two change no digits. A format that is coarse on purpose has no room for the extreme.
MILD = ((-1.0, "−1"), (2.0**-3, "2⁻³"), (2.0**3, "2³"))
EXTREME = ((2.0**-20, "2⁻²⁰"), (2.0**20, "2²⁰"))
COARSE = 1e-4  # relative spacing of half precision and coarser
TOLERANCE = 1e-6  # relative
LINEAR = "linear in the cotangent"
MOST = 4  # arguments, and outputs, that are taken one at a time

Pull = Callable[[Sequence[Any]], Arrays]


def linearity(context: CheckContext) -> None:
    """Compare x̄(c ȳ) with c x̄(ȳ), x̄(0) with 0, and x̄(ȳ₁ + ȳ₂) with x̄(ȳ₁) + x̄(ȳ₂)."""
    point = context.point
    pull = lambda bars: context.full.both(point._replace(bars=tuple(bars))).claimed
    here = pull(point.bars)
    if not all_finite(here):
        context.row(LINEAR, Outcome.LEFT_OUT, "the claim is not finite here")
        return
    # A claim computed in low precision is as linear as that precision lets it be.
    tolerance = max(TOLERANCE, 1e2 * claim_unit(context))
    problem = _scaled(context, point, pull, here, tolerance)
    if problem is None:
        other = context.new_bars()
        apart = [a + b for a, b in zip(here, pull(other))]
        gap = farthest(pull([a + b for a, b in zip(point.bars, other)]), apart)
        if gap > tolerance:
            problem = Finding(
                Kind.NOT_LINEAR,
                f"x̄(ȳ₁ + ȳ₂) differs from x̄(ȳ₁) + x̄(ȳ₂) (relative {gap:.1e}): a pullback is "
                "linear in the cotangent",
                stage="linearity",
            )
    if problem is not None:
        context.findings.append(problem)
    outcome = Outcome.WRONG if problem else Outcome.RIGHT
    context.row(LINEAR, outcome, "x̄(c ȳ) = c x̄(ȳ)", limit=tolerance)


def _scaled(
    context: CheckContext, point: Point, pull: Pull, here: Arrays, tolerance: float
) -> Finding | None:
    at_zero = pull([np.zeros_like(b) for b in point.bars])
    names = context.subject.names
    constant = [n for n, z in zip(names, at_zero) if np.any(z)]
    same = farthest(pull([2 * b for b in point.bars]), here) <= tolerance and any(
        np.any(h) for h in here
    )
    if same:
        return Finding(
            Kind.COTANGENT_IGNORED,
            "doubling the output's cotangent changes nothing: the backward pass ignores it "
            "(multiply by ȳ, the chain rule's upstream gradient)",
            argument=constant[0] if len(constant) == 1 else None,
            stage="linearity",
        )
    if constant:
        return Finding(
            Kind.NOT_LINEAR,
            f"a zero cotangent gives a gradient of {', '.join(constant)} that is not zero: "
            "something is added that the cotangent does not multiply",
            argument=constant[0] if len(constant) == 1 else None,
            stage="linearity",
        )
    narrowed = claim_unit(context) > context.full.unit
    is_coarse = context.full.unit > COARSE
    for scale, text in (*MILD, *(() if is_coarse else EXTREME)):
        found = pull([scale * b for b in point.bars])
        gap = farthest(found, [scale * h for h in here])
        if gap <= tolerance:
            continue
        is_mild = (scale, text) in MILD
        said = f"x̄({text} · ȳ) is not {text} · x̄(ȳ) (relative {gap:.1e})"
        if is_mild:
            said += _power(pull, point, here)
        elif narrowed:
            said += (": the backward pass computes in a narrower dtype than the forward pass, in "
                     "which small cotangents are lost and large ones overflow")  # fmt: skip
        else:
            said += (", though at the scale of 1 it is linear: a threshold cuts the cotangent off "
                     "(clip, where), which a pullback does not")  # fmt: skip
        return Finding(
            Kind.PRECISION if narrowed and not is_mild else Kind.NOT_LINEAR,
            said,
            argument=_only(names, found, [scale * h for h in here], tolerance),
            stage="linearity",
        )
    return None


def _power(pull: Pull, point: Point, here: Arrays) -> str:
    """What the cotangent's power looks like, where it is one."""
    doubled = pull([2 * b for b in point.bars])
    for power, text in ((2, "squared"), (3, "cubed"), (0.5, "under a root")):
        if farthest(doubled, [2**power * h for h in here]) < 1e-6:
            return f": the cotangent enters {text}"
    flipped = pull([-b for b in point.bars])
    if farthest(flipped, here) < 1e-6:
        return ": its sign is lost"
    return ": a pullback is linear in the cotangent"


def _only(
    names: Sequence[str], found: Arrays, expected: Sequence[Any], tolerance: float
) -> str | None:
    wrong = [n for n, f, e in zip(names, found, expected) if farthest([f], [e]) > tolerance]
    return wrong[0] if len(wrong) == 1 else None


def claim_unit(context: CheckContext) -> float:
    """Return the relative spacing of the coarsest number format in the claim's graph."""
    return 0.0 if context.graph is None else interpret.lowest_precision(context.graph)


def single_cotangents(context: CheckContext) -> None:
    """Judge each output's cotangent alone, the others zero."""
    if len(context.point.bars) < 2:
        return
    for k in range(len(context.point.bars)):
        alone = _alone(context.point, k)
        judgement = context.judge.judge(alone, given=True)
        label = f"the cotangent of output {k} alone"
        if judgement.outcome is not Ruling.WRONG:
            is_right = judgement.outcome is Ruling.RIGHT
            context.row(label, Outcome.RIGHT if is_right else Outcome.NOTE, judgement.reason)
            continue
        silent = not any(np.any(c) for c in judgement.result.claimed)
        context.find(
            alone,
            judgement,
            kind=Kind.COTANGENT_IGNORED if silent else None,
            message=f"the cotangent of output {k} is ignored." if silent else "",
        )
        context.row(label, Outcome.WRONG)
        return


def _alone(point: Point, output: int) -> Point:
    """The point with one output's cotangent, the others zero."""
    bars = (b if i == output else np.zeros_like(b) for i, b in enumerate(point.bars))
    return point._replace(bars=tuple(bars))


def silent_outputs(context: CheckContext) -> list[int]:
    """Return the outputs whose cotangent alone wrongly gives a gradient of zero."""
    point, silent = context.point, []
    for k in range(len(point.bars) if len(point.bars) > 1 else 0):
        result = context.full.both(_alone(point, k))
        is_zero = not any(np.any(c) for c in result.claimed)
        if is_zero and result.true is not None and any(np.any(t) for t in result.true):
            silent.append(k)
    return silent


def parts(context: CheckContext) -> None:
    """Compare x̄ of each argument alone, and with the cotangent of each output alone."""
    subject, point = context.subject, context.point
    counts = (len(point.actives), len(point.bars))
    if not (subject.symbolic_zeros and subject.by_transform) or max(counts) < 2:
        return
    expected = context.full.both(point).claimed
    if not all_finite(expected):
        return
    made = {f"{subject.names[k]} alone differentiated": (k, None) for k in range(counts[0])[:MOST]}
    if counts[1] > 1:
        made |= {f"output {j} alone with a cotangent": (None, j) for j in range(counts[1])[:MOST]}
    for label, (argument, output) in made.items():
        truth = expected
        if output is not None:
            truth = context.full.both(_alone(point, output)).claimed
        names = subject.names if argument is None else (subject.names[argument],)
        truth = truth if argument is None else (truth[argument],)
        found = None
        with Guard(label) as ran, context.full.precision():
            found = to_numpy(jax.jit(_pull(context, argument, output))(*point))
        if found is None:
            said = f"the claim raises {ran.raised}: {ran.message or 'no message'}"
            _wrong(context, label, Kind.ERROR, said, None)
            return
        gaps = [distance(f, t) for f, t in zip(found, truth)]
        worst = int(np.argmax(gaps))
        if not gaps[worst] <= max(TOLERANCE, 1e2 * context.full.unit):
            lost = not np.any(found[worst])
            text = f"the cotangent of {names[worst]} is another (relative {gaps[worst]:.1e}) than "
            text += "when the other " + ("outputs' are zero arrays" if argument is None else
                                         "arguments are differentiated too")  # fmt: skip
            _wrong(
                context, label, Kind.COTANGENT_IGNORED if lost else Kind.OTHER, text, names[worst]
            )
            return
    context.row("each argument and output alone", Outcome.RIGHT, "all together")


def _pull(context: CheckContext, argument: int | None, output: int | None) -> Callable[..., Arrays]:
    """The claim for one argument, or for one output's cotangent: the others are not there."""
    value = context.subject.value

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> Arrays:
        chosen = range(len(actives)) if argument is None else [argument]

        def of_chosen(*xs: Any) -> Any:
            mine = dict(zip(chosen, xs))
            outs = value(tuple(mine.get(k, x) for k, x in enumerate(actives)), fixed)
            return outs if output is None else outs[output]

        _, pullback = jax.vjp(of_chosen, *(actives[k] for k in chosen))
        return pullback(tuple(bars) if output is None else bars[output])

    return pull


def _wrong(context: CheckContext, label: str, kind: Kind, text: str, argument: str | None) -> None:
    message = f"{label}: {text} (symbolic zeros take another path)"
    finding = Finding(kind, message, argument=argument, stage="parts")
    context.wrong(finding, label, "all together")
