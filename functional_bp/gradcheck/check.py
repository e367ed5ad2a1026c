"""``check`` reads the claim, runs the stages in order, and gives the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from functional_bp.engine.rule import Rule
from functional_bp.errors import ClaimError
from functional_bp.gradcheck import claims as claiming
from functional_bp.gradcheck.claims import by_our_rules, read
from functional_bp.gradcheck.clock import TimeUp, watchdog
from functional_bp.gradcheck.context import CheckContext, overtime
from functional_bp.gradcheck.diagnosis.localize import line_of_overflow, lines_of
from functional_bp.gradcheck.evaluation import pull_reference
from functional_bp.gradcheck.findings import Finding, Kind, Outcome, Verdict
from functional_bp.gradcheck.guard import Guard, place_of
from functional_bp.gradcheck.input_classes import GIVEN
from functional_bp.gradcheck.judging import Judgement, Ruling
from functional_bp.gradcheck.report import Report
from functional_bp.gradcheck.stages.compositions import (
    adjoint_identity,
    compositions,
    second_order,
    sharded_inputs,
)
from functional_bp.gradcheck.stages.given_inputs import (
    linearity,
    parts,
    repeated_calls,
    shapes,
    silent_outputs,
    single_cotangents,
)
from functional_bp.gradcheck.stages.inputs import precision, searched_inputs, shrink
from functional_bp.gradcheck.subject import Subject
from functional_bp.graph.names import function_name

Need = Callable[[CheckContext], bool]  # of a claim, or of a check, for a stage to make sense
TRACEABLE: Need = lambda context: context.subject.traceable
REFERENCE: Need = lambda context: context.has_reference
DERIVATIVE: Need = lambda context: not context.is_declared  # the truth is no declared gradient
OTHER_INPUTS: Need = lambda context: not context.subject.only_here
SHORT_ARRAYS: Need = lambda context: not context.is_large
TIME: Need = lambda context: not context.quick


@dataclass(frozen=True)
class Stage:
    """A stage is one of the things that a check looks at.

    Attributes:
        title: what the report calls it.
        run: looks, and adds rows and findings.
        needs: what it needs, each with what its row says where that is lacking; "" for no row.
        row: the row's name, where it is not the title.
    """

    title: str
    run: Callable[[CheckContext], None]
    needs: Mapping[Need, str] = field(default_factory=dict)
    row: str = ""


def _silently(*needs: Need) -> dict[Need, str]:
    """Needs that no row tells of where they are lacking."""
    return dict.fromkeys(needs, "")


REPEATED_CALLS = Stage("repeated calls", repeated_calls, _silently(TIME))
# Stages that run once the first derivative at the given inputs is right.
FURTHER = (
    Stage("single cotangents", single_cotangents),
    Stage("parts", parts, _silently(TIME)),
    Stage("searched inputs", searched_inputs,
          {OTHER_INPUTS: "the claim is a number, made for these inputs"}, "other inputs"),
    Stage("adjoint identity", adjoint_identity,
          _silently(REFERENCE, DERIVATIVE, TIME, TRACEABLE)),
    Stage("second order", second_order,
          {SHORT_ARRAYS: "a long array", TIME: "quick", TRACEABLE: "not traceable",
           OTHER_INPUTS: "not traceable"}),
    Stage("compositions", compositions,
          _silently(TIME, TRACEABLE, OTHER_INPUTS)),
    Stage("sharded inputs", sharded_inputs,
          _silently(TIME, TRACEABLE, OTHER_INPUTS)),
    Stage("precision", precision, _silently(
        TRACEABLE, REFERENCE, TIME, OTHER_INPUTS, SHORT_ARRAYS)),
)  # fmt: skip


def check(
    subject: Any,
    *args: Any,
    reference: Any = None,
    of: Callable[..., Any] | None = None,
    claims: Mapping[str, Any] | None = None,
    expect: Any = None,
    argnums: int | Sequence[int] | None = None,
    quick: bool = False,
    seed: int = 0,
    seconds: float = 60.0,
    name: str | None = None,
) -> Report:
    """Say whether a hand-derived gradient is right, and if not, where and why.

    Args:
        subject: what claims a gradient. A ``jax.custom_vjp`` or ``jax.custom_jvp`` function, an
            ``operation``, a ``rule`` (without ``args``: on the cases that stand beside it), a pair
            ``(forward, backward)``, a gradient function (with ``of=``), or any JAX function,
            whose custom rules are then compared with their bodies.
        *args: arguments at which it is called: arrays or pytrees of arrays.
        reference: a JAX, NumPy or PyTorch function of the same arguments to judge by. By default
            the function's own undecorated body; ``False`` for finite differences alone.
        of: the scalar function that ``subject`` claims to be the gradient of.
        claims: gradients on paper by argument name, ``{"W1": array}``; ``subject`` is then the
            function that was differentiated. Numbers that all have two to six decimals count as
            rounded to those.
        expect: declares a gradient that is false on purpose: ``"straight-through"``, a number that
            multiplies the true gradient (−1: reversal), or a function whose gradient it is.
        argnums: for a gradient function, the arguments that the gradient is for.
        quick: given inputs and a short search only; under a second.
        seed: of every random draw; the same seed gives the same report.
        seconds: the time after which no further stage begins. One that goes on for half as long
            again (at least ten seconds) is interrupted: a claim that never returns makes no check
            that never ends.
        name: what to call the subject in the report.

    Returns:
        A report: ``report.ok``, ``report.verdict``, ``report.findings``; it prints readably.

    Raises:
        ClaimError: the subject claims no gradient, or cannot be called with the arguments.

    Example:
        >>> import functional_bp as bp, jax, jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def cube(x):
        ...     return x**3
        >>> cube.defvjp(lambda x: (cube(x), x), lambda x, y_bar: (2 * y_bar * x**2,))
        >>> report = bp.check(cube, jnp.array([1.0, 2.0]))
        >>> report.verdict, report.findings[0].argument
        ('wrong', 'x')
    """
    started = time.monotonic()
    if isinstance(subject, Rule) and not args:
        return _rule_on_its_cases(subject, quick=quick, seed=seed, seconds=seconds)
    try:
        with watchdog(seconds + overtime(seconds)):
            made = _read(subject, args, reference, of, claims, expect, argnums)
    except TimeUp as error:
        reason = _not_ended("calling it", error, seconds + overtime(seconds))
        called = subject[0] if isinstance(subject, tuple) and subject else subject
        return _unanswered(name or function_name(cast(Any, called)), reason, started)
    if name:
        made = replace(made, name=name)
    if not made.actives:
        raise ClaimError(
            f"{made.name}: no argument is a real or complex array, so that there is no gradient to "
            "check"
        )
    return run(made, quick=quick, seed=seed, seconds=seconds, started=started,
               is_declared=expect is not None)  # fmt: skip


def _read(
    subject: Any,
    args: Sequence[Any],
    reference: Any,
    of: Callable[..., Any] | None,
    claims: Mapping[str, Any] | None,
    expect: Any,
    argnums: int | Sequence[int] | None,
) -> Subject:
    """The claim that ``check`` was given."""
    if claims is not None:
        made = claiming.on_paper(subject, args, claims)
    elif of is not None:
        made = claiming.gradient_function(subject, args, of, argnums)
    else:
        made = read(subject, args)
    if reference is not None and (reference is not False or expect is None):
        made = claiming.with_reference(made, reference, args)
    return made if expect is None else claiming.declared(made, expect, args)


@np.errstate(all="ignore")  # the search goes where numbers overflow; that is for the report
def run(
    subject: Subject,
    *,
    quick: bool = False,
    seed: int = 0,
    seconds: float = 60.0,
    started: float | None = None,
    is_declared: bool = False,
) -> Report:
    """Check a subject that has been read."""
    started = time.monotonic() if started is None else started
    try:
        with watchdog(seconds + overtime(seconds)):
            subject, problem = _with_usable_reference(subject)
            context = CheckContext(
                subject, seed=seed, quick=quick, seconds=seconds, is_declared=is_declared
            )
    except TimeUp as error:
        reason = _not_ended("the first call", error, seconds + overtime(seconds))
        return _unanswered(subject.name, reason, started)
    if problem:
        context.note(problem)
    try:
        with watchdog(context.patience):
            unresolved, goes_on = _first_order(context)
    except TimeUp as error:
        reason = _not_ended("the check at the given inputs", error, time.monotonic() - started)
        unresolved, goes_on = [reason], False
    if not context.findings and goes_on:
        for stage in FURTHER:
            if context.time_left < 0:
                context.reasons.append(f"the {seconds:g} seconds were up before {stage.title}")
                break
            _run_stage(context, stage)
            if context.findings:
                break
    elif context.findings and not quick:
        context.row("other inputs, second order, vmap, dtypes, …", Outcome.LEFT_OUT,
                    "until what is wrong above is right")  # fmt: skip
    findings = tuple(_placed(context, finding) for finding in context.findings)
    if context.kinks:
        context.note("a valid subgradient, by another convention than the reference's, at kinks "
                   f"(inputs: {', '.join(context.kinks)})")  # fmt: skip
    inconclusive = unresolved or (context.reasons if context.time_left < 0 else [])
    verdict = Verdict.INCONCLUSIVE if inconclusive else Verdict.RIGHT
    verdict = Verdict.WRONG if findings else verdict
    return Report(
        name=subject.name,
        verdict=verdict,
        findings=findings,
        rows=tuple(context.rows),
        notes=tuple(context.notes),
        reasons=() if findings else tuple(dict.fromkeys((*unresolved, *context.reasons))),
        seconds=time.monotonic() - started,
        settings=_settings(context, seed),
    )


def _with_usable_reference(subject: Subject) -> tuple[Subject, str]:
    """The subject without its reference where JAX cannot differentiate that, and a note of it."""
    if subject.reference is None or not subject.traceable:
        return subject, ""
    with Guard("the forward pass, by its shapes"):  # what it raises is told where it is run
        outs = jax.eval_shape(subject.value, subject.actives, subject.fixed)
        with Guard("the reference's gradient, by its shapes") as ran:
            jax.eval_shape(partial(pull_reference, subject), subject.actives, subject.fixed, outs)
        if ran.error is not None:
            note = f"JAX cannot differentiate the reference ({ran.raised}): differences judge"
            return replace(subject, reference=None, reference_pull=None), note
    return subject, ""


def _first_order(context: CheckContext) -> tuple[list[str], bool]:
    """Structure, repeated calls, and the cotangents at the given inputs.

    Returns reasons for no verdict, and whether it makes sense to look further.
    """
    shapes(context)
    if not context.findings:
        _run_stage(context, REPEATED_CALLS)
    if context.findings:
        return [], True
    point, judgement = context.point, None
    with Guard("the claim at the given inputs") as ran:
        judgement = context.judge.judge(point, given=True)
    if judgement is None:
        message = f"the claim raises {ran.raised}: {ran.message}"
        context.findings.append(Finding(Kind.ERROR, message, where=ran.place))
        return [], True
    label, against = "forward value", "the reference"
    if judgement.outcome is Ruling.VALUE:
        message = (
            f"{judgement.reason}: the forward pass of the claim does not compute the reference "
            "function"
        )
        context.wrong(Finding(Kind.VALUE, message, stage=label), label, against)
        return [], True
    context.row(label, Outcome.RIGHT, against)
    linearity(context)
    _rows_of(context, judgement)
    if judgement.outcome is Ruling.WRONG:
        found = context.findings[0] if context.findings else None
        context.findings.clear()
        context.find(
            point,
            judgement,
            kind=found.kind if found else _known_kind(context, judgement),
            message=found.message + "." if found else "",
            smallest=shrink(context, point, judgement, given=True)[0],
        )
    if judgement.outcome in (Ruling.UNRESOLVED, Ruling.WITNESSES, Ruling.OUTSIDE):
        reason = judgement.reason or "no witness could judge the claim at the given inputs"
        return [reason], judgement.outcome is not Ruling.WITNESSES
    if judgement.outcome is Ruling.KINK:
        context.kinks.append(GIVEN.title)
    return [], True


def _placed(context: CheckContext, finding: Finding) -> Finding:
    """The finding with the likeliest line, where its stage or the diagnosis named none."""
    if finding.where is not None:
        return finding
    subject, example = context.subject, finding.example
    where = None
    with Guard("the search for the line"):  # a place is a help, and no reason to lose the finding
        if finding.kind == Kind.OVERFLOW and example:
            actives = tuple(example[name] for name in subject.names)
            fixed = tuple(example.get(n, x) for n, x in zip(subject.fixed_names, subject.fixed))
            where = line_of_overflow(subject, actives, fixed, context.point.bars)
        else:
            where = next(iter(lines_of(subject, finding.kind, finding.argument)), None)
    return replace(finding, where=where)


def _known_kind(context: CheckContext, judgement: Judgement) -> Kind | None:
    """The kind where no diagnosis is needed to tell it."""
    if context.is_declared:
        return Kind.DECLARATION
    claimed, mask = judgement.result.claimed[judgement.leaf], judgement.masks[judgement.leaf]
    if not np.any(mask & np.isfinite(claimed)):
        return Kind.NOT_FINITE
    return Kind.COTANGENT_IGNORED if silent_outputs(context) else None


def _rows_of(context: CheckContext, judgement: Judgement) -> None:
    """A line for each argument's cotangent."""
    against = "the reference's VJP" if context.has_reference else "finite differences"
    if judgement.confirmed and context.has_reference:
        against += " and finite differences"
    for k, name in enumerate(context.subject.names):
        is_open = judgement.outcome is Ruling.UNRESOLVED
        outcome = Outcome.UNRESOLVED if is_open else Outcome.RIGHT
        if judgement.masks and judgement.masks[k].any():
            is_wrong = judgement.outcome is Ruling.WRONG
            outcome = Outcome.WRONG if is_wrong else Outcome.NOTE
        context.row(
            f"cotangent of {name}",
            outcome,
            judgement.reason if outcome is Outcome.UNRESOLVED else against,
            error=judgement.errors[k] if k < len(judgement.errors) else None,
            limit=judgement.limits[k] if k < len(judgement.limits) else None,
        )


def _run_stage(context: CheckContext, stage: Stage) -> None:
    """Run a stage that has what it needs; that it raises is no fault of the claim."""
    lacking = [why for need, why in stage.needs.items() if not need(context)]
    if lacking:
        if lacking[0]:
            context.row(stage.row or stage.title, Outcome.LEFT_OUT, lacking[0])
        return
    title, began = stage.title, time.monotonic()
    try:
        with watchdog(context.patience), Guard(title) as ran:
            stage.run(context)
    except TimeUp as error:
        context.row(title, Outcome.LEFT_OUT, "it did not end")
        context.reasons.append(_not_ended(title, error, time.monotonic() - began))
        return
    if ran.error is not None:
        context.row(title, Outcome.LEFT_OUT, f"raised {ran.raised}: {ran.message}"[:120])
        context.note(f"{title} could not be checked: {ran.raised}")


def _not_ended(what: str, error: BaseException, seconds: float) -> str:
    """The reason for no verdict where the watchdog had to interrupt."""
    place = place_of(error)
    where = f", at {place.file}:{place.line}: {place.text}" if place else ""
    return f"{what} had not ended after {seconds:.3g} s and was interrupted{where}"


def _unanswered(name: str, reason: str, started: float) -> Report:
    """The report on what did not get as far as a first call."""
    return Report(name=name, verdict=Verdict.INCONCLUSIVE, reasons=(reason,),
                  seconds=time.monotonic() - started)  # fmt: skip


def _settings(context: CheckContext, seed: int) -> dict[str, str]:
    return {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "precision": f"float{context.full.bits}",
        "seed": str(seed),
        "reference": "declared" if context.is_declared
        else "its VJP" if context.has_reference else "finite differences",
    }  # fmt: skip


def _rule_on_its_cases(rule: Rule, *, quick: bool, seed: int, seconds: float) -> Report:
    """One report for a rule of the registry, from the cases that stand beside it."""
    reports = []
    with jax.enable_x64(True):  # what cases are made for: 64-bit integers among them
        for k, case in enumerate(rule.cases):
            made = by_our_rules(case.function, case.draw(seed), case.reference)
            if made.actives and jax.eval_shape(made.value, made.actives, made.fixed):
                reports.append((f"case {k}", run(made, quick=quick, seed=seed, seconds=seconds)))
    return merged(rule.primitive.name, reports)


def merged(name: str, reports: Sequence[tuple[str, Report]]) -> Report:
    """Merge several reports as one; the worst verdict counts."""
    order = (Verdict.RIGHT, Verdict.INCONCLUSIVE, Verdict.WRONG)
    verdict = order[max((order.index(r.verdict) for _, r in reports), default=0)]
    label = lambda part, text: f"{part}: {text}"
    return Report(
        name=name,
        verdict=verdict,
        findings=tuple(replace(f, message=label(p, f.message)) for p, r in reports
                       for f in r.findings),
        rows=tuple(replace(row, checked=label(p, row.checked)) for p, r in reports
                   for row in r.rows),
        notes=tuple(dict.fromkeys(n for _, r in reports for n in r.notes)),
        reasons=tuple(label(p, reason) for p, r in reports for reason in r.reasons),
        seconds=sum(r.seconds for _, r in reports),
        settings=reports[0][1].settings if reports else {},
    )  # fmt: skip
