"""What a wrong gradient looks like, where the fault stands, and what to write instead.

Three searches, each verified on fresh inputs before it is told:

- ``numbers``: what turns the claimed numbers into the true ones (a sign, a factor, a transpose, a
  missing term, a part of the input space);
- ``repairs.search``: an edit of the person's backward pass that makes it right;
- ``repairs.drops``: an edit of the true backward pass that makes it the claim, which names the path
  that was forgotten.
"""

from __future__ import annotations

import linecache
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from functional_bp import _jax
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.diagnosis.numbers.search import hypotheses
from functional_bp.check.diagnosis.repairs.drops import drops
from functional_bp.check.diagnosis.repairs.search import Found, repairs
from functional_bp.check.findings import Place
from functional_bp.check.subject import Diagnosis, Disagreement, Sample, Subject

SHARE_OF_NUMBERS, SHARE_OF_REPAIRS = 0.3, 0.8  # of the time, by the end of each search


def diagnose(disagreement: Disagreement, deadline: float) -> Diagnosis:
    """Search for what explains a disagreement, until ``time.monotonic()`` is ``deadline``."""
    now = time.monotonic()
    until = lambda share: now + share * (deadline - now)  # noqa: E731
    seen: list[Hypothesis] = _guarded(hypotheses, disagreement, until(SHARE_OF_NUMBERS))
    edits: list[Found] = _guarded(repairs, disagreement, until(SHARE_OF_REPAIRS))
    lost: list[Found] = [] if edits else _guarded(drops, disagreement, deadline)
    return compose(disagreement, seen, edits, lost)


def compose(
    disagreement: Disagreement, seen: list[Hypothesis], edits: list[Found], lost: list[Found]
) -> Diagnosis:
    """One diagnosis of what the searches found; an edit that was verified says most."""
    told = [*(f.message for f in edits), *(h.message for h in seen), *(f.message for f in lost)]
    told = list(dict.fromkeys(told))
    if not told:
        where = line_of_cotangent(disagreement.subject, _name(disagreement))
        return Diagnosis(where=where)
    first = edits[0] if edits else seen[0] if seen else lost[0]
    # Of the same kind, the numbers say what it looks like; the edit says what to do about it.
    message = seen[0].message if seen and seen[0].kind == first.kind else first.message
    others = tuple(text for text in told if text != message)
    if edits:
        return Diagnosis(first.kind, message, others, edits[0].place, edits[0].repair)
    where = line_of_cotangent(disagreement.subject, _name(disagreement))
    return Diagnosis(first.kind, message, others, where)


def _guarded(search: Callable[..., list[Any]], disagreement: Disagreement, until: float) -> Any:
    """A search; one that raises has found nothing, and the others go on."""
    if time.monotonic() > until:
        return []
    try:
        return search(disagreement, until)
    except Exception:  # a diagnosis must never change a verdict, and never hide the others'
        return []


def _name(disagreement: Disagreement) -> str:
    return disagreement.subject.names[disagreement.argument]


def line_of_cotangent(subject: Subject, name: str) -> Place | None:
    """The line of the backward pass that makes an argument's cotangent, None if unknown."""
    if subject.backward is None or subject.residuals is None:
        return None
    try:
        outs = jax.eval_shape(subject.value, subject.actives, subject.fixed)
        kept = jax.eval_shape(subject.residuals, subject.actives, subject.fixed)
        closed = jax.make_jaxpr(subject.backward)(kept, subject.fixed, tuple(outs))
    except Exception:  # a backward pass that cannot be traced has no graph to look in
        return None
    jaxpr, _ = _jax.open_jaxpr(closed)
    wanted = jaxpr.outvars[subject.names.index(name)]
    line = next((_jax.source_line(e) for e in jaxpr.eqns if wanted in e.outvars), None)
    return None if line is None else Place(*line, linecache.getline(*line).strip())


def describe_values(name: str, claimed: np.ndarray, true: np.ndarray) -> tuple[str, str]:
    """Kind and message of a wrong cotangent, from its values and the true ones alone."""
    nothing = (np.zeros_like(true),)
    sample = Sample(nothing, (), (), (), (claimed,), (true,))
    subject = Subject(name, (name,), nothing, (), lambda *_: (), lambda *_: ((), ()))
    masks = (np.abs(claimed - true) > 1e-9 * np.max(np.abs(true), initial=0.0),)
    disagreement = Disagreement(subject, 0, sample, masks, _no_other)
    found = _guarded(hypotheses, disagreement, time.monotonic() + 1.0)
    if not found:
        return "other", "its values differ in no simple way"
    return found[0].kind, found[0].message


def _no_other() -> Sample:
    raise ValueError("the claim holds at the given inputs alone")
