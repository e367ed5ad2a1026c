"""A pullback is linear in the cotangent, and the sum of what each output alone gives.

Linearity needs no reference: x̄(c ȳ) = c x̄(ȳ). With several outputs, each one's cotangent is also
taken alone. A rule with symbolic zeros (``custom_vjp(…, symbolic_zeros=True)``, an operation) is
told which arguments are differentiated and which outputs have a cotangent, and may take another
path for each; so there each argument, and each output, is taken alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from functional_bp.gradcheck.context import CheckContext
from functional_bp.gradcheck.evaluation import Point, to_numpy
from functional_bp.gradcheck.findings import Finding, Kind, Outcome
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.judging import Ruling
from functional_bp.gradcheck.subject import Arrays, all_finite, distance, farthest
from functional_bp.graph import interpret

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
